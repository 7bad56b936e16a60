"""Wrong quantizers of weights."""

from __future__ import annotations

import torch
from torch import Tensor

from mxfp4_core import MxTensor
from mxfp4_core.backend.reference.backend import ReferenceBackend
from wrong_backends.base import caught_by


@caught_by("test_quantize_named_blocks", dtype=torch.bfloat16)
class RulesMixed(ReferenceBackend):
    def quantize(self, weight: Tensor, *, profile: str) -> MxTensor:
        return super().quantize(weight, profile="rceil/even" if profile == "quark" else profile)


@caught_by("test_quantize_named_blocks", dtype=torch.bfloat16)
class TiesAwayFromZero(ReferenceBackend):
    def quantize(self, weight: Tensor, *, profile: str) -> MxTensor:
        return super().quantize(weight, profile="even/away" if profile == "torchao-even" else profile)


@caught_by("test_quantize_non_finite_blocks")
class NanBecomesZero(ReferenceBackend):
    def quantize(self, weight: Tensor, *, profile: str) -> MxTensor:
        return super().quantize(weight.nan_to_num(nan=0.0), profile=profile)


@caught_by("test_quantize_random_weights", shape=(3, 130, 2880), dtype=torch.bfloat16)
class OnlyTheFirstMatrixOfAStack(ReferenceBackend):
    def quantize(self, weight: Tensor, *, profile: str) -> MxTensor:
        kept = weight.clone()
        if weight.dim() == 3:
            kept[1:] = 0
        return super().quantize(kept, profile=profile)


@caught_by("test_quantize_random_weights", shape=(1, 32), dtype=torch.float32)
class Float32ThroughBfloat16(ReferenceBackend):
    def quantize(self, weight: Tensor, *, profile: str) -> MxTensor:
        return super().quantize(weight.bfloat16().to(weight.dtype), profile=profile)
