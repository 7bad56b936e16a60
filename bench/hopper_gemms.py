"""What share of the copy bandwidth do the two GEMMs of a MoE layer reach where reading weights is what takes time?

Usage: python bench/hopper_gemms.py [--shapes qwen3-30b-a3b] [--m 8 32 128]

A layer runs once, and its launches are kept; then those of gate-up and down alone are captured and timed, with the
routing tables that the layer made and a cold L2 cache. Bytes: codes and scales of the experts that tokens chose, read
once, and the activations in and out of both GEMMs. The replay of an empty CUDA graph is measured, too, and taken off
for the last column, since no kernel can avoid it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from hopper import timing
from hopper.cases import MOE_SHAPES, MoeCase, Routed, ours_moe

from mxfp4_core.backend import Packed, Routes, calls
from mxfp4_cuda_marlin import backend
from mxfp4_cuda_marlin.kernels.launch import stream_of
from mxfp4_cuda_marlin.plans import MoePlan


def gemms_of(layer: Callable[[], object]) -> Callable[[], None]:
    """Return a call that repeats the launches of gate-up and down of a layer, and nothing else of it."""
    plans: list[tuple[MoePlan, tuple[Any, ...]]] = []
    given_of = MoePlan.given

    def record(plan: MoePlan, *addresses: Any) -> tuple[int, ...]:
        plans.append((plan, addresses))
        return given_of(plan, *addresses)

    with patch.object(MoePlan, "given", record):
        result = layer()
    ((plan, addresses),) = plans
    # The layer's own workspace is free again, and may be another tensor's when this runs; its result is kept.
    workspace = torch.empty(plan.bytes, dtype=torch.uint8, device="cuda")
    given = plan.given(*addresses[:-1], workspace.data_ptr())
    plan(stream_of(workspace.device), given)  # tables of the routing, for the GEMMs alone
    up, down = plan.gemms

    def run(kept: object = (workspace, result)) -> None:
        up(stream_of(workspace.device), given)
        down(stream_of(workspace.device), given)

    return run


def moved(case: MoeCase, routed: Routed) -> float:
    """Return the bytes that both GEMMs read and write at least."""
    n, k, slots = case.problem.n, case.problem.k, routed.ids.numel()
    weights = routed.ids.unique().numel() * 3 * n * k * 17 / 32
    return weights + 2 * (routed.x.numel() + 2 * slots * n + slots * k)


def row(
    name: str,
    case: MoeCase,
    packed: tuple[Packed, Packed],
    m: int,
    copy: float,
    empty: float,
    flush: torch.Tensor,
) -> str:
    """Time one layer for m tokens, and its GEMMs alone."""
    routed = case.route(m)

    def layer() -> object:
        return calls.moe(backend, routed.x, *packed, Routes(routed.ids, routed.weights), case.problem)

    whole = timing.microseconds(layer, flush=flush)
    alone = timing.microseconds(gemms_of(layer), flush=flush)
    speed, net = (moved(case, routed) / us / 1e3 for us in (alone, alone - empty))
    experts = routed.ids.unique().numel()
    share = f"{speed:.0f} | {speed / copy:.2f} | {net / copy:.2f} |"
    return f"| {name} | {m} | {experts} | {whole:.1f} | {alone:.1f} | {share}"


def main() -> None:
    """Print one row for each shape and number of tokens."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=MOE_SHAPES, default=list(MOE_SHAPES))
    parser.add_argument("--m", nargs="+", type=int, default=[8, 16, 32, 64, 128], help="tokens")
    options = parser.parse_args()
    timing.require_sm90()
    copy, _ = timing.ceilings()
    flush = timing.flush_buffer()
    nothing = torch.zeros(1, device="cuda")
    empty = timing.microseconds(lambda: nothing.zero_(), flush=flush)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: device copy {copy:.0f} GB/s,")
    print(f"replay of a graph that writes four bytes {empty:.1f} us\n")
    print("| shape | m | experts | layer us | gemms us | GB/s | of copy | of copy, less the replay |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for name in options.shapes:
        case = MoeCase.random(name, torch.device("cuda"))
        packed = ours_moe(case)
        for m in options.m:
            print(row(name, case, packed, m, copy, empty, flush), flush=True)
        del case, packed
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
