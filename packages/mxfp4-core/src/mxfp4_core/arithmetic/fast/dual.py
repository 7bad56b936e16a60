"""The fast path of the format ``mxfp4-dual``: the outer scales, and the path of ``mxfp4`` on what they leave."""

from __future__ import annotations

import numpy as np
import torch

from mxfp4_core.arithmetic import reference
from mxfp4_core.arithmetic.fast import device
from mxfp4_core.arithmetic.fast.blocks import Outputs, Way
from mxfp4_core.arithmetic.fast.choose import cpu_kernels
from mxfp4_core.arithmetic.fast.steps import arguments
from mxfp4_core.arithmetic.fast.threads import spread
from mxfp4_core.arithmetic.format import BLOCK, GROUP
from mxfp4_core.arithmetic.profile import Level0, Profile
from mxfp4_core.arithmetic.reference import dual


def level0_of(profile: Profile) -> Level0:
    """Return how the outer scale is made; a pair of rules does as CANN does."""
    return profile.level0 or dual.CANN


class Dual(Way):
    """Outputs: codes uint8 ``[N, K / 2]``, scales uint8 ``[N, K / 32]`` and level0 float32 ``[N, K / 512]``."""

    def complete(self, weight: torch.Tensor, profile: Profile) -> bool:
        """Whether the compiled kernels run: they know every maximum."""
        return weight.device.type == "cpu" and not profile.down and cpu_kernels() is not None

    def quantize(self, weight: torch.Tensor, outputs: Outputs, profile: Profile, threads: int | None) -> int:
        """Quantise a matrix of whole groups."""
        codes, scales, level0 = outputs
        how = level0_of(profile)
        plain = not self.complete(weight, profile)
        kernels, common = (None, None) if plain else (cpu_kernels("cpu_formats"), cpu_kernels())
        if kernels is None or common is None:
            return device.quantize(device.divide(weight, level0, how), codes, scales, profile)
        seen = weight.dtype if how.narrow else torch.float32
        known = arguments(profile, seen)
        # The kernel keeps quotients that are rounded to float16 in float32.
        inner = common.TAGS[torch.float32 if seen is torch.float16 else seen]
        size = weight.element_size()
        row_groups = weight.shape[1] // GROUP
        factor = np.float32(1) / np.float32(6) if how.reciprocal else 1
        terms = np.array(
            [factor, 1 if how.reciprocal else 6, 2.0**-126 if how.flush else 0], dtype=np.float32
        )

        def run(start: int, stop: int) -> int:
            scratch = np.empty(BLOCK * 4, dtype=np.uint8)
            left: int = kernels.quantize_dual(
                common.TAGS[weight.dtype],
                True if how.narrow else 0,
                inner,
                size,
                weight.data_ptr(),
                (codes.data_ptr(), scales.data_ptr(), level0.data_ptr()),
                (weight.stride(0) * size, codes.stride(0), scales.stride(0), level0.stride(0) * 4),
                row_groups,
                start,
                stop,
                known.tables,
                known.places,
                known.limits,
                known.signs,
                terms,
                scratch.ctypes.data,
            )
            return left

        return spread(run, weight.shape[0] * row_groups, threads, each=GROUP // BLOCK)

    def judge(
        self,
        blocks: torch.Tensor,
        outputs: Outputs,
        row: torch.Tensor,
        column: torch.Tensor,
        profile: Profile,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the reference makes of the blocks under the outer scales that are written."""
        scale = outputs[2][row, column // (GROUP // BLOCK)].cpu()
        return reference.quantize(dual.inner(blocks, scale[:, None], level0_of(profile)), profile)


DUAL = Dual()

__all__ = ["DUAL", "Dual"]
