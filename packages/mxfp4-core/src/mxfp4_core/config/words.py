"""Closed lists of words that a config, a command line, a file and a question to a backend share."""

from __future__ import annotations

from typing import Final, Literal, get_args

Activation = Literal["none", "mxfp4", "mxfp8", "fp8", "auto"]
"""How activations are quantised inside a call: not at all, to one of three formats, or as the backend thinks best."""

ACTIVATIONS: Final[tuple[Activation, ...]] = get_args(Activation)

MACHINE: Final = ("backend", "backend_options", "fallback", "refused")
"""Fields of a config that belong to the machine it is used on: a file says nothing about them."""

FORMATS: Final = ("mxfp4", "mxfp4-dual", "mxfp8")
"""What weights can be quantised to: the formats of this project. Multipliers of the input come from files alone."""

__all__ = ["ACTIVATIONS", "FORMATS", "MACHINE", "Activation"]
