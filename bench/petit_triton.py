"""How fast are the portable kernels of mxfp4-petit on Hopper, beside triton_kernels and AITER's, at up to 64 tokens?

Usage: python bench/petit_triton.py --peer-path DIR [--shapes mixtral-8x7b] [--m 1 8] [--json F]

They are made for AMD's chips without FP4. An NVIDIA GPU is where they can be measured beside other portable kernels, so
what counts here is the ratio to the fastest of these. Everything is as in hopper_moe.py and hopper_dense.py: one
process, CUDA-graph replays, cold L2 cache, errors against FP32. How to fetch the peers: bench/README.md.
"""

from __future__ import annotations

import argparse
import copy

from hopper import compare, loops
from hopper.cases import DENSE_SHAPES, MOE_SHAPES, DenseCase, MoeCase
from hopper.peers import Linear, Moe

from mxfp4_core.backend import Routes, calls
from mxfp4_petit.backend import PetitBackend

TOKENS = (1, 8, 16, 32, 64)
BACKEND = PetitBackend("triton")


def main() -> None:
    parser = compare.arguments(__doc__.splitlines()[0], MOE_SHAPES | DENSE_SHAPES, TOKENS)
    parser.set_defaults(peers=["triton_kernels", "aiter"])
    options = parser.parse_args()
    json = options.json
    loops.moe(some(options, MOE_SHAPES), our_moe, json and json.with_suffix(".moe.json"))
    loops.dense(some(options, DENSE_SHAPES), our_linear, json and json.with_suffix(".dense.json"))


def some(options: argparse.Namespace, shapes: dict[str, object]) -> argparse.Namespace:
    """Return the options with those of the chosen shapes that are of one kind."""
    chosen = copy.copy(options)
    chosen.shapes = [name for name in options.shapes if name in shapes]
    return chosen


def our_moe(case: MoeCase) -> Moe:
    """Lay out the weights for our kernels."""
    problem = case.problem
    up = calls.pack(BACKEND, problem, case.gate_up, None, "gate_up")
    down = calls.pack(BACKEND, problem, case.down, None, "down")
    return {
        "default": lambda routed: calls.moe(
            BACKEND, routed.x, up, down, Routes(routed.ids, routed.weights), problem
        )
    }


def our_linear(case: DenseCase) -> Linear:
    """Lay out the weight for our kernels."""
    packed = calls.pack(BACKEND, case.problem, case.weight)
    return {"default": lambda x: calls.linear(BACKEND, x, packed, case.problem)}


if __name__ == "__main__":
    main()
