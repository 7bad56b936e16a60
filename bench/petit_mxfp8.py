"""How fast are the portable kernels with weights of mxfp8, and when is widening them first faster? On Hopper.

Usage: python bench/petit_mxfp8.py [--m 1 16 64 512 4096] [--tiles] [--json F]

First, exactness: every code times every scale byte that may be folded, as bfloat16, bit for bit; each scale byte and
each NaN on the way that does not fold; and the backend's results of many sizes against the judge's bound, linears and
experts. Then one row for each layer and number of tokens, in microseconds of CUDA-graph replays with a cold L2 cache:
torch's BF16 matmul on widened weights (half the codes are read), our kernel, ``widen``, which makes a BF16 copy of the
weight and calls that matmul, and the reference backend, which is what there was. With ``--tiles`` the fastest of other
tiles is shown, too. A minute, two with ``--tiles``.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path

import torch
from hopper.timing import ceilings, eager, flush_buffer, microseconds, relative_error, require_sm90
from torch import Tensor

from mxfp4_core import quantize
from mxfp4_core.arithmetic import MXFP8, MxTensor
from mxfp4_core.backend import Numerics, Problem, calls, select_backend
from mxfp4_core.testing import judge
from mxfp4_core.testing.layer import Layer
from mxfp4_core.testing.samples import random_biases, random_routes, random_x
from mxfp4_petit.backend import PetitBackend
from mxfp4_petit.portable import compute
from mxfp4_petit.portable.layout import PortableLayout
from mxfp4_petit.portable.sizes import layout_id
from mxfp4_petit.portable.tiles import Tile, linear_tile

BACKEND = PetitBackend("triton")
LAYERS = ((4096, 4096), (12288, 3840), (5120, 25600))
SIZES = ((1, 32, 32), (3, 130, 600), (16, 256, 1024), (33, 65, 500), (64, 4096, 4096), (128, 300, 2080))
SIZES += ((700, 512, 512), (1500, 384, 640), (4096, 256, 256))
CUDA = torch.device("cuda")


def drawn(*shape: int, seed: int = 0) -> MxTensor:
    """Return a random weight on the CPU."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / shape[-1] ** 0.5
    return quantize(values, format="mxfp8", tail="pad")


def values_are_exact() -> str:
    """Return what is wrong with a code or a scale byte, in both ways and both variants of the layout."""
    one = torch.zeros(1, 256, dtype=torch.bfloat16, device=CUDA)
    one[0, 5 * 32 + 7] = 1.0
    codes = torch.arange(256).to(torch.uint8)[:, None].expand(256, 256).contiguous()
    finite, wrong = ((codes[:, 0] & 0x7F) != 0x7F), ""
    for pairs in (False, True):
        for byte in (*range(256),):
            parts = {
                "codes": codes.clone().view(torch.float8_e4m3fn),
                "scales": torch.full((256, 8), byte, dtype=torch.uint8),
            }
            weight = MxTensor.from_parts(MXFP8, parts, torch.Size((256, 256)))
            want = weight.dequantize(torch.float64)[:, 0].float().to(torch.bfloat16)
            packed = {
                name: tensor.to(CUDA)
                for name, tensor in PortableLayout(pairs, wide=True).pack(weight).items()
            }
            exact = compute.Weight(packed["codes"], packed["extreme_scales"], None, pairs, wide=True)
            got = compute.linear(one, exact, Tile(16, 32))[0].cpu()
            same = torch.equal(got[finite], want[finite]) or byte == 255
            if not same or not bool(got[~finite if byte < 255 else slice(None)].isnan().all()):
                wrong += f" exact {byte} pairs {pairs};"
            if 10 <= byte <= 134:
                folded = exact._replace(folded=True)
                got = compute.linear(one, folded, Tile(16, 32))[0].cpu()
                if not torch.equal(got[finite], want[finite]):
                    wrong += f" folded {byte} pairs {pairs};"
                wide = compute.widened(folded, one)[:, 5 * 32 + 7].cpu()
                if not torch.equal(wide[finite], want[finite]):
                    wrong += f" widened {byte} pairs {pairs};"
    return wrong or "all exact"


def sizes_are_right() -> str:
    """Return the largest share of the judge's bound that an error takes, over all sizes; or which one is wrong."""
    said = []
    for m, n, k in SIZES:
        for dtype, bias in ((torch.bfloat16, False), (torch.bfloat16, True), (torch.float16, True)):
            problem = Problem(op="linear", n=n, k=k, bias=bias, dtype=str(dtype)[6:], format="mxfp8")
            weight, x, [values] = drawn(n, k), random_x(m, k, dtype), random_biases(problem)
            there = None if values is None else values.to(CUDA)
            packed = calls.pack(BACKEND, problem, weight.to(CUDA), there)
            answer = judge.linear(x, weight, values, Numerics())
            try:
                answer.check(calls.linear(BACKEND, x.to(CUDA), packed, problem), f"{m} {n} {k} {dtype}")
                if dtype is torch.bfloat16 and not bias:
                    weighed = compute.Weight(
                        *(packed.tensors["codes"], packed.tensors["scales"], None),
                        *(packed.layout == layout_id(True, True), True, True),
                    )
                    padded = torch.nn.functional.pad(x.to(CUDA), (0, packed.shape[-1] - k))
                    answer.check(padded @ compute.widened(weighed, padded).T, f"widened {m} {n} {k}")
            except AssertionError as error:
                said.append(str(error)[:200])
    for m in (1, 21, 300):
        problem = Problem(op="moe", n=96, k=160, experts=8, top_k=2, bias=True, format="mxfp8")
        first, second = (drawn(*shape, seed=i) for i, shape in enumerate(calls.shapes(problem).values()))
        up, down = random_biases(problem)
        layer = Layer.of(BACKEND, CUDA, problem, (first, second), (up, down))
        x, routes = random_x(m, 160), random_routes(m, 8, 2)
        try:
            layer.answer(BACKEND, x, *routes).check(layer.call(BACKEND, x, *routes))
        except AssertionError as error:
            said.append(f"experts {m}: {str(error)[:200]}")
    return "; ".join(said) or f"{3 * len(SIZES)} linears and 3 layers of experts within the bound"


