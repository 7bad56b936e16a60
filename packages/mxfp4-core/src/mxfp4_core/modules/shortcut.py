"""Modules whose calls are short: straight to a backend's kernels where nobody looks, with few guards where one does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mxfp4_core.backend.direct import is_plain
from mxfp4_core.modules.base import Mxfp4Module
from mxfp4_core.modules.preparation import Preparation, remember


class DirectModule(Mxfp4Module):
    """Keeps what ``backend/direct.py`` computes with, and what ``traced.py`` needs."""

    _dynamo_marked_static = True
    """As `torch._dynamo.mark_static` sets it: attributes are constants, and buffers are guarded as those of torch's."""

    _direct: tuple[Callable[..., Tensor], list[tuple[str, Tensor | None]]] | None = None
    """What computes, and the buffers for which it was made."""

    _where: str = ""
    """The type of the device for which it was made, as autocast has it."""

    _preparation: str = ""
    """The text of `remember`, of a prepared module."""

    _traced: str = ""
    """The same where a compiler finds the weights in the buffers, else empty."""

    def _make_direct(self) -> Callable[..., Tensor] | None:
        """Return what computes with the packed weights that are there now, or None."""
        raise NotImplementedError

    def _direct_for(self, x: Tensor) -> Callable[..., Tensor] | None:
        """Return what computes a call for x that nobody traces, rounds or learns from, with the buffers of now."""
        direct = self._direct
        if (
            direct is None
            or x.dtype is not self.dtype
            or x.requires_grad
            or torch.is_autocast_enabled(self._where)
            or not is_plain(x)
        ):
            return None
        buffers = self._buffers
        for name, tensor in direct[1]:
            if buffers[name] is not tensor:  # somebody put another in its place
                self._prepared()
                return self._direct_for(x)
        return direct[0]

    def _prepared(self) -> None:
        super()._prepared()
        packed_as = tuple(self._packed[matrix] for matrix in self.matrices)
        self._preparation = remember(Preparation(self._ready(), self.problem, packed_as))
        self._traced = "" if self.parked is not None else self._preparation
        # What is parked is fetched for each call, and lies at other addresses then.
        run = None if self.parked is not None else self._make_direct()
        packed = (name for matrix in self.matrices for _, name in self._packed[matrix][1])
        self._direct = None if run is None else (run, [(name, self._buffers[name]) for name in packed])
        self._where = self.problem.device.torch_type

    def _forget(self) -> None:
        super()._forget()
        self._direct, self._preparation, self._traced = None, "", ""

    def __getstate__(self) -> dict[str, Any]:
        # A copy makes its own, for its own buffers.
        return {**super().__getstate__(), "_direct": None}


__all__ = ["DirectModule"]
