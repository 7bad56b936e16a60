"""How fast is a whole W4A16 MoE layer on Hopper, against the kernels that engines use and against BF16 weights?

Usage: python bench/hopper_moe.py --peer-path DIR [--peers marlin,humming] [--shapes qwen3-30b-a3b] [--m 1 8] [--json F]

Everyone runs in this process: routing tables, gate-up, activation, down and the weighted sum, on the same random
weights, tokens and chosen experts; medians of 20 CUDA-graph replays (of 7 at settled clocks above 2 ms) with an L2
cache that holds nothing of the layer. A peer that can compute the layer in several ways is timed in each, and its
fastest counts. The error is that of 64 tokens against FP32 on the dequantised weights. triton_kernels has no SiLU: it
computes, and is checked against, the clamped SwiGLU of gpt-oss. Sizes that a kernel does not take are padded as its
engine pads them. ``bf16`` is torch's grouped matmul; it is no W4A16 peer. How to fetch the peers: bench/README.md.
"""

from __future__ import annotations

from hopper import compare, loops
from hopper.cases import MOE_SHAPES, MOE_TOKENS, MoeCase, ours_moe
from hopper.peers import Moe

from mxfp4_core.backend import Routes, calls


def main() -> None:
    options = compare.arguments(__doc__.splitlines()[0], MOE_SHAPES, MOE_TOKENS).parse_args()
    loops.moe(options, ours, options.json)


def ours(case: MoeCase) -> Moe:
    """Lay out the weights for our backend."""
    from mxfp4_cuda_marlin import backend

    packed = ours_moe(case)
    return {
        "default": lambda routed: calls.moe(
            backend, routed.x, *packed, Routes(routed.ids, routed.weights), case.problem
        )
    }


if __name__ == "__main__":
    main()
