"""Modules whose plain calls go straight to a backend's kernels, where the backend has such a way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from mxfp4_core.modules.base import Mxfp4Module


class DirectModule(Mxfp4Module):
    """Keeps what computes without torch's dispatcher; see ``backend/direct.py``."""

    _direct: tuple[Callable[..., Tensor], list[tuple[str, Tensor | None]]] | None = None
    """It, and the buffers for which it was made."""

    def _make_direct(self) -> Callable[..., Tensor] | None:
        """Return what computes with the packed weights that are there now, or None."""
        raise NotImplementedError

    def _direct_call(self) -> Callable[..., Tensor] | None:
        """Return what `_make_direct` made for the buffers that are there now."""
        while self._direct is not None:
            run, tensors = self._direct
            if all(self._buffers[name] is tensor for name, tensor in tensors):
                return run
            self._prepared()  # somebody put other tensors in their place
        return None

    def _prepared(self) -> None:
        super()._prepared()
        # What is parked is fetched for each call, and lies at other addresses then.
        run = None if self.parked is not None else self._make_direct()
        packed = (name for matrix in self.matrices for _, name in self._packed[matrix][1])
        self._direct = None if run is None else (run, [(name, self._buffers[name]) for name in packed])

    def _forget(self) -> None:
        super()._forget()
        self._direct = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy makes its own, for its own buffers.
        return {**super().__getstate__(), "_direct": None}


__all__ = ["DirectModule"]
