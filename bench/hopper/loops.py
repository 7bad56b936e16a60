"""Measure one backend and its peers over shapes and numbers of tokens: stacks of experts, or single weights."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from hopper import compare, timing
from hopper.cases import DenseCase, MoeCase
from hopper.peers import Linear, Moe


def moe(options: argparse.Namespace, ours: Callable[[MoeCase], Moe], json: Path | None) -> None:
    """Measure stacks of experts of the shapes in `options`.

    Args:
        options: those of `compare.arguments`.
        ours: lays out the weights of a case for the backend that is measured.
        json: where all figures go, too.
    """
    timing.require_sm90()
    session = compare.Session.start(options, "moe")
    for name in options.shapes:
        case = MoeCase.random(name, torch.device("cuda"))
        inputs = {m: case.route(m) for m in options.m}
        session.shape(
            name,
            inputs,
            {m: case.floor(routed, session.copy, session.peak) for m, routed in inputs.items()},
            lambda case=case: ours(case),
            {
                who: (lambda peer=peer, case=case: peer.moe(case, options.m))
                for who, peer in session.peers.items()
            },
            lambda routed, gate, case=case: case.truth(routed, gate, compare.ROWS),
        )
        del case, inputs
        torch.cuda.empty_cache()
    session.finish(json)


def dense(options: argparse.Namespace, ours: Callable[[DenseCase], Linear], json: Path | None) -> None:
    """Measure single weights; see `moe`."""
    timing.require_sm90()
    session = compare.Session.start(options, "dense")
    draw = {"device": "cuda", "dtype": torch.bfloat16}
    for name in options.shapes:
        case = DenseCase.random(name, torch.device("cuda"))
        session.shape(
            name,
            {m: torch.randn(m, case.problem.k, **draw) for m in options.m},
            {m: case.floor(m, session.copy, session.peak) for m in options.m},
            lambda case=case: ours(case),
            {
                who: (lambda peer=peer, case=case: peer.linear(case, options.m))
                for who, peer in session.peers.items()
            },
            lambda x, gate, case=case: case.truth(x, compare.ROWS),
        )
        del case
        torch.cuda.empty_cache()
    session.finish(json)


__all__ = ["dense", "moe"]
