"""How fast is a W4A16 linear on Hopper, against BF16 weights and against what peers reached?

Usage: python bench/hopper_dense.py [--tokens 1 16 64 256 1024 4096 16384]

Medians of 20 CUDA-graph replays with a cold L2 cache. The error is that of the output against FP32 on the dequantised
weights. ``bf16`` is torch's matmul in this run. Peers are not run by this script: their column is the fastest of Marlin
and Humming in bench/hopper/peers.json, measured on 2026-11-20 on another machine of the same kind, and "x peer" says
how many times faster we are than that; it is a hint, no like-for-like result.
"""

from __future__ import annotations

import argparse
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

from mxfp4_core import MxTensor, calls
from mxfp4_core.backend import Problem

SHAPES = {
    "o_proj 4096x4096": (4096, 4096),
    "qwen3-32b up 25600x5120": (25600, 5120),
    "llama70b down 8192x28672": (8192, 28672),
    "wan2.2 ffn 13824x5120": (13824, 5120),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 64, 256, 1024, 4096, 16384])
    tokens = parser.parse_args().tokens
    require_sm90()
    from mxfp4_cuda_marlin import backend

    copy, peak = ceilings()
    print(f"{date.today()}, {torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"copy {copy:.0f} GB/s, BF16 matmul {peak:.0f} TFLOP/s\n")
    print("| shape n x k | m | floor us | ours us | of floor | error | bf16 us | best peer us | x peer |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    flush, gains = torch.empty(64 << 20, dtype=torch.float32, device="cuda"), []
    for name, (n, k) in SHAPES.items():
        codes = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, device="cuda")
        scales = torch.randint(116, 122, (n, k // 32), dtype=torch.uint8, device="cuda")
        weight = MxTensor(codes, scales, torch.Size((n, k)))
        wide, problem = weight.dequantize(torch.bfloat16), Problem(op="linear", n=n, k=k)
        packed = calls.pack(backend, problem, weight)
        for m in tokens:
            x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
            some = slice(0, 256)
            error = relative_error(
                calls.linear(backend, x, packed, problem)[some], x[some].float() @ wide.float().T
            )
            ours = microseconds(lambda x=x, w=packed, p=problem: calls.linear(backend, x, w, p), flush=flush)
            base = microseconds(lambda x=x, w=wide: x @ w.T, flush=flush)
            moved = n * k * 17 / 32 + 2 * m * (n + k)
            floor = max(moved / copy / 1e3, 2 * m * n * k / peak / 1e6)
            row = PEERS["dense"].get(name, {}).get(str(m))
            peer = best_peer(row) if row else float("nan")
            gains.append(peer / ours)
            print(
                f"| {name} | {m} | {floor:.1f} | {ours:.1f} | {ours / floor:.2f} | {error:.1e} | {base:.1f} "
                f"| {peer:.1f} | {peer / ours:.2f} |",
                flush=True,
            )
    print(f"\ngeometric mean of x peer: {geometric_mean(g for g in gains if g == g):.2f}")


if __name__ == "__main__":
    main()
