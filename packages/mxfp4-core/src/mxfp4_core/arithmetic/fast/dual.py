"""The fast path of the format ``mxfp4-dual``: the outer scales, and the path of ``mxfp4`` on what they leave."""

from __future__ import annotations

import torch

from mxfp4_core.arithmetic import reference
from mxfp4_core.arithmetic.fast import device
from mxfp4_core.arithmetic.fast.blocks import Outputs, Way
from mxfp4_core.arithmetic.format import BLOCK, GROUP
from mxfp4_core.arithmetic.profile import Level0, Profile
from mxfp4_core.arithmetic.reference import dual


def level0_of(profile: Profile) -> Level0:
    """Return how the outer scale is made; a pair of rules does as CANN does."""
    return profile.level0 or dual.CANN


class Dual(Way):
    """Outputs: codes uint8 ``[N, K / 2]``, scales uint8 ``[N, K / 32]`` and level0 float32 ``[N, K / 512]``."""

    def whole(self) -> bool:
        """The quotients are as large as the weight."""
        return False

    def quantize(self, weight: torch.Tensor, outputs: Outputs, profile: Profile, threads: int | None) -> int:
        """Quantise a matrix of whole groups."""
        codes, scales, level0 = outputs
        left = device.divide(weight, level0, level0_of(profile))
        return device.quantize(left, codes, scales, profile)

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
