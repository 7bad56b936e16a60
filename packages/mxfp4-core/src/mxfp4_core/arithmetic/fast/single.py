"""The fast path of the format ``mxfp4``: one table of steps, then integer comparisons."""

from __future__ import annotations

import torch

from mxfp4_core.arithmetic import reference
from mxfp4_core.arithmetic.fast import device
from mxfp4_core.arithmetic.fast.blocks import Outputs, Way, addresses
from mxfp4_core.arithmetic.fast.choose import cpu_kernels
from mxfp4_core.arithmetic.fast.steps import arguments
from mxfp4_core.arithmetic.fast.threads import spread
from mxfp4_core.arithmetic.format import BLOCK
from mxfp4_core.arithmetic.profile import Profile


class Single(Way):
    """Outputs: codes uint8 ``[N, K / 2]`` and scales uint8 ``[N, K / 32]``."""

    def complete(self, weight: torch.Tensor, profile: Profile) -> bool:
        """Whether the compiled kernels run: they know every maximum."""
        return weight.device.type == "cpu" and not profile.down and cpu_kernels() is not None

    def quantize(self, weight: torch.Tensor, outputs: Outputs, profile: Profile, threads: int | None) -> int:
        """Quantise by the compiled kernels on a CPU that has them, by torch operations elsewhere."""
        codes, scales = outputs
        kernels, rest = (
            (cpu_kernels(), cpu_kernels("cpu_special")) if self.complete(weight, profile) else (None, None)
        )
        if kernels is None or rest is None:
            return device.quantize(weight, codes, scales, profile)
        known = arguments(profile, weight.dtype)
        matrix = addresses(kernels.TAGS[weight.dtype], weight, outputs)

        def run(start: int, stop: int) -> int:
            left: int = kernels.quantize(*matrix, start, stop, known.tables, known.limits, known.signs)
            if left:
                left = rest.quantize_special(*matrix, start, stop, known.places, known.limits, known.signs)
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
        return reference.quantize(blocks, profile)


SINGLE = Single()

__all__ = ["SINGLE", "Single"]
