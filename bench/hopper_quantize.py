"""How fast does the GPU quantise, against a copy of the same bytes?

Usage: python bench/hopper_quantize.py [--size 16384]

Medians of Triton's do_bench. GB/s counts each value read once and its 17/32 bytes of codes and scales written once, "of
copy" divides by a device copy in the same run. Before timing, the bytes of a slice are compared with mxfp4_core's on
the CPU. AITER's, torchao's and triton_kernels' quantisers reached 0.34, 0.24 and 0.14 of copy on a machine of the same
kind on 2026-11-20; this script does not run them.
"""

from __future__ import annotations

import argparse
from datetime import date

import torch
from hopper.timing import require_sm90

import mxfp4_core

CASES = (
    ("bfloat16", "even/even"),
    ("bfloat16", "rceil/even"),
    ("bfloat16", "vllm"),
    ("bfloat16", "quark"),
    ("float16", "even/even"),
    ("float32", "even/even"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=16384, help="rows and columns")
    size = parser.parse_args().size
    require_sm90()
    import triton.testing

    from mxfp4_cuda_marlin.quantize import quantize

    def seconds(run: object) -> float:
        return float(triton.testing.do_bench(run, warmup=20, rep=100, return_mode="median")) / 1e3

    print(f"{date.today()}, {torch.cuda.get_device_name()}, torch {torch.__version__}, {size} x {size}\n")
    print("| dtype | profile | us | GB/s | of copy |\n|---|---|--:|--:|--:|")
    for dtype, profile in CASES:
        weight = (torch.randn(size, size, device="cuda") * 0.02).to(getattr(torch, dtype))
        target = torch.empty_like(weight)
        copy = 2 * weight.nbytes / seconds(lambda a=weight, b=target: b.copy_(a)) / 1e9
        codes, scales = quantize(weight, profile)
        want = mxfp4_core.quantize(weight[:64].cpu(), profile=profile)
        assert torch.equal(codes[:64].cpu(), want.codes) and torch.equal(scales[:64].cpu(), want.scales)
        took = seconds(lambda w=weight, p=profile: quantize(w, p))
        rate = weight.numel() * (weight.element_size() + 17 / 32) / took / 1e9
        print(f"| {dtype} | {profile} | {took * 1e6:.1f} | {rate:.0f} | {rate / copy:.2f} |", flush=True)


if __name__ == "__main__":
    main()