def others(m: int, n: int, k: int) -> list[Tile]:
    """Return the tiles that are tried."""
    found = []
    for tokens in (16, 32) if m <= 32 else (64, 128):
        for rows, warps, stages in (
            (64, 4, 2),
            (64, 4, 3),
            (128, 4, 2),
            (128, 4, 3),
            (128, 8, 2),
            (128, 8, 3),
        ):
            for split in (1, 2, 4, 8):
                programs = -(-n // rows) * -(-m // tokens) * split
                if split == 1 or (100 <= programs <= 2000 and split <= k // 512):
                    found.append(Tile(tokens, rows, warps, stages, split))
    return found


def weight_of(n: int, k: int) -> tuple[compute.Weight, Tensor, MxTensor]:
    """Return a random weight in the layout, as BF16, and as it is stored; made on the device."""
    codes = torch.randint(0, 256, (n, k), dtype=torch.uint8, device=CUDA)
    codes[(codes & 0x7F) == 0x7F] = 0
    scales = torch.randint(108, 114, (n, k // 32), dtype=torch.uint8, device=CUDA)
    parts = {"codes": codes.view(torch.float8_e4m3fn), "scales": scales}
    weight = MxTensor.from_parts(MXFP8, parts, torch.Size((n, k)))
    packed = PortableLayout(True, wide=True).pack(weight)
    wide = weight.dequantize(torch.bfloat16)
    return compute.Weight(packed["codes"], packed["scales"], None, True, True, wide=True), wide, weight


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--m", type=int, nargs="+", default=[1, 16, 64, 512, 1024, 4096])
    parser.add_argument("--tiles", action="store_true", help="search for tiles, too")
    parser.add_argument("--json", type=Path, help="write all figures to this file, too")
    options = parser.parse_args()
    require_sm90()
    began = time.monotonic()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    print("values:", values_are_exact(), flush=True)
    print("sizes:", sizes_are_right(), flush=True)
    copy, matmul = ceilings()
    print(
        f"copy {copy:.0f} GB/s, BF16 matmul {matmul:.0f} TFLOP/s, {time.monotonic() - began:.0f} s so far\n"
    )
    print("| layer | tokens | floor | torch BF16 | ours | widen | reference | BF16 / ours | fastest tile |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|---|", flush=True)
    flush, rows = flush_buffer(), []
    for n, k in LAYERS:
        weight, wide, stored = weight_of(n, k)
        problem = Problem(op="linear", n=n, k=k, format="mxfp8")
        reference = select_backend(problem, backend="reference").backend
        canonical = calls.pack(reference, problem, stored)
        for m in options.m:
            x = torch.randn(m, k, device=CUDA, dtype=torch.bfloat16)
            truth = x.float() @ wide.float().T
            tile = linear_tile(m, n, k)
            ways = {
                "bf16": lambda x=x, w=wide: x @ w.T,
                "ours": lambda x=x, w=weight, t=tile: compute.linear(x, w, t),
                "widen": lambda x=x, w=weight: x @ compute.widened(w, x).T,
            }
            took = {}
            for name, call in ways.items():
                error = relative_error(call(), truth)
                took[name] = microseconds(call, flush=flush) if error < 5e-3 else float("nan")
            if m <= 64:
                took["reference"] = eager(partial(calls.linear, reference, x, canonical, problem), 10)
            best = ""
            if options.tiles:
                found = {}
                for tile in others(m, n, k):
                    try:
                        call = partial(compute.linear, x, weight, tile)
                        found[tile] = microseconds(call, flush=flush, replays=7)
                    except Exception as error:  # a tile that does not fit is no result
                        print(f"  {tile}: {type(error).__name__}", flush=True)
                tile = min(found, key=found.__getitem__)
                best = f"{found[tile]:.1f} {tile.tokens}x{tile.rows}w{tile.warps}s{tile.stages}k{tile.split}"
            floor = max((n * k * 33 / 32 + 2 * m * (n + k)) / copy / 1e3, 2 * m * n * k / matmul / 1e6)
            rows.append({"n": n, "k": k, "m": m, "floor": floor, "best": best} | took)
            line = [f"{took.get(name, float('nan')):.1f}" for name in ("bf16", "ours", "widen", "reference")]
            ratio = took["bf16"] / min(took["ours"], took["widen"])
            print(
                f"| {n} x {k} | {m} | {floor:.1f} | {' | '.join(line)} | {ratio:.2f} | {best} |", flush=True
            )
    print(f"\n{time.monotonic() - began:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
