"""``MxTensor``: codes and scales that belong together, checked when built."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mxfp4_core.arithmetic.dequantize import check_pair, dequantize
from mxfp4_core.arithmetic.format import BLOCK
from mxfp4_core.errors import FormatError


@dataclass(frozen=True, eq=False)
class MxTensor:
    """A quantised tensor in the canonical layout.

    Attributes:
        codes: uint8 ``[..., Kp / 2]``, even K in the low nibble.
        scales: uint8 ``[..., Kp / 32]``, E8M0, on the same device.
        shape: logical shape ``[..., K]``; Kp is K padded to whole blocks.
        profile: name of the profile that made the bytes; empty if a file does not say.

    Raises:
        FormatError: the parts do not fit together.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    shape: torch.Size
    profile: str = ""

    def __post_init__(self) -> None:
        check_pair(self.codes, self.scales, "codes and scales of an MxTensor")
        object.__setattr__(self, "shape", torch.Size(self.shape))
        k = self.shape[-1] if self.shape else 0
        if self.shape[:-1] != self.codes.shape[:-1] or self.physical_shape[-1] != k + -k % BLOCK:
            raise FormatError(
                "the logical shape of an MxTensor does not fit its codes",
                seen=f"shape {tuple(self.shape)}, codes {tuple(self.codes.shape)}",
                rule=f"codes are [..., Kp / 2] with K padded to whole blocks of {BLOCK}",
                fix="pass the shape of the weight before padding",
            )

    @property
    def physical_shape(self) -> torch.Size:
        """Shape ``[..., Kp]`` with K padded to whole blocks."""
        return torch.Size((*self.codes.shape[:-1], self.codes.shape[-1] * 2))

    @property
    def device(self) -> torch.device:
        """Where the codes and scales are."""
        return self.codes.device

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales together."""
        return self.codes.nbytes + self.scales.nbytes

    def dequantize(self, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        """Return the values, ``[..., K]`` of the logical shape; see :func:`mxfp4_core.dequantize`."""
        values = dequantize(self.codes, self.scales, dtype)
        return values[..., : self.shape[-1]] if self.shape != self.physical_shape else values

    def to(self, device: torch.device | str) -> MxTensor:
        """Return the same tensor on another device."""
        return MxTensor(self.codes.to(device), self.scales.to(device), self.shape, self.profile)

    def __repr__(self) -> str:
        made = f", profile={self.profile!r}" if self.profile else ""
        return f"MxTensor(shape={list(self.shape)}, device={str(self.device)!r}{made}, {self.nbytes} bytes)"


__all__ = ["MxTensor"]
