"""``MxTensor``: the parts of one quantised weight, checked when built."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Self

import torch

from mxfp4_core.arithmetic.formats.base import Format
from mxfp4_core.arithmetic.formats.mxfp4 import MXFP4
from mxfp4_core.errors import FormatError


class MxTensor:
    """A quantised tensor in the canonical layout.

    ``MxTensor(codes, scales, shape)`` builds one of the format ``mxfp4``, `from_parts` one of any format.

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
        format.check(parts, "an MxTensor")
        self.format, self.parts = format, MappingProxyType(dict(parts))
        self.shape, self.profile = torch.Size(shape), profile
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
        # A mapping proxy cannot be pickled.
        return MxTensor.from_parts, (self.format, dict(self.parts), self.shape, self.profile)

    @property
    def physical_shape(self) -> torch.Size:
        """Shape ``[..., Kp]`` with K padded to whole blocks."""
        first = self.format.parts[0]
        *rows, k = self.parts[first.name].shape
        return torch.Size((*rows, k * first.values))

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

    def to(self, device: torch.device | str) -> MxTensor:
        """Return the same tensor on another device."""
        moved = {name: part.to(device) for name, part in self.parts.items()}
        return MxTensor.from_parts(self.format, moved, self.shape, self.profile)

    def __repr__(self) -> str:
        made = f", profile={self.profile!r}" if self.profile else ""
        kind = "" if self.format is MXFP4 else f", format={self.format.name!r}"
        return f"MxTensor(shape={list(self.shape)}, device={str(self.device)!r}{kind}{made}, {self.nbytes} bytes)"


__all__ = ["MxTensor"]
