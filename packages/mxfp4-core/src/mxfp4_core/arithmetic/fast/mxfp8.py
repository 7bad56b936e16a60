"""The fast path of the format ``mxfp8``: the scales by the table of steps, the elements by integer rounding."""

from __future__ import annotations

import torch

from mxfp4_core.arithmetic.fast import device
from mxfp4_core.arithmetic.fast.blocks import Outputs, Way
from mxfp4_core.arithmetic.profile import Profile
from mxfp4_core.arithmetic.reference import mxfp8


class Mxfp8Way(Way):
    """Outputs: codes float8_e4m3fn ``[N, K]`` and scales uint8 ``[N, K / 32]``."""

    def whole(self) -> bool:
        """Torch operations make temporaries."""
        return False

    def quantize(self, weight: torch.Tensor, outputs: Outputs, profile: Profile, threads: int | None) -> int:
        """Quantise a matrix of whole blocks."""
        codes, scales = outputs
        return device.quantize_e4m3(weight, codes, scales, profile)

    def judge(
        self,
        blocks: torch.Tensor,
        outputs: Outputs,
        row: torch.Tensor,
        column: torch.Tensor,
        profile: Profile,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the reference makes of them."""
        return mxfp8.quantize(blocks, profile)


MXFP8_WAY = Mxfp8Way()

__all__ = ["MXFP8_WAY", "Mxfp8Way"]
