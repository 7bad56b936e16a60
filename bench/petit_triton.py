"""How fast are the portable kernels of mxfp4-petit on Hopper, against OpenAI's triton_kernels, at up to 64 tokens?

Usage: python bench/petit_triton.py --peer-path DIR [--shapes mixtral-8x7b] [--m 1 8] [--json F]

They are made for AMD's chips without FP4. An NVIDIA GPU is where they can be measured beside another portable kernel,
so what counts here is the ratio to it. Everything is as in hopper_moe.py and hopper_dense.py: one process, CUDA-graph
replays, cold L2 cache, errors against FP32. How to fetch the peers: bench/README.md.
"""

from __future__ import annotations

import argparse
import copy

import torch
from hopper import compare, timing
from hopper.cases import DENSE_SHAPES, MOE_SHAPES, DenseCase, MoeCase
from hopper.peers import Linear, Moe

from mxfp4_core.backend import Routes, calls
from mxfp4_petit.backend import PetitBackend

TOKENS = (1, 8, 16, 32, 64)
BACKEND = PetitBackend("triton")


def main() -> None:
    parser = compare.arguments(__doc__.splitlines()[0], MOE_SHAPES | DENSE_SHAPES, TOKENS)
    parser.set_defaults(peers=["triton_kernels"])
    options = parser.parse_args()
    timing.require_sm90()
    moe(some(options, MOE_SHAPES))
    dense(some(options, DENSE_SHAPES))


def some(options: argparse.Namespace, shapes: dict[str, object]) -> argparse.Namespace:
    """Return the options with those of the chosen shapes that are of one kind."""
    chosen = copy.copy(options)
    chosen.shapes = [name for name in options.shapes if name in shapes]
    return chosen


def moe(options: argparse.Namespace) -> None:
    session = compare.Session.start(options, "moe")
    for name in options.shapes:
        case = MoeCase.random(name, torch.device("cuda"))
        inputs = {m: case.route(m) for m in options.m}
        session.shape(
            name,
            inputs,
            {m: case.floor(routed, session.copy, session.peak) for m, routed in inputs.items()},
            lambda case=case: our_moe(case),
            {
                who: (lambda peer=peer, case=case: peer.moe(case, options.m))
                for who, peer in session.peers.items()
            },
            lambda routed, gate, case=case: case.truth(routed, gate, compare.ROWS),
        )
        del case, inputs
        torch.cuda.empty_cache()
    session.finish(options.json and options.json.with_suffix(".moe.json"))


def dense(options: argparse.Namespace) -> None:
    session = compare.Session.start(options, "dense")
    for name in options.shapes:
        case = DenseCase.random(name, torch.device("cuda"))
        draw = {"device": "cuda", "dtype": torch.bfloat16}
        session.shape(
            name,
            {m: torch.randn(m, case.problem.k, **draw) for m in options.m},
            {m: case.floor(m, session.copy, session.peak) for m in options.m},
            lambda case=case: our_linear(case),
            {
                who: (lambda peer=peer, case=case: peer.linear(case, options.m))
                for who, peer in session.peers.items()
            },
            lambda x, gate, case=case: case.truth(x, compare.ROWS),
        )
        del case
        torch.cuda.empty_cache()
    session.finish(options.json and options.json.with_suffix(".dense.json"))


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
