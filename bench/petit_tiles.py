"""Which tile of the portable kernels of mxfp4-petit is fastest where, and what do folded scales bring? On Hopper.

Usage: python bench/petit_tiles.py [--m 16 32 64] [--json F]

One row for each layer and number of tokens: the tile that ``tiles.py`` chooses, with scales that are multiplied into
sums (``exact``) and into operands (``folded``), and the fastest of all that are tried. Then, for each number of tokens,
how far a tile is from the fastest in the geometric mean over the layers, and at worst: by that a rule is chosen.
Microseconds of CUDA-graph replays with a cold L2 cache; results are compared with FP32. About a minute, half of it
compilation.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from hopper.cases import DENSE_SHAPES, DenseCase, MoeCase
from hopper.compare import LARGEST_ERROR
from hopper.timing import flush_buffer, microseconds, relative_error, require_sm90
from torch import Tensor

from mxfp4_core import MxTensor
from mxfp4_core.backend import SILU, Matrix, Problem, calls
from mxfp4_petit.backend import PetitBackend
from mxfp4_petit.portable import compute
from mxfp4_petit.portable.sizes import layout_id
from mxfp4_petit.portable.tiles import Tile, linear_tile, moe_tiles

ROWS = 32
KINDS = ((64, 4, 2), (64, 4, 3), (128, 4, 2), (128, 4, 3), (128, 8, 2), (128, 8, 3))  # rows, warps, stages
GATE_UPS = ((32, 2, 2), (32, 2, 3), (64, 4, 2), (64, 4, 3), (128, 8, 2))
DOWNS = ((64, 4, 3), (128, 4, 2), (128, 4, 3), (128, 8, 2), (128, 8, 3))
EXPERTS = ("qwen3-30b-a3b", "gpt-oss-120b", "mixtral-8x7b")
Plan = Tile | tuple[Tile, Tile]
BACKEND = PetitBackend("triton")


def laid_out(weight: MxTensor, problem: Problem, matrix: Matrix = "weight") -> compute.Weight:
    """Lay a weight out as the backend does, padded to whole tiles."""
    packed = calls.pack(BACKEND, problem, weight, None, matrix)
    pairs = packed.layout == layout_id(True)
    return compute.Weight(packed.tensors["codes"], packed.tensors["scales"], None, pairs, True)


def linear_plans(m: int, n: int, k: int) -> Iterator[Tile]:
    """Yield the tiles that are tried for a linear, with as many parts of K as make 200 to 2000 programs."""
    tokens = next((size for size in (16, 32) if m <= size), 64)
    for rows, warps, stages in KINDS:
        for split in (1, 2, 4, 8, 16):
            programs = -(-n // rows) * -(-m // tokens) * split
            if split == 1 or (200 <= programs <= 2000 and split <= k // 512):
                yield Tile(tokens, rows, warps, stages, split)


def expert_plans(pairs: int, experts: int) -> Iterator[tuple[Tile, Tile]]:
    """Yield the tiles that are tried for gate-up and down, of sizes around the mean number of rows of an expert."""
    mean = pairs / experts
    for tokens in (size for size in (16, 32, 64) if size >= mean / 2 and size < 8 * max(mean, 4)):
        for one, other in itertools.product(GATE_UPS, DOWNS):
            yield Tile(tokens, *one), Tile(tokens, *other)


def compile_all(first: list[Callable[[], object]]) -> None:
    """Make first calls in threads: Triton compiles outside of Python's lock for most of the time."""
    started = time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda call: call(), first))
    torch.cuda.synchronize()
    print(f"{len(first)} calls compiled in {time.monotonic() - started:.0f} s\n", flush=True)


def short(plan: Plan) -> str:
    """Write a tile as tokens x rows, warps, stages and parts of K."""
    if isinstance(plan, tuple):
        return " + ".join(map(short, plan))
    return f"{plan.tokens}x{plan.rows}w{plan.warps}s{plan.stages}" + f"k{plan.split}" * (plan.split > 1)


