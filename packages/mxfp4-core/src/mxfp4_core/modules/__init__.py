"""Modules that hold MXFP4 weights, for the adapters of engines and for people who build models by hand.

A module is born with canonical buffers, which any loader can fill. ``prepare`` then derives the layout of a
backend and lets go of the canonical bytes, if they are different ones. ``state_dict`` always gives canonical
bytes, and ``load_state_dict`` takes them, into the same device memory as before. The weights are frozen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxfp4_core._exports import exports

if TYPE_CHECKING:
    from mxfp4_core.modules.base import Mxfp4Module as Mxfp4Module
    from mxfp4_core.modules.layers import Mxfp4Experts as Mxfp4Experts
    from mxfp4_core.modules.layers import Mxfp4Linear as Mxfp4Linear
    from mxfp4_core.modules.prepare import prepare_model as prepare_model

_HOMES = {
    "Mxfp4Module": "base",
    "Mxfp4Experts": "layers",
    "Mxfp4Linear": "layers",
    "prepare_model": "prepare",
}

__all__ = [
    "Mxfp4Experts",
    "Mxfp4Linear",
    "Mxfp4Module",
    "prepare_model",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = exports(__name__, _HOMES)
