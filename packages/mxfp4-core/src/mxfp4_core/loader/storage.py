"""Where the parts of a target are."""

from __future__ import annotations

from typing import Protocol

import torch

from mxfp4_core.arithmetic.formats.base import Format, Parts


class Storage(Protocol):
    """The memory of one target."""

    @property
    def device(self) -> torch.device:
        """Where the parts are, or will be."""

    def open(self) -> Parts:
        """Return the parts to write, allocated at the first call of a load."""

    def holds(self, param: torch.Tensor) -> bool:
        """Return whether a parameter of the engine has the memory that will hold what is loaded."""


class Tensors:
    """Parts that are there from the beginning and stay where they are.

    Args:
        format: which parts there are.
        parts: the tensors.
    """

    def __init__(self, format: Format, parts: Parts) -> None:
        self._parts, self._first = parts, parts[format.parts[0].name]
        self.device = self._first.device

    def open(self) -> Parts:
        """Return them."""
        return self._parts

    def holds(self, param: torch.Tensor) -> bool:
        """Return whether the parameter shares memory with the first part."""
        return shares(param, self._first)


def shares(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors have one memory."""
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


__all__ = ["Storage", "Tensors", "shares"]
