"""A stand-in for a parameter: it looks like the engine's own, has no memory, and reports what is copied into it.

A tensor subclass, not a dispatch mode: a mode flips flags of the whole process, which loads in threads do not
restore in order, so torch would believe for good that a mode is active.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, cast

import torch
from torch.nn import Parameter

from mxfp4_core.errors import LoadError

_ATEN = torch.ops.aten
_COPY = _ATEN.copy_.default
_FILLS = frozenset({_ATEN.fill_.Scalar, _ATEN.zero_.default})
# They take the shape of the parameter, not its values: buffers of the loader, so they get memory.
_FACTORIES = frozenset(
    {
        _ATEN.empty_like.default,
        _ATEN.full_like.default,
        _ATEN.new_empty.default,
        _ATEN.new_full.default,
        _ATEN.new_ones.default,
        _ATEN.new_zeros.default,
        _ATEN.ones_like.default,
        _ATEN.zeros_like.default,
    }
)
# The engine's parameter may say how many codes a byte holds. The twin is in high precision: one value each.
_PACKING = frozenset({"packed_factor", "pack_factor"})


class Sink(Protocol):
    """Takes what a loader writes into a twin."""

    def copied(self, view: torch.Tensor, source: torch.Tensor) -> None:
        """Take `source` for the place that the meta tensor `view` has in the parameter."""

    def zeroed(self, view: torch.Tensor) -> None:
        """Take zeros for the place that the meta tensor `view` has in the parameter."""

    def refuse(self, seen: str, rule: str) -> LoadError:
        """Return the error for a loader that does what cannot be followed."""


class Twin:
    """What all twins and their views share; mixed into the engine's class of parameter."""

    _view: torch.Tensor  # on the meta device: says which part of the parameter this is
    _sink: Sink
    _given: dict[str, Any]  # the attributes that it got from the parameter

    # Results keep the classes that __torch_dispatch__ gives them, whatever the engine's class would do.
    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def data(self) -> Any:
        """The twin without its class of parameter, as of any parameter."""
        return _DATA.__get__(self)

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        raise self._sink.refuse("an assignment to param.data", "fills its parameter in place, with copy_")

    @classmethod
    def __torch_dispatch__(
        cls,
        func: torch._ops.OpOverload,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Follow views, hand writes to the sink, and refuse everything that would need values."""
        kwargs = kwargs or {}
        twin = next(one for one in _leaves((args, *kwargs.values())) if isinstance(one, Twin))
        sink = twin._sink
        if func is _COPY and isinstance(args[0], Twin) and not isinstance(args[1], Twin):
            sink.copied(args[0]._view, args[1])
            return args[0]
        if func in _FILLS and (len(args) == 1 or args[1] == 0):
            sink.zeroed(args[0]._view)
            return args[0]
        if any(isinstance(one, Twin) for one in _written(func, args, kwargs)):
            raise sink.refuse(f"the operation {func}", "fills its parameter with copy_ (or with zeros)")
        bare_args, bare_kwargs = _map(_bare, args), {key: _map(_bare, one) for key, one in kwargs.items()}
        if func in _FACTORIES:
            device = kwargs.get("device") or cast(torch.Tensor, twin).device
            return func(*bare_args, **{**bare_kwargs, "device": device})
        if not _is_view(func):
            raise sink.refuse(f"the operation {func}", "never reads its parameter, which has no values yet")
        return _map(lambda one: _wrap(one, _TwinView, twin), func(*bare_args, **bare_kwargs))


_DATA: Any = torch.Tensor.data


class _TwinView(Twin, torch.Tensor):  # type: ignore[misc]  # the mixin replaces both hooks on purpose
    """A view of a twin."""


def is_twin(value: object) -> bool:
    """Return whether `value` is a stand-in or a view of one."""
    return isinstance(value, Twin)


def make_twin(
    param: torch.Tensor, shape: torch.Size, dtype: torch.dtype, device: torch.device, sink: Sink
) -> torch.Tensor:
    """Return a stand-in of `shape`, `dtype` and `device` with the class and attributes of `param`.

    The engine's loader finds on it what it looks for (``output_dim``, ``input_dim``, ``device``, methods of its own
    parameter class), and no memory stands behind it.
    """
    view = torch.empty(shape, dtype=dtype, device="meta")
    twin = _new(_twin_class(type(param) if isinstance(param, Parameter) else Parameter), view, device, sink)
    given = {key: 1 if key.lstrip("_") in _PACKING else value for key, value in vars(param).items()}
    vars(twin).update(given, _given=given)
    return twin


def return_attributes(twin: torch.Tensor, param: torch.Tensor) -> None:
    """Give `param` the attributes that the loader set on `twin`; engines count and mark their parameters."""
    given = vars(twin)["_given"]
    for key, value in vars(twin).items():
        # Only what changed: another thread may have marked the parameter meanwhile.
        if key not in Twin.__annotations__ and (key not in given or given[key] is not value):
            vars(param)[key] = value


@functools.cache
def _twin_class(kind: type[Parameter]) -> type[torch.Tensor]:
    metaclass: Any = type(kind)
    return cast(type[torch.Tensor], metaclass(f"Twin{kind.__name__}", (Twin, kind), {}))


def _new(kind: type[torch.Tensor], view: torch.Tensor, device: torch.device, sink: Sink) -> torch.Tensor:
    place = {"strides": view.stride(), "storage_offset": view.storage_offset()}
    make: Any = torch.Tensor._make_wrapper_subclass
    twin = make(kind, view.size(), **place, dtype=view.dtype, device=device, requires_grad=False)
    twin._view, twin._sink = view, sink
    return cast(torch.Tensor, twin)


def _wrap(value: Any, kind: type[torch.Tensor], twin: Twin) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return _new(kind, value, cast(torch.Tensor, twin).device, twin._sink)


def _bare(value: Any) -> Any:
    return value._view if isinstance(value, Twin) else value


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from _leaves(one)
    else:
        yield value


def _map(change: Callable[[Any], Any], value: Any) -> Any:
    return (
        type(value)(_map(change, one) for one in value) if isinstance(value, (list, tuple)) else change(value)
    )


def _written(func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from _leaves(args[index] if index < len(args) else kwargs.get(argument.name))


def _is_view(func: torch._ops.OpOverload) -> bool:
    return all(one.alias_info is not None for one in func._schema.returns)


__all__ = ["Sink", "is_twin", "make_twin", "return_attributes"]
