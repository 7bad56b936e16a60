"""A tensor whose values are made when an operator asks for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


class Postponed(torch.Tensor):
    """Shape, dtype and device of a result, which is computed once, on its first use.

    Args:
        like: a tensor of the shape, dtype and device of the result.
        make: computes it.
    """

    _make: Callable[[], Tensor]
    _made: Tensor | None

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls: type[Postponed], like: Tensor, make: Callable[[], Tensor]) -> Postponed:
        """Make the tensor; see the class."""
        made = torch.Tensor._make_wrapper_subclass(cls, like.shape, dtype=like.dtype, device=like.device)
        torch._C._set_throw_on_mutable_data_ptr(made)
        made._make, made._made = make, None
        return made

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Postponed({tuple(self.shape)}, {self.dtype}, {self.device})"

    def values(self) -> Tensor:
        """Return the result as an ordinary tensor."""
        if self._made is None:
            with torch.no_grad():
                self._made = self._make()
        return self._made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operator on the values."""
        args, kwargs = tree_map(_values, (tuple(args), dict(kwargs or {})))
        return func(*args, **kwargs)


def _values(value: Any) -> Any:
    return value.values() if isinstance(value, Postponed) else value


__all__ = ["Postponed"]
