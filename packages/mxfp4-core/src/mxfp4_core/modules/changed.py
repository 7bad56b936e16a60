"""Weights that somebody changes for the length of a call, as peft does with an adapter for a parameter.

peft looks for parameters in each module by itself (``named_parameters(recurse=False)``), wraps the module, and
registers a parametrization of torch on it around each call. For that torch takes the buffer of the name out of the
module, puts a property in its place, and puts the buffer back afterwards. Here the bytes stay where a backend finds
them: what torch takes out and puts back is what the model sees of them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import chain
from typing import Any, Final

from torch import Tensor, nn

from mxfp4_core.backend.problem import Matrix
from mxfp4_core.errors import BackendError
from mxfp4_core.modules.away import ParkableBuffers

_LIBRARIES: Final = frozenset({"peft"})
"""Who is shown the weights as parameters of their module. Others would move or train them as such."""


class ChangeableBuffers(ParkableBuffers):
    """Buffers of weights on which torch registers a parametrization; see `WeightBuffers`."""

    _changed: dict[str, Tensor | None] | None = None
    """The first canonical part of each weight that is changed now, by the name of the weight."""

    _order: tuple[str, ...] = ()
    """Names of all buffers, in the order of before."""

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Return the parameters of the module; a library of adapters gets the weights, too, as the model sees them."""
        found = super().named_parameters(*args, **kwargs)
        return chain(found, self._shown(*args, **kwargs)) if _caller() in _LIBRARIES else found

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Return the same without names."""
        found = super().parameters(recurse)
        if _caller() not in _LIBRARIES:
            return found
        return chain(found, (weight for _, weight in self._shown()))

    def _shown(self, prefix: str = "", *_: Any, **__: Any) -> Iterator[tuple[str, Any]]:
        if self.computes:
            for matrix, name in self.matrices.items():
                yield f"{prefix}.{name}" if prefix else name, self.seen(matrix)

    def is_changed(self, matrix: Matrix) -> bool:
        """Say whether somebody changes a weight now."""
        return self._changed is not None and self.matrices[matrix] in self._changed

    def stored(self, name: str) -> Tensor | None:
        """Return a part of a weight by the name of its buffer, as it lies, also while the weight is changed."""
        return self._changed[name] if self._changed and name in self._changed else super().stored(name)

    def __delattr__(self, name: str) -> None:
        if name not in self.matrices.values() or not self.computes:
            super().__delattr__(name)
            return
        if len(self.whole) > 0:
            raise BackendError(
                f"{self.label or type(self).__name__}.{name} cannot be changed",
                seen="a weight that processes share, with a parametrization for the whole of it",
                rule="a change for the length of a call is that of all values of a weight",
                fix="load the model whole in each process, or leave the weight out of target_parameters",
            )
        if self._changed is None:
            # In this order they are saved.
            self._changed, self._order = {}, tuple(self._buffers)
        self._changed[name] = super().stored(name)
        self._buffers.pop(name, None)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Add a buffer; a weight that was changed is the one of before."""
        if self._changed is None or name not in self._changed:
            super().register_buffer(name, tensor, persistent)
            return
        own = self._changed.pop(name)
        self._buffers[name] = None if self.parked is not None else own
        if not self._changed:
            for each in self._order:
                self._buffers[each] = self._buffers.pop(each)
            self._changed = None


def _caller() -> str:
    """Return the package of whoever calls the method that asks."""
    name: str = sys._getframe(2).f_globals.get("__name__", "")
    return name.partition(".")[0]


__all__ = ["ChangeableBuffers"]
