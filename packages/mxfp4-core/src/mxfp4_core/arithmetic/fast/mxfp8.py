"""The fast path of the format ``mxfp8``: the scales by the table of steps, the elements by integer rounding."""

from __future__ import annotations

import torch

from mxfp4_core.arithmetic.fast import device
from mxfp4_core.arithmetic.fast.blocks import Outputs, Way, addresses
from mxfp4_core.arithmetic.fast.choose import cpu_kernels
from mxfp4_core.arithmetic.fast.steps import E4M3_EXPONENT_MIN, arguments
from mxfp4_core.arithmetic.fast.threads import spread
from mxfp4_core.arithmetic.format import BLOCK
from mxfp4_core.arithmetic.profile import Profile
from mxfp4_core.arithmetic.reference import mxfp8


class Mxfp8Way(Way):
    """Outputs: codes float8_e4m3fn ``[N, K]`` and scales uint8 ``[N, K / 32]``."""

    def complete(self, weight: torch.Tensor, profile: Profile) -> bool:
        """Whether the compiled kernels run: they know every maximum."""
        return weight.device.type == "cpu" and cpu_kernels() is not None

    def quantize(self, weight: torch.Tensor, outputs: Outputs, profile: Profile, threads: int | None) -> int:
        """Quantise a matrix of whole blocks."""
        codes, scales = outputs
        plain = not self.complete(weight, profile)
        kernels, common = (None, None) if plain else (cpu_kernels("cpu_formats"), cpu_kernels())
        if kernels is None or common is None:
            return device.quantize_e4m3(weight, codes, scales, profile)
        known = arguments(profile, weight.dtype, E4M3_EXPONENT_MIN)
        matrix = addresses(common.TAGS[weight.dtype], weight, outputs)

        def run(start: int, stop: int) -> int:
            left: int = kernels.quantize_e4m3(
                *matrix, start, stop, known.tables, known.places, profile.zero_byte
            )
            return left

        return spread(run, weight.numel() // BLOCK, threads)

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
