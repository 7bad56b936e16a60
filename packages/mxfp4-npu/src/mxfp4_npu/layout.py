"""How torch_npu's operators take a weight.

==========  ==============================================  ======================================================
part        one level (``npu_quant_matmul``, grouped)        two levels (``npu_dual_level_quant_matmul``)
==========  ==============================================  ======================================================
codes       uint8 [.., n, k/2], as they are                  int8 [n, k/2] in FRACTAL_NZ
scales      uint8 [.., n, k/64, 2], pairs along k             the same
level0      none                                             float32 [k/512, n], contiguous
bias        float32 [.., n]                                  float32 [n]
multiplier  float32 [k], where it is not 1 throughout        the same
==========  ==============================================  ======================================================

The tiles of FRACTAL_NZ are made by ``npu_format_cast`` on the device alone: torch_npu keeps the format beside the
tensor, and index maths cannot. On any other device the codes stay in rows, which is the format ND.

Sources: ``npu_quant_matmul`` and the dual operators in torch_npu's op-plugin documentation; SGLang 0.5.23,
``hardware_backend/npu/quantization/linear_method_npu.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from mxfp4_core.arithmetic import BLOCK, GROUP, Alignment, MxTensor, get_format
from mxfp4_core.errors import ShapeError
from mxfp4_npu import vendor

if TYPE_CHECKING:
    from torch import Tensor

PAIR: Final = 2 * BLOCK
"""Values along k whose two scales stand side by side."""


@dataclass(frozen=True)
class AscendLayout:
    """The layout of one weight.

    Attributes:
        format: ``mxfp4`` or ``mxfp4-dual``, each also with ``+input_scale``.
    """

    format: str = "mxfp4"

    @property
    def dual(self) -> bool:
        """Whether the weight has two levels of scales."""
        return any(part.name == "level0" for part in get_format(self.format).parts)

    @property
    def id(self) -> str:
        """Name of the variant."""
        return f"ascend-{'nz' if self.dual else 'nd'}-{self.format}"

    @property
    def alignment(self) -> Alignment:
        """Whole pairs of scales, or whole groups of the outer scale."""
        return Alignment(k=GROUP if self.dual else PAIR)

    def pack(self, weight: MxTensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        """Arrange a weight [(experts,) n, k] as the table above says; see ``Layout.pack``.

        Raises:
            ShapeError: k is not a multiple of 64, or of 512 for two levels.
        """
        *lead, n, k = weight.shape
        if k % self.alignment.k:
            raise ShapeError(
                f"packing for {self.id}",
                seen=f"k = {k}",
                rule=f"k is a multiple of {self.alignment.k}",
                fix="let mxfp4_core.backend.calls.pack pad the weight, which is exact",
            )
        codes = weight.codes.contiguous()
        packed = {
            "codes": to_tiles(codes) if self.dual else codes,
            "scales": weight.scales.contiguous().view(*lead, n, k // PAIR, 2),
        }
        if self.dual:
            packed["level0"] = weight.parts["level0"].transpose(-1, -2).contiguous()
        multiplier = weight.parts.get("input_scale")
        # One look at load time; a call then knows by the name alone, without waiting for the device.
        if multiplier is not None and not bool((multiplier == 1).all()):
            packed["multiplier"] = multiplier.to(torch.float32).contiguous()
        if bias is not None:
            packed["bias"] = bias.to(torch.float32).contiguous()
        return packed

    def unpack(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> MxTensor:
        """Give back the canonical bytes of ``shape``; the inverse of ``pack``."""
        *lead, n, k = shape
        codes = to_rows(tensors["codes"]) if self.dual else tensors["codes"]
        parts = {"codes": codes, "scales": tensors["scales"].reshape(*lead, n, k // BLOCK)}
        if self.dual:
            parts["level0"] = tensors["level0"].transpose(-1, -2).contiguous()
        if any(part.name == "input_scale" for part in get_format(self.format).parts):
            ones = torch.ones(k, dtype=torch.float32, device=codes.device)
            parts["input_scale"] = tensors.get("multiplier", ones)
        return MxTensor.from_parts(get_format(self.format), parts, torch.Size(shape))


def to_tiles(codes: Tensor) -> Tensor:
    """Return codes uint8 [n, k/2] as int8, in FRACTAL_NZ where a device can make it."""
    signed = codes.view(torch.int8)
    if not vendor.computes(codes.device.type):
        return signed
    made: Tensor = vendor.loaded().npu_format_cast(signed, vendor.NZ, customize_dtype=torch.int8)
    return made


def to_rows(codes: Tensor) -> Tensor:
    """Return codes int8 [n, k/2], in any format, as uint8 in rows; the inverse of `to_tiles`."""
    if vendor.computes(codes.device.type):
        codes = vendor.loaded().npu_format_cast(codes, vendor.ND)
    return codes.view(torch.uint8)


__all__ = ["PAIR", "AscendLayout", "to_rows", "to_tiles"]