def measure(
    ways: Mapping[str, Callable[[], Tensor]], truth: Tensor, flush: Tensor
) -> tuple[dict[str, float], str]:
    """Return the microseconds by name, and what is wrong."""
    took, wrong = {}, ""
    for name, call in ways.items():
        error = relative_error(call()[: len(truth)], truth)
        if not error < LARGEST_ERROR:
            wrong += f" {name}: error {error:.1e}"
            continue
        took[name] = microseconds(call, flush=flush)
    return took, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--m", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--json", type=Path, help="write all figures to this file, too")
    options = parser.parse_args()
    require_sm90()
    began, device = time.monotonic(), torch.device("cuda")
    draw = {"device": device, "dtype": torch.bfloat16}
    case = DenseCase.random("o_proj 4096x4096", device)
    weight, jobs = laid_out(case.weight, case.problem), []
    for m in options.m:
        x = torch.randn(m, 4096, **draw)
        kinds = {replace(tile, split=min(tile.split, 2)) for tile in linear_plans(m, 25600, 8192)}
        jobs += [lambda x=x, tile=tile: compute.linear(x, weight, tile) for tile in kinds]
    problem = Problem(op="moe", n=256, k=256, experts=4, top_k=2)
    small = MxTensor(
        torch.zeros(4, 512, 128, dtype=torch.uint8, device=device),
        torch.full((4, 512, 8), 120, dtype=torch.uint8, device=device),
        torch.Size((4, 512, 256)),
    )
    half = MxTensor(small.codes[:, :256], small.scales[:, :256], torch.Size((4, 256, 256)))
    up, down = laid_out(small, problem, "gate_up"), laid_out(half, problem, "down")
    few = compute.Chosen(
        torch.zeros(16, 2, dtype=torch.int32, device=device), None, torch.ones(16, 2, device=device)
    )
    rows = torch.randn(16, 256, **draw)
    for tokens, index in itertools.product((16, 32, 64), range(max(len(GATE_UPS), len(DOWNS)))):
        pair = (
            Tile(tokens, *GATE_UPS[index % len(GATE_UPS)]),
            Tile(tokens, *DOWNS[index % len(DOWNS)]),
        )
        jobs.append(lambda pair=pair: compute.moe(rows, up, down, few, SILU, pair))
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    compile_all(jobs)
    flush = flush_buffer()
    figures: dict[str, dict[str, float]] = {}
    print("| layer | tokens | floor | shipped, exact | shipped, folded | fastest | its tile |")
    print("|---|--:|--:|--:|--:|--:|---|", flush=True)
    copy = 4172.0  # GB/s of an H200
    for name, (n, k) in DENSE_SHAPES.items():
        case = DenseCase.random(name, device)
        weight = laid_out(case.weight, case.problem)
        for m in options.m:
            x, shipped = torch.randn(m, k, **draw), linear_tile(m, n, k)
            exact = weight._replace(folded=False)
            ways = {
                "exact": lambda x=x, w=exact, t=shipped: compute.linear(x, w, t),
                "folded": lambda x=x, w=weight, t=shipped: compute.linear(x, w, t),
            }
            for tile in linear_plans(m, n, k):
                ways[short(tile)] = lambda x=x, w=weight, t=tile: compute.linear(x, w, t)
            figures[f"{name} {m}"] = row(
                name, m, case.floor(m, copy, 800.0), ways, case.truth(x, ROWS), flush
            )
    for name in EXPERTS:
        experts = MoeCase.random(name, device)
        gate_up = laid_out(experts.gate_up, experts.problem, "gate_up")
        last = laid_out(experts.down, experts.problem, "down")
        for m in options.m:
            routed = experts.route(m)
            x = torch.nn.functional.pad(routed.x, (0, last.codes.shape[1] - routed.x.shape[1]))
            chosen = compute.Chosen(routed.ids, None, routed.weights)
            plans = list(expert_plans(routed.ids.numel(), len(last.codes)))
            shipped_pair = moe_tiles(routed.ids.numel(), len(last.codes))

            def call(
                tiles: tuple[Tile, Tile],
                folded: bool = True,
                x: Tensor = x,
                chosen: compute.Chosen = chosen,
                weights: tuple[compute.Weight, compute.Weight] = (gate_up, last),
                width: int = routed.x.shape[1],
            ) -> Tensor:
                both = (each._replace(folded=folded) for each in weights)
                return compute.moe(x, *both, chosen, SILU, tiles)[:, :width]

            ways = {
                "exact": lambda call=call, t=shipped_pair: call(t, False),
                "folded": lambda call=call, t=shipped_pair: call(t),
            }
            ways |= {short(plan): lambda call=call, t=plan: call(t) for plan in plans}
            figures[f"{name} {m}"] = row(
                name,
                m,
                experts.floor(routed, copy, 800.0),
                ways,
                experts.truth(routed, "silu", ROWS),
                flush,
            )
        del experts, gate_up, last
        torch.cuda.empty_cache()
    summary(figures, options.m)
    print(f"\n{time.monotonic() - began:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


def row(
    name: str, m: int, floor: float, ways: Mapping[str, Callable[[], Tensor]], truth: Tensor, flush: Tensor
) -> dict[str, float]:
    """Measure a layer at a number of tokens, and print its line."""
    took, wrong = measure(ways, truth, flush)
    tried = {key: us for key, us in took.items() if key not in ("exact", "folded")}
    best = min(tried, key=lambda key: tried[key]) if tried else "none"
    said = " | ".join(f"{took[key]:.1f}" if key in took else "wrong" for key in ("exact", "folded"))
    print(
        f"| {name} | {m} | {floor:.1f} | {said} | {tried.get(best, math.nan):.1f} | {best}{wrong} |",
        flush=True,
    )
    return took


def summary(figures: Mapping[str, Mapping[str, float]], tokens: list[int]) -> None:
    """Print, for linears and experts and each number of tokens, the tiles that are nearest to the fastest."""
    for m, experts in itertools.product(tokens, (False, True)):
        layers = {
            key: took
            for key, took in figures.items()
            if key.endswith(f" {m}") and key.startswith(EXPERTS) == experts
        }
        away: dict[str, list[float]] = defaultdict(list)
        for took in layers.values():
            tried = {key: us for key, us in took.items() if key not in ("exact", "folded")}
            least = min(tried.values())
            # A linear's parts of K follow from a rule of their own: of each tile the best number of them counts.
            by_kind: dict[str, float] = {}
            for key, us in tried.items():
                kind = key.partition("k")[0]
                by_kind[kind] = min(us, by_kind.get(kind, math.inf))
            for kind, us in by_kind.items():
                away[kind].append(us / least)
        whole = {kind: each for kind, each in away.items() if len(each) == len(layers)}
        ranked = sorted(whole, key=lambda kind: math.prod(whole[kind]))[:4]
        print(f"\n{'experts' if experts else 'linear'}, {m} tokens: ", end="")
        print(
            "; ".join(
                f"{kind} {math.prod(whole[kind]) ** (1 / len(whole[kind])):.2f} (at worst {max(whole[kind]):.2f})"
                for kind in ranked
            )
        )


if __name__ == "__main__":
    main()
