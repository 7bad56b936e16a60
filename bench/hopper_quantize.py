"""How fast does the GPU quantise, against a copy of the same bytes and against others' quantizers?

Usage: python bench/hopper_quantize.py [--size 16384] [--dtypes float16] [--peers]

Medians of Triton's do_bench. GB/s counts each value read once and its 17/32 bytes of codes and scales written once; "of
copy" divides by a device copy of as many values in the same run. Before timing, the bytes of a slice are compared with
mxfp4_core's on the CPU. With ``--peers`` torchao's ``to_mx`` (compiled) and AITER's ``dynamic_mxfp4_quant`` are timed
in the same way and their bytes compared with ours, where they can be imported.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import date
from functools import partial

import torch
from hopper.timing import require_sm90

import mxfp4_core
from mxfp4_core.arithmetic import resolve

DTYPES = ("bfloat16", "float16", "float32")
KINDS = {
    "even/even": "ties to even, signs of zeros kept",
    "rceil/away": "ties away from zero",
    "floor/zero": "ties toward zero",
    "quark": "zeros are plus",
    "auto-round": "zero weights are plus",
    "modelopt": "zero weights are minus, ties toward zero",
    "gguf": "bytes wrap around",
    "msmodelslim": "scales in three steps of the weight's dtype",
}
Pair = tuple[torch.Tensor, torch.Tensor]
Quantizer = Callable[[torch.Tensor], Pair]


def torchao() -> Quantizer:
    from torchao.prototype.mx_formats.config import ScaleCalculationMode
    from torchao.prototype.mx_formats.mx_tensor import to_mx

    def run(weight: torch.Tensor) -> Pair:
        scales, codes = to_mx(weight, torch.float4_e2m1fn_x2, 32, ScaleCalculationMode.FLOOR)
        return codes.view(torch.uint8), scales.view(torch.uint8)

    return torch.compile(run, fullgraph=True)


def aiter() -> Quantizer:
    from aiter.ops.triton.quant import dynamic_mxfp4_quant

    return dynamic_mxfp4_quant


PEERS = {
    "torchao": (torchao, "torchao-floor", ("bfloat16", "float32")),
    "aiter": (aiter, "aiter-triton-0.1.7", DTYPES),
}


def seconds(run: Callable[[], object], rep: int = 100) -> float:
    import triton.testing

    return float(triton.testing.do_bench(run, warmup=20, rep=rep, return_mode="median")) / 1e3


class Table:
    """Rows for one weight."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight, target = weight, torch.empty_like(weight)
        self.copy = 2 * weight.nbytes / seconds(lambda: target.copy_(weight))
        self.row("copy", 2 * weight.nbytes / self.copy, 2 * weight.nbytes)

    def row(self, name: str, took: float, count: float = 0) -> None:
        """Print one: seconds, and the bytes that were read and written unless they are a quantizer's."""
        rate = (count or self.weight.numel() * (self.weight.element_size() + 17 / 32)) / took
        dtype = str(self.weight.dtype).removeprefix("torch.")
        print(
            f"| {dtype} | {name} | {took * 1e6:.1f} | {rate / 1e9:.0f} | {rate / self.copy:.2f} |", flush=True
        )


def ours(table: Table) -> None:
    from mxfp4_cuda_marlin.quantize import PROFILES, quantize

    weight, took = table.weight, {}
    for profile in sorted(PROFILES):
        dtypes = resolve(profile).dtypes
        if dtypes and weight.dtype not in dtypes:
            continue
        codes, scales = quantize(weight, profile)
        want = mxfp4_core.quantize(weight[:64].cpu(), profile=profile)
        assert torch.equal(codes[:64].cpu(), want.codes) and torch.equal(scales[:64].cpu(), want.scales)
        took[profile] = seconds(partial(quantize, weight, profile), 100 if profile in KINDS else 30)
    for profile, kind in KINDS.items():
        table.row(f"{profile}: {kind}", took[profile])
    slowest = max(took, key=took.__getitem__)
    table.row(f"{slowest}: slowest of {len(took)}", took[slowest])


def peers(table: Table, dtype: str) -> None:
    from mxfp4_cuda_marlin.quantize import quantize

    for name, (load, profile, dtypes) in PEERS.items():
        if dtype not in dtypes:
            continue
        try:
            peer = load()
        except ImportError as error:
            print(f"| {dtype} | {name}: {error} | - | - | - |")
            continue
        pairs = zip(("codes", "scales"), peer(table.weight), quantize(table.weight, profile), strict=True)
        same = ", ".join(f"{part} {'equal' if torch.equal(a, b) else 'differ'}" for part, a, b in pairs)
        table.row(f"{name}: {same}", seconds(partial(peer, table.weight)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=16384, help="rows and columns")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES, help="all if left out")
    parser.add_argument("--peers", action="store_true", help="time torchao and AITER too")
    arguments = parser.parse_args()
    size = arguments.size
    require_sm90()
    print(f"{date.today()}, {torch.cuda.get_device_name()}, torch {torch.__version__}, {size} x {size}\n")
    print("| dtype | profile | us | GB/s | of copy |\n|---|---|--:|--:|--:|")
    for dtype in arguments.dtypes:
        table = Table((torch.randn(size, size, device="cuda") * 0.02).to(getattr(torch, dtype)))
        ours(table)
        if arguments.peers:
            peers(table, dtype)


if __name__ == "__main__":
    main()
