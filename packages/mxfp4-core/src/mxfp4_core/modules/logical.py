"""What the code of a model sees of an MXFP4 weight: a tensor of its own shape and dtype, whose values are made on use.

Models read ``linear.weight.dtype``, ``.shape`` and ``.device``, and some multiply with a weight themselves. A
`LogicalWeight` answers the first without memory, and so do views of it: one expert of a stack, some rows, the axes
turned. Any other operator widens the rows that are in view, and computes with the values that their codes stand for.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from mxfp4_core.arithmetic.tensor import MxTensor
from mxfp4_core.errors import FormatError
from mxfp4_core.modules.postponed import Postponed
from mxfp4_core.naming.braces import template

_LOG = logging.getLogger("mxfp4_core.modules")


class LogicalWeight(torch.Tensor):
    """A weight as the model holds it: float of the model's dtype, ``[N, K]`` or, where it has K first, ``[K, N]``.

    It has no memory of its own, so ``data_ptr()`` is an error. It is read-only.

    Args:
        canonical: gives the bytes when they are needed.
        rows: int64 of the shape of the tensor: which row of the weight each element is in. It has stride 0 along K.
        k: size of K.
        dtype: of the model.
        device: of the bytes.
        name: of the weight, for messages.
        used: is called with the name when the weight is widened.
    """

    _canonical: Callable[[], MxTensor]
    _rows: Tensor
    _k: int
    _name: str
    _used: Callable[[str], None]

    # What is in a subclass goes to the operators, where every use of the weight ends, and not to functions of Python.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(
        cls: type[LogicalWeight],
        canonical: Callable[[], MxTensor],
        rows: Tensor,
        k: int,
        dtype: torch.dtype,
        device: torch.device,
        name: str,
        used: Callable[[str], None],
    ) -> LogicalWeight:
        """Make the tensor; see the class."""
        made = torch.Tensor._make_wrapper_subclass(cls, rows.shape, dtype=dtype, device=device)
        torch._C._set_throw_on_mutable_data_ptr(made)
        made._canonical, made._rows, made._k, made._name, made._used = canonical, rows, k, name, used
        return made

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    @classmethod
    def of(
        cls,
        canonical: Callable[[], MxTensor],
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        *,
        k_first: bool = False,
        name: str = "",
        used: Callable[[str], None],
    ) -> LogicalWeight:
        """Return the whole of a weight.

        Args:
            canonical: see the class.
            shape: logical, k last.
            dtype: see the class.
            device: see the class.
            k_first: the model holds it with k before n.
            name: see the class.
            used: see the class.
        """
        *lead, k = shape
        rows = _numbers(torch.Size(lead).numel()).view(*lead, 1).expand(*lead, k)
        return cls(canonical, rows.transpose(-1, -2) if k_first else rows, k, dtype, device, name, used)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.widened()

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"LogicalWeight({self._name}, {tuple(self.shape)}, {self.dtype}, {self.device})"

    def widened(self) -> Tensor:
        """Return the values as an ordinary tensor."""
        self._used(self._name)
        axis = _k_axis(self._rows, self._k)
        numbers = self._rows.select(axis, 0)
        weight, flat = self._canonical(), numbers.reshape(-1)
        count = len(flat)
        dense = count and torch.equal(flat, torch.arange(int(flat[0]), int(flat[0]) + count, device="cpu"))
        picked = slice(int(flat[0]), int(flat[0]) + count) if dense else flat.to(self.device)
        parts = {
            part.name: each if part.operand == "input" else each.reshape(-1, each.shape[-1])[picked]
            for part, each in ((part, weight.parts[part.name]) for part in weight.format.parts)
        }
        values = MxTensor.from_parts(weight.format, parts, (count, self._k), weight.profile).dequantize(
            self.dtype
        )
        values = values.view(*numbers.shape, self._k)
        return values if axis == self.dim() - 1 else values.transpose(-1, -2)

    def _seen(self, rows: Tensor) -> LogicalWeight:
        return LogicalWeight(self._canonical, rows, self._k, self.dtype, self.device, self._name, self._used)

    @property
    def data(self) -> Tensor:
        """The weight itself, which has no gradient; what is set here would be lost, and is refused."""
        return self

    @data.setter
    def data(self, value: Tensor) -> None:
        raise frozen(self._name, "data = …")

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operator on the values; a view of whole rows stays a `LogicalWeight`."""
        kwargs = kwargs or {}
        if func is torch.ops.aten.set_.source_Tensor and args[0] is args[1]:
            return args[0]
        _refuse_writes(func, args, kwargs)
        weight = args[0] if args else None
        if isinstance(weight, LogicalWeight):
            found = _viewed(weight, func, args[1:], kwargs)
            found = _sum(weight, func, args[1:], kwargs) if found is None else found
            if found is not None:
                return found
        args, kwargs = tree_map(_values, (tuple(args), dict(kwargs)))
        return func(*args, **kwargs)


