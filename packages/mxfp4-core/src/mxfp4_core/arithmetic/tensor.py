"""``MxTensor``: the parts of one quantised weight, checked when built."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any, Self

import torch

from mxfp4_core.arithmetic.dense import check_dense
from mxfp4_core.arithmetic.formats.base import Format
from mxfp4_core.arithmetic.formats.mxfp4 import MXFP4
from mxfp4_core.errors import FormatError


def _size(shape: Sequence[int]) -> torch.Size:
    try:
        return torch.Size(shape)
    except (TypeError, ValueError) as error:
        raise FormatError(
            "the logical shape of an MxTensor cannot be read",
            seen=repr(shape),
            rule="a shape is a sequence of integers",
            fix="pass the shape of the weight",
        ) from error


@cache
def _named(format: Format) -> Any:
    return namedtuple("Parts", [part.name for part in format.parts])


class MxTensor:
    """A quantised tensor in the canonical layout.

    ``MxTensor(codes, scales, shape)`` builds one of the format ``mxfp4``, `from_parts` one of any format. Both take
    torch's own dtypes for the same bits, float4_e2m1fn_x2 for codes and float8_e8m0fnu for scales, and copy nothing.

    Attributes:
        format: which parts there are.
        parts: tensors by name; each is an attribute, too (``tensor.codes``).
        shape: logical shape ``[..., K]``; Kp is K padded to whole blocks.
        profile: name of the profile that made the bytes; empty if a file does not say.

    Raises:
        FormatError: the parts do not fit together.
    """

    format: Format
    parts: Mapping[str, torch.Tensor]
    shape: torch.Size
    profile: str

    def __init__(
        self, codes: torch.Tensor, scales: torch.Tensor, shape: torch.Size, profile: str = ""
    ) -> None:
        self._set(MXFP4, {"codes": codes, "scales": scales}, shape, profile)

    @classmethod
    def from_parts(
        cls,
        format: Format,
        parts: Mapping[str, torch.Tensor],
        shape: torch.Size | tuple[int, ...],
        profile: str = "",
    ) -> Self:
        """Build a tensor of any format.

        Args:
            format: from `mxfp4_core.arithmetic.formats`.
            parts: one tensor for each part.
            shape: logical shape ``[..., K]``.
            profile: name of the profile that made the bytes.
        """
        made = cls.__new__(cls)
        made._set(format, parts, shape, profile)
        return made

    def _set(
        self,
        format: Format,
        parts: Mapping[str, torch.Tensor],
        shape: torch.Size | tuple[int, ...],
        profile: str,
    ) -> None:
        for key, part in parts.items():
            check_dense(part, f"{key} of an MxTensor", values=False)
        parts = format.raw(parts)
        format.check(parts, "an MxTensor")
        self.format, self.parts = format, MappingProxyType(dict(parts))
        self.shape, self.profile = _size(shape), profile
        if not self.shape or self.physical_shape != (*self.shape[:-1], format.physical_k(self.shape[-1])):
            first = format.parts[0]
            raise FormatError(
                f"the logical shape of an MxTensor does not fit its {first.name}",
                seen=f"shape {tuple(self.shape)}, {first.name} {tuple(parts[first.name].shape)}",
                rule=f"{first.name} are [..., Kp / {first.values}] with K padded to whole blocks of {format.block}",
                fix="pass the shape of the weight before padding",
            )

    def __getattr__(self, name: str) -> torch.Tensor:
        parts: Mapping[str, torch.Tensor] = self.__dict__.get("parts", {})
        if name in parts:
            return parts[name]
        raise AttributeError(f"MxTensor has no attribute {name!r}; its parts are {', '.join(parts)}")

    def __reduce__(self) -> tuple[object, ...]:
        # A mapping proxy cannot be pickled, nor can torch pickle the storage of its 8-bit floats.
        parts = {name: _bytes(part) for name, part in self.parts.items()}
        return _unpickled, (self.format, parts, self.shape, self.profile)

    @property
    def physical_shape(self) -> torch.Size:
        """Shape ``[..., Kp]`` with K padded to whole blocks."""
        first = self.format.parts[0]
        *rows, k = self.parts[first.name].shape
        return torch.Size((*rows, k * first.values))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype it stands for, bfloat16: what `dequantize` gives unless it is told otherwise.

        The dtype of the weight that was quantised is not kept. The parts have dtypes of their own.
        """
        return torch.bfloat16

    def numel(self) -> int:
        """Return how many values it stands for: the product of the logical shape."""
        return self.shape.numel()

    @property
    def device(self) -> torch.device:
        """Where the parts are."""
        return next(iter(self.parts.values())).device

    @property
    def nbytes(self) -> int:
        """Bytes of all parts together."""
        return sum(part.nbytes for part in self.parts.values())

    def dequantize(self, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        """Return the values, ``[..., K]`` of the logical shape; see :func:`mxfp4_core.dequantize`."""
        values = self.format.dequantize(self.parts, dtype)
        return values[..., : self.shape[-1]] if self.shape != self.physical_shape else values

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> MxTensor:
        """Return the same tensor on another device; ``non_blocking`` as for `torch.Tensor.to`."""
        moved = {name: part.to(device, non_blocking=non_blocking) for name, part in self.parts.items()}
        return MxTensor.from_parts(self.format, moved, self.shape, self.profile)

    def as_torch(self) -> Any:
        """Return the parts in torch's own dtypes, as views of the same memory.

        Codes of ``mxfp4`` are float4_e2m1fn_x2 ``[..., Kp / 2]``, scales float8_e8m0fnu ``[..., Kp / 32]``. The result
        is a named tuple in the order of the parts: ``codes, scales = tensor.as_torch()``, or ``.codes``, ``.scales``.
        """
        return _named(self.format)(*(part.named(self.parts[part.name]) for part in self.format.parts))

    def __repr__(self) -> str:
        made = f", profile={self.profile!r}" if self.profile else ""
        kind = "" if self.format is MXFP4 else f", format={self.format.name!r}"
        return f"MxTensor(shape={list(self.shape)}, device={str(self.device)!r}{kind}{made}, {self.nbytes} bytes)"


def _bytes(part: torch.Tensor) -> torch.Tensor:
    return part.view(torch.uint8) if part.dtype.itemsize == 1 else part


def _unpickled(
    format: Format, parts: Mapping[str, torch.Tensor], shape: torch.Size, profile: str
) -> MxTensor:
    made = {part.name: parts[part.name].view(getattr(torch, part.dtype)) for part in format.parts}
    return MxTensor.from_parts(format, made, shape, profile)


__all__ = ["MxTensor"]
