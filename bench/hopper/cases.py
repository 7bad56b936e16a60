"""The layers that are measured, their random weights and inputs, and what FP32 says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mxfp4_core import MxTensor, dequantize
from mxfp4_core.backend import Packed, Problem, calls

# experts, hidden, intermediate, top k
TUNED_MOE = {
    "qwen3-30b-a3b": (128, 2048, 768, 8),
    "dsv4-flash": (256, 4096, 2048, 6),
    "gpt-oss-120b": (128, 2880, 2880, 4),
    "mixtral-8x7b": (8, 4096, 14336, 2),
}
# Nobody tuned a kernel of ours for these: they say whether the choice by costs holds elsewhere.
UNTUNED_MOE = {
    "glm-4.5-air": (128, 4096, 1408, 8),
    "qwen3-next-80b": (512, 2048, 512, 10),
    "olmoe-7b": (64, 2048, 1024, 8),
    "phi-3.5-moe": (16, 4096, 6400, 2),
}
MOE_SHAPES = TUNED_MOE | UNTUNED_MOE
MOE_TOKENS = (1, 8, 32, 128, 512, 2048, 8192)
# n, k
TUNED_DENSE = {
    "o_proj 4096x4096": (4096, 4096),
    "qwen3-32b up 25600x5120": (25600, 5120),
    "llama70b down 8192x28672": (8192, 28672),
    "wan2.2 ffn 13824x5120": (13824, 5120),
}
UNTUNED_DENSE = {
    "gemma3-27b up 21504x5376": (21504, 5376),
    "qwen2.5-7b down 3584x18944": (3584, 18944),
    "z-image ffn 10240x3840": (10240, 3840),
    "flux proj 3072x12288": (3072, 12288),
}
DENSE_SHAPES = TUNED_DENSE | UNTUNED_DENSE
DENSE_TOKENS = (1, 16, 64, 256, 1024, 4096, 16384)
# The clamped SwiGLU of gpt-oss, the only activation that triton_kernels has: alpha, limit.
SWIGLU = (1.702, 7.0)


def _random(shape: Sequence[int], device: torch.device) -> MxTensor:
    codes = torch.randint(0, 256, (*shape[:-1], shape[-1] // 2), dtype=torch.uint8, device=device)
    scales = torch.randint(116, 122, (*shape[:-1], shape[-1] // 32), dtype=torch.uint8, device=device)
    return MxTensor(codes, scales, torch.Size(shape))


@dataclass(frozen=True)
class Routed:
    """Tokens and where they go.

    Attributes:
        x: bfloat16 [m, k].
        scores: float32 [m, experts], of which ids and weights are the top k and their softmax.
        ids: int32 [m, top_k].
        weights: float32 [m, top_k].
    """

    x: Tensor
    scores: Tensor
    ids: Tensor
    weights: Tensor


@dataclass(frozen=True)
class MoeCase:
    """One layer with random weights.

    Attributes:
        problem: sizes; SiLU gate, gate rows first.
        gate_up: [experts, 2 n, k].
        down: [experts, k, n].
    """

    problem: Problem
    gate_up: MxTensor
    down: MxTensor

    @classmethod
    def random(cls, name: str, device: torch.device) -> MoeCase:
        """Draw the weights of a shape of ``MOE_SHAPES``."""
        experts, k, n, top_k = MOE_SHAPES[name]
        problem = Problem(op="moe", n=n, k=k, experts=experts, top_k=top_k)
        return cls(problem, *(_random(shape, device) for shape in calls.shapes(problem).values()))

    @cached_property
    def wide(self) -> tuple[Tensor, Tensor]:
        """Both weights in bfloat16, which holds them exactly; one expert at a time, for less memory."""
        result = []
        for weight in (self.gate_up, self.down):
            out = torch.empty(weight.shape, dtype=torch.bfloat16, device=weight.device)
            for expert in range(self.problem.experts):
                out[expert] = dequantize(weight.codes[expert], weight.scales[expert])
            result.append(out)
        return result[0], result[1]

    def route(self, m: int) -> Routed:
        """Draw tokens and their experts."""
        device = self.gate_up.device
        x = torch.randn(m, self.problem.k, device=device, dtype=torch.bfloat16)
        scores = torch.rand(m, self.problem.experts, device=device)
        weights, ids = scores.topk(self.problem.top_k)
        return Routed(x, scores, ids.int(), weights.softmax(-1))

    def truth(self, routed: Routed, gate: str, rows: int) -> Tensor:
        """Compute the first rows in FP32 on the dequantised weights.

        Args:
            routed: tokens.
            gate: "silu", or "swiglu" for ``SWIGLU``.
            rows: how many tokens.
        """
        x, ids, weights = routed.x[:rows], routed.ids[:rows], routed.weights[:rows]
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for expert in ids.unique().tolist():
            token, slot = torch.where(ids == expert)
            both = x[token].float() @ self.wide[0][expert].float().T
            result = _gate(both, gate) @ self.wide[1][expert].float().T
            out.index_add_(0, token, result * weights[token, slot, None])
        return out

    def floor(self, routed: Routed, copy: float, peak: float) -> float:
        """Return the microseconds below which no kernel can be: bytes of the active experts, or flops."""
        n, k, m = self.problem.n, self.problem.k, routed.x.shape[0]
        moved = routed.ids.unique().numel() * 3 * n * k * 17 / 32 + 4 * m * k
        return max(moved / copy / 1e3, 6 * m * self.problem.top_k * n * k / peak / 1e6)


def _gate(both: Tensor, gate: str) -> Tensor:
    first, second = both.chunk(2, dim=1)
    if gate == "silu":
        return torch.nn.functional.silu(first) * second
    alpha, limit = SWIGLU
    first, second = first.clamp(max=limit), second.clamp(-limit, limit)
    return first * torch.sigmoid(alpha * first) * (second + 1)


@dataclass(frozen=True)
class DenseCase:
    """One linear with a random weight [n, k]."""

    problem: Problem
    weight: MxTensor

    @classmethod
    def random(cls, name: str, device: torch.device) -> DenseCase:
        """Draw the weight of a shape of ``DENSE_SHAPES``."""
        n, k = DENSE_SHAPES[name]
        return cls(Problem(op="linear", n=n, k=k), _random((n, k), device))

    @cached_property
    def wide(self) -> Tensor:
        """The weight in bfloat16, which holds it exactly."""
        return self.weight.dequantize(torch.bfloat16)

    def truth(self, x: Tensor, rows: int) -> Tensor:
        """Compute the first rows in FP32."""
        return x[:rows].float() @ self.wide.float().T

    def floor(self, m: int, copy: float, peak: float) -> float:
        """Return the microseconds below which no kernel can be: bytes, or flops."""
        n, k = self.problem.n, self.problem.k
        return max((n * k * 17 / 32 + 2 * m * (n + k)) / copy / 1e3, 2 * m * n * k / peak / 1e6)


def ours_moe(case: MoeCase) -> tuple[Packed, Packed]:
    """Pack a layer for our backend."""
    from mxfp4_cuda_marlin import backend

    return (
        calls.pack(backend, case.problem, case.gate_up, None, "gate_up"),
        calls.pack(backend, case.problem, case.down, None, "down"),
    )