@functools.lru_cache(maxsize=8)
def _numbers(count: int) -> Tensor:
    return torch.arange(count, device="cpu")


def _values(value: Any) -> Any:
    return value.widened() if isinstance(value, LogicalWeight) else value


def _k_axis(rows: Tensor, k: int) -> int:
    """Return the axis along which a tensor of row numbers stays in its row, if it is one of the last two; else -1."""
    last = rows.dim() - 1
    found = [
        axis for axis in (last, last - 1) if axis >= 0 and rows.shape[axis] == k and rows.stride(axis) == 0
    ]
    return found[0] if found else -1


def _viewed(weight: LogicalWeight, func: Any, rest: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return what an operator that moves rows makes of a weight, or None where it does more than that."""
    if func is torch.ops.aten.index.Tensor:
        return _indexed(weight, rest[0])
    schema = getattr(func, "_schema", None)  # what is of a higher order has none
    moves = schema is not None and any(each.alias_info is not None for each in schema.returns)
    if not moves or func is torch.ops.aten.view.dtype:
        return None
    rows = func(weight._rows, *rest, **kwargs)
    several = isinstance(rows, (list, tuple))
    every = list(rows) if several else [rows]
    if any(_k_axis(each, weight._k) < 0 for each in every):
        return None
    views = [weight._seen(each) for each in every]
    return views if several else views[0]


def _indexed(weight: LogicalWeight, indices: Sequence[Any]) -> Tensor | None:
    """Return rows that are picked by number, such as those of one expert."""
    if len(indices) > weight.dim() - 2:
        return None
    axis = _k_axis(weight._rows, weight._k)
    numbers = [None if each is None else each.cpu() for each in indices]
    thin = torch.ops.aten.index.Tensor(weight._rows.narrow(axis, 0, 1), numbers)
    shape = list(thin.shape)
    shape[axis - weight.dim()] = weight._k
    return weight._seen(thin.expand(shape)).widened()


def _sum(weight: LogicalWeight, func: Any, rest: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the sum of a weight and of what an adapter adds to it, which need not be asked for its values."""
    others = [each for each in rest if isinstance(each, Tensor)]
    alike = all(type(each) is Tensor and each.dtype is weight.dtype for each in others)
    added = func is torch.ops.aten.add.Tensor and [each.shape for each in others] == [weight.shape]
    if not alike or not (added or func is torch.ops.aten.baddbmm.default):
        return None
    return Postponed(weight, lambda: func(weight.widened(), *rest, **kwargs))


def _refuse_writes(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.is_mutable:
        return
    given = [*zip(schema.arguments, args, strict=False)]
    given += [(each, kwargs[each.name]) for each in schema.arguments if each.name in kwargs]
    for argument, value in given:
        written = argument.alias_info is not None and argument.alias_info.is_write
        if written and isinstance(value, LogicalWeight):
            raise frozen(value._name, func.__name__)


def frozen(name: str, seen: str) -> FormatError:
    """Return the error about somebody who wants to write a weight, as peft does that merges adapters."""
    return FormatError(
        f"{name} cannot be written",
        seen=f"{seen} on an MXFP4 weight",
        rule="MXFP4 weights are frozen: what a model sees of them is read-only",
        fix="keep the weight in high precision (name its module in ignore), or bring the whole model back to it "
        "before: model.dequantize()",
    )


def say(name: str) -> None:
    """Warn that a model computes with a weight itself, so that no backend does; once for layers that are alike."""
    _say(template(name))


@functools.lru_cache(maxsize=4096)
def _say(name: str) -> None:
    _LOG.warning("%s is widened in each call, since the code of the model computes with it", name)


class Logical:
    """What stands on a class of modules under the name of a weight: the buffer until the module is ready, then this.

    Args:
        matrix: which weight of the module.
    """

    def __init__(self, matrix: str) -> None:
        self._matrix = matrix

    def __get__(self, module: Any, owner: type | None = None) -> Any:
        """Return the weight as the model has it, of a module that computes; else its buffer."""
        if module is None:
            return self
        if module.is_changed(self._matrix):  # what torch puts in this place is not there yet
            raise AttributeError(self._matrix)
        return module.seen(self._matrix)


class Absent:
    """What stands on a class under a name that its base class has and it has not."""

    def __get__(self, module: Any, owner: type | None = None) -> Any:
        """Say that there is no such attribute, of a module and of the class."""
        raise AttributeError(f"{getattr(owner, '__name__', 'this')} has no such weight")


__all__ = ["Absent", "Logical", "LogicalWeight", "frozen", "say"]
