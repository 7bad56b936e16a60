"""How fast is a whole W4A16 MoE layer on Hopper, against BF16 weights and against what peers reached?

Usage: python bench/hopper_moe.py [--shapes qwen3-30b-a3b ...] [--tokens 1 8 32 128 512 2048 8192]

Medians of 20 CUDA-graph replays of routing tables, gate-up, SiLU, down and the weighted sum; random weights and routes.
The error is that of 64 tokens against FP32 on the dequantised weights. ``bf16`` is torch's grouped matmul in this run.
Peers are not run by this script: their column is the fastest of Marlin, Humming and triton_kernels in
bench/hopper/peers.json, measured on 2026-11-20 on another machine of the same kind, and "x peer" says how many times
faster we are than that; it is a hint, no like-for-like result. Sizes that are no multiple of 64 are padded by us to 64.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from datetime import date

import torch
from hopper.timing import (
    PEERS,
    best_peer,
    ceilings,
    geometric_mean,
    microseconds,
    relative_error,
    require_sm90,
)
from torch import Tensor

from mxfp4_core import MxTensor, calls, dequantize
from mxfp4_core.backend import Packed, Problem

# experts, hidden, intermediate, top k
SHAPES = {
    "qwen3-30b-a3b": (128, 2048, 768, 8),
    "dsv4-flash": (256, 4096, 2048, 6),
    "gpt-oss-120b": (128, 2880, 2880, 4),
    "mixtral-8x7b": (8, 4096, 14336, 2),
}


@dataclass
class Layer:
    """One layer with random weights, packed and in BF16."""

    problem: Problem
    weights: list[MxTensor]
    packed: list[Packed]
    wide: list[Tensor]

    @classmethod
    def random(cls, name: str) -> Layer:
        """Draw the weights of a shape."""
        from mxfp4_cuda_marlin import backend

        experts, k, n, top_k = SHAPES[name]
        problem = Problem(op="moe", n=n, k=k, experts=experts, top_k=top_k)
        weights = []
        for shape in calls.shapes(problem).values():
            codes = torch.randint(0, 256, (*shape[:2], shape[2] // 2), dtype=torch.uint8, device="cuda")
            scales = torch.randint(116, 122, (*shape[:2], shape[2] // 32), dtype=torch.uint8, device="cuda")
            weights.append(MxTensor(codes, scales, torch.Size(shape)))
        parts = calls.shapes(problem)
        packed = [calls.pack(backend, problem, w, None, part) for w, part in zip(weights, parts, strict=True)]
        wide = [
            torch.stack([dequantize(c, s) for c, s in zip(w.codes, w.scales, strict=True)]) for w in weights
        ]
        return cls(problem, weights, packed, wide)

    def ours(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """Run the backend."""
        from mxfp4_cuda_marlin import backend

        return calls.moe(backend, x, *self.packed, ids, weights, self.problem)

    def bf16(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """The composition that torch offers for BF16 weights: sort, grouped matmuls, gate, weighted scatter."""
        order = ids.flatten().argsort(stable=True)
        ends = torch.nn.functional.one_hot(ids.flatten().long(), self.problem.experts).sum(0).cumsum(0).int()
        tokens = order // self.problem.top_k
        both = torch._grouped_mm(x[tokens], self.wide[0].mT, offs=ends)
        gate, up = both.chunk(2, dim=1)
        out = torch._grouped_mm(torch.nn.functional.silu(gate) * up, self.wide[1].mT, offs=ends)
        scaled = out * weights.flatten()[order, None].to(out.dtype)
        return torch.zeros_like(x).index_add_(0, tokens, scaled)

    def truth(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """FP32 on the dequantised weights, one expert at a time."""
        out = torch.zeros(x.shape, dtype=torch.float32, device="cuda")
        for expert in ids.unique().tolist():
            token, slot = torch.where(ids == expert)
            gate, up = (x[token].float() @ self.wide[0][expert].float().T).chunk(2, dim=1)
            result = (torch.nn.functional.silu(gate) * up) @ self.wide[1][expert].float().T
            out.index_add_(0, token, result * weights[token, slot, None])
        return out

    def floor(self, m: int, ids: Tensor, copy: float, peak: float) -> float:
        """Return the microseconds below which no kernel can be: bytes of the active experts, or flops."""
        n, k = self.problem.n, self.problem.k
        moved = ids.unique().numel() * 3 * n * k * 17 / 32 + 4 * m * k
        return max(moved / copy / 1e3, 6 * m * self.problem.top_k * n * k / peak / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 32, 128, 512, 2048, 8192])
    arguments = parser.parse_args()
    require_sm90()
    copy, peak = ceilings()
    print(f"{date.today()}, {torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"copy {copy:.0f} GB/s, BF16 matmul {peak:.0f} TFLOP/s\n")
    print(
        "| shape | m | floor us | ours us | of floor | error | bf16 us | best peer us | x peer | x Marlin |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    gains = []
    for name in arguments.shapes:
        layer = Layer.random(name)
        for m in arguments.tokens:
            x = torch.randn(m, layer.problem.k, device="cuda", dtype=torch.bfloat16)
            scores = torch.rand(m, layer.problem.experts, device="cuda")
            weights, ids = scores.topk(layer.problem.top_k)
            weights, ids = weights.softmax(-1), ids.int()
            few = slice(0, 64)
            error = relative_error(
                layer.ours(x, ids, weights)[few], layer.truth(x[few], ids[few], weights[few])
            )
            ours = microseconds(lambda a=(x, ids, weights), one=layer: one.ours(*a))
            base = microseconds(lambda a=(x, ids, weights), one=layer: one.bf16(*a), replays=5)
            floor = layer.floor(m, ids, copy, peak)
            row = PEERS["moe"][name].get(str(m))
            peer, marlin = (best_peer(row), row["marlin"]) if row else (float("nan"), float("nan"))
            gains.append(peer / ours)
            print(
                f"| {name} | {m} | {floor:.1f} | {ours:.1f} | {ours / floor:.2f} | {error:.1e} | {base:.1f} "
                f"| {peer:.1f} | {peer / ours:.2f} | {marlin / ours:.2f} |",
                flush=True,
            )
        del layer
        torch.cuda.empty_cache()
    print(f"\ngeometric mean of x peer: {geometric_mean(g for g in gains if g == g):.2f}")


if __name__ == "__main__":
    main()
