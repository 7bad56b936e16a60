"""Run an engine's loader against a stand-in of the parameter and catch what it copies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from mxfp4_core.errors import LoadError

_COPY = torch.ops.aten.copy_.default
_FILLS = (torch.ops.aten.fill_.Scalar, torch.ops.aten.zero_.default)
# The engine's parameter may say how many codes a byte holds. The twin is in high precision: one value each.
_PACKING = frozenset({"packed_factor", "pack_factor"})


def make_twin(param: torch.Tensor, shape: torch.Size, dtype: torch.dtype) -> Parameter:
    """Return a meta parameter of `shape` and `dtype` with the class and attributes of `param`.

    The engine's loader finds on it what it looks for (``output_dim``, ``input_dim``, methods of its own parameter
    class), and no memory stands behind it.
    """
    kind = type(param) if isinstance(param, Parameter) else Parameter
    data = torch.empty(shape, dtype=dtype, device="meta")
    twin: Parameter = torch.Tensor._make_subclass(kind, data, False)  # what Parameter.__new__ does itself
    for key, value in vars(param).items():
        twin.__dict__[key] = 1 if key.lstrip("_") in _PACKING else value
    return twin


def return_attributes(twin: Parameter, param: torch.Tensor) -> None:
    """Give `param` the attributes that the loader set on `twin`; engines count and mark their parameters."""
    mine = vars(param)
    for key, value in vars(twin).items():
        if key.lstrip("_") not in _PACKING and mine.get(key, _PACKING) is not value:
            mine[key] = value


class Capture(TorchDispatchMode):
    """Within this context, copies into `twin` go to `on_copy` instead; active in the entering thread only.

    Args:
        twin: the stand-in.
        name: name of the parameter, for messages.
        device: the real device. The loader sees ``param.device`` as meta, and what it moves there must arrive on a
            device that keeps the values.
        on_copy: called with the destination view and the source.
        on_zero: called with a destination view that the loader fills with zeros.
    """

    def __init__(
        self,
        twin: Parameter,
        name: str,
        device: torch.device,
        on_copy: Callable[[torch.Tensor, torch.Tensor], None],
        on_zero: Callable[[torch.Tensor], None],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it without annotations
        self._twin, self._name, self._device = twin, name, device
        self._storage = twin.untyped_storage()._cdata
        self._shape = twin.shape
        self._on_copy, self._on_zero = on_copy, on_zero

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Divert writes into the twin, keep values off the meta device, and run everything else as it is."""
        kwargs = kwargs or {}
        if func is _COPY and self._is_twin(args[0]):
            if args[1].is_meta and args[0].numel():
                raise self._refuse(
                    "a source that has no values (meta device)", "copies from a tensor with values"
                )
            self._on_copy(args[0], args[1])
            return args[0]
        if func in _FILLS and self._is_twin(args[0]) and (len(args) == 1 or args[1] == 0):
            self._on_zero(args[0])
            return args[0]
        for written in _written(func, args, kwargs):
            if written.is_meta:
                raise self._refuse(f"the operation {func}", "fills its parameter with copy_ (or with zeros)")
        device = kwargs.get("device")
        if device is not None and device.type == "meta" and not any(one.is_meta for one in _tensors(args)):
            kwargs = {**kwargs, "device": self._device}
        return func(*args, **kwargs)

    def check_twin(self) -> None:
        """Raise if the loader gave the parameter other data: what it wrote there is not what was caught.

        Raises:
            LoadError: ``param.data`` was replaced.
        """
        if self._twin.untyped_storage()._cdata != self._storage or self._twin.shape != self._shape:
            raise self.replaced()

    def replaced(self) -> LoadError:
        """Return the error for a loader that assigns ``param.data``."""
        return self._refuse("an assignment to param.data", "fills its parameter in place, with copy_")

    def _is_twin(self, tensor: torch.Tensor) -> bool:
        return tensor.is_meta and tensor.untyped_storage()._cdata == self._storage

    def _refuse(self, seen: str, rule: str) -> LoadError:
        return LoadError(
            f"the loader of {self._name} cannot be followed",
            seen=seen,
            rule=f"a loader {rule}, so that each piece can be quantised on its way",
            fix="keep this parameter in high precision, or give it a loader that copies",
        )


def _written(
    func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[torch.Tensor]:
    if not func._schema.is_mutable:
        return
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from _tensors([args[index] if index < len(args) else kwargs.get(argument.name)])


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


__all__ = ["Capture", "make_twin", "return_attributes"]
