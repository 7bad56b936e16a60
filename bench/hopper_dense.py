"""How fast is a W4A16 linear on Hopper, against the kernels that engines use and against BF16 weights?

Usage: python bench/hopper_dense.py --peer-path DIR [--peers marlin,humming] [--shapes "o_proj 4096x4096"] [--m 1 16]

Everyone runs in this process, on the same random weight and tokens; medians of 20 CUDA-graph replays (of 7 at settled
clocks above 2 ms) with an L2 cache that holds nothing of the linear. A peer that can compute it in several ways is
timed in each, and its fastest counts. The error is that of 64 tokens against FP32 on the dequantised weight. ``bf16``
is torch's matmul; it is no W4A16 peer. How to fetch the peers: bench/README.md.
"""

from __future__ import annotations

from hopper import compare, loops
from hopper.cases import DENSE_SHAPES, DENSE_TOKENS, DenseCase
from hopper.peers import Linear

from mxfp4_core.backend import calls


def main() -> None:
    options = compare.arguments(__doc__.splitlines()[0], DENSE_SHAPES, DENSE_TOKENS).parse_args()
    loops.dense(options, ours, options.json)


def ours(case: DenseCase) -> Linear:
    """Lay out the weight for our backend."""
    from mxfp4_cuda_marlin import backend

    packed = calls.pack(backend, case.problem, case.weight)
    return {"default": lambda x: calls.linear(backend, x, packed, case.problem)}


if __name__ == "__main__":
    main()
