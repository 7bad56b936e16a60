"""AITER's own Triton sources compiled for an NVIDIA GPU, on operands that this package prepares, for real layers.

    python3 tools/linked.py packages/mxfp4-rocm/tests/support/cuda_aiter.py FOLDER_OF_THE_WHEEL

Every result is compared with float64 products, within a bound that follows from the roundings: sums in float32 over k
terms, one rounding to the dtype of the result. Prints one line for each layer; the first that is wrong raises.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import rocm_vendor
import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

from mxfp4_core import dequantize, quantize
from mxfp4_core.arithmetic import quantize_triton
from mxfp4_core.backend import SILU, Device, Gate, Problem, Routes, calls
from mxfp4_core.testing import judge
from mxfp4_core.testing.cases import BLOCKS
from mxfp4_core.testing.samples import random_routes, random_weight, random_x
from mxfp4_rocm import dense, experts, shuffle_weight, swizzle_scales, tokens, vendor
from mxfp4_rocm.backend import RocmBackend
from mxfp4_rocm.rules import LAYOUTS

GPU = torch.device("cuda")
AMD = {"waves_per_eu", "matrix_instr_nonkdim"}
original = JITFunction.run
EPS32 = 2.0**-23
LAYERS = {
    "qwen3-8b qkv": (6144, 4096),
    "qwen3-8b gate_up": (24576, 4096),
    "qwen3-8b down": (4096, 12288),
    "llama-70b down, tp 8": (8192, 3584),
    "flux mlp": (12288, 3072),
    "a narrow head": (192, 4096),
}
"""n and k."""


def config(m: int) -> dict[str, Any]:
    """Return tiles that fit into the shared memory of an NVIDIA GPU, without AMD's compiler options."""
    rows = 16 if m < 32 else 64
    tile = {
        "BLOCK_SIZE_M": rows,
        "BLOCK_SIZE_N": 64,
        "BLOCK_SIZE_K": 256 if m < 32 else 128,
        "GROUP_SIZE_M": 4,
    }
    return tile | {"num_warps": 4, "num_stages": 2, "cache_modifier": None, "NUM_KSPLIT": 4 if m < 32 else 1}


def check(got: Tensor, x: Tensor, w: Tensor, what: str) -> float:
    """Return the error as a part of its bound, which it may not exceed."""
    want, size = x @ w.T, x.abs() @ w.abs().T
    half = torch.finfo(got.dtype).eps / 2
    bound = (x.shape[1] + 2) * EPS32 * size + half * want.abs() + 2.0**-130
    part = float(((got.double() - want).abs() / bound).max())
    assert part <= 1.0, f"{what}: {part:.3g} of the bound"
    return part


def wide(codes: Tensor, scales: Tensor) -> Tensor:
    return dequantize(codes.contiguous(), scales.contiguous(), torch.float64)


def clock(run: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """Return a result, and the microseconds of one call after a first one."""
    out = run()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(5):
        run()
    torch.cuda.synchronize()
    return out, (time.perf_counter() - start) / 5 * 1e6


def quantiser() -> None:
    """AITER's quantiser has the rule of its profile, at the size of a layer and in named blocks.

    What is left out is NVIDIA's: a negative exponent becomes a byte by a conversion that saturates there and wraps on
    AMD, and log2 reads subnormal numbers as zero. So maxima are made at least 4, which changes no code.
    """
    run = vendor.function("dynamic_mxfp4_quant")
    named = torch.stack([block.weight for block in BLOCKS]).to(torch.bfloat16)
    noise = torch.randn(4096, 12288, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    for name, x in (("named blocks", named), ("4096 x 12288", noise)):
        amax = x.float().unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True)
        lift = torch.where((amax >= 2.0**-100) & (amax < 4), 2.0**103, 1.0)
        x = (x.float().unflatten(-1, (-1, 32)) * lift).flatten(-2).to(torch.bfloat16)
        codes, scales = run(x.to(GPU))
        want = quantize(x, profile="aiter-triton-0.1.7")
        other = (scales.cpu() != want.scales) | (codes.cpu() != want.codes).unflatten(-1, (-1, 16)).any(-1)
        other &= (amax[..., 0] >= 2.0**-100) & (amax[..., 0] < 2.0**127)
        print(
            f"quantiser       {name:<22} {int(other.sum())} of {other.numel()} blocks differ from its profile"
        )
        assert not bool(other.any())


def gemms() -> None:
    """Each dense kernel at each layer, for few tokens and for many, W4A4 and W4A16."""
    for name, (n, k) in LAYERS.items():
        generator = torch.Generator(GPU).manual_seed(n)
        weight = torch.randn(n, k, generator=generator, device=GPU).mul_(k**-0.5).to(torch.bfloat16)
        codes, scales = quantize_triton(weight)
        values, packed = wide(codes, scales), (shuffle_weight(codes), swizzle_scales(scales))
        for m in (1, 31, 64, 1024):
            x = torch.randn(m, k, generator=generator, device=GPU).to(torch.bfloat16)
            rows = tokens.quantize_rows(x)
            runs: dict[str, Callable[[], Tensor]] = {
                "gemm_afp4wfp4": partial(dense._triton, *rows, codes, scales, torch.bfloat16)
            }
            if m < 32:
                runs["preshuffled"] = partial(dense._preshuffled, *rows, *packed)
            runs["W4A16"] = partial(experts.one_expert, x, codes, scales, torch.bfloat16)
            for what, run in runs.items():
                got, took = clock(run)
                part = check(
                    got, x.double() if what == "W4A16" else wide(*rows), values, f"{what} {name} m={m}"
                )
                print(f"{what:<15} {name:<22} m={m:<5} {took:8.0f} us   {part:.2f} of the bound")


def moe() -> None:
    """The experts of qwen3-30b-a3b (128 of 768 x 2048, top 8) and of gpt-oss-20b (32 of 2880 x 2880, biases)."""
    for name, (count, n, k, top, gate) in {
        "qwen3-30b-a3b": (128, 768, 2048, 8, SILU),
        "gpt-oss-20b": (32, 2880, 2880, 4, Gate(1.702, 7.0, 1.0, interleaved=True)),
    }.items():
        for way, activation in (("experts", "mxfp4"), ("widened", "none")):
            options = {"moe": "triton"} if way == "experts" else {}
            problem = Problem(
                op="moe", n=n, k=k, experts=count, top_k=top, gate=gate, bias=gate.interleaved, activation=activation,
                options=options, device=Device("hip", "gfx950"),
            )  # fmt: skip
            shapes = calls.shapes(problem)
            weights = [
                random_weight(*shape, seed=i, scales=(115, 118)) for i, shape in enumerate(shapes.values())
            ]
            generator = torch.Generator().manual_seed(1)
            biases = [
                torch.randn(s[:-1], generator=generator) if problem.bias else None for s in shapes.values()
            ]
            backend = RocmBackend()
            packed = [
                calls.pack(backend, problem, w.to(GPU), None if b is None else b.to(GPU), matrix)
                for w, b, matrix in zip(weights, biases, shapes, strict=True)
            ]
            assert packed[0].layout == LAYOUTS[way]
            for m in (1, 64):
                x, (ids, factors) = random_x(m, k), random_routes(m, count, top)
                routes = Routes(ids.to(GPU), factors.to(GPU))
                got, took = clock(partial(calls.moe, backend, x.to(GPU), *packed, routes, problem))
                numerics = backend.supports(problem).numerics  # type: ignore[union-attr]
                answer = judge.moe(
                    x, *weights, (biases[0], biases[1]), ids, factors, gate, numerics, activation=activation
                )
                answer.check(got, f"{way} {name} m={m}")
                error = float((got.cpu().double() - answer.value).norm() / answer.value.norm())
                print(f"moe {way:<11} {name:<22} m={m:<5} {took:8.0f} us   error {error:.2e}, as judged")


def ends() -> None:
    """Scale byte 0 where weights are widened."""
    weight, x = random_weight(64, 128), random_x(3, 128).abs() * 2.0**100
    weight.codes[7], weight.scales[7] = 0x22, 0
    got = experts.one_expert(x.to(GPU), weight.codes.to(GPU), weight.scales.to(GPU), torch.float32)
    print(
        f"W4A16           scale byte 0 is {'zero' if not bool(got[:, 7].any()) else 'not zero'} on this GPU"
    )


def launch(kernel: Any, *args: Any, **options: Any) -> Any:
    """Launch a kernel without the options of AMD's compiler, which NVIDIA's refuses."""
    return original(kernel, *args, **{k: v for k, v in options.items() if k not in AMD})


if __name__ == "__main__":
    JITFunction.run = launch
    rocm_vendor.install(Path(sys.argv[1]))
    module = rocm_vendor.module("gemm_afp4wfp4")
    module.AITER_TRITON_CONFIGS_PATH = "none"  # it holds machine code for AMD
    module._get_config = lambda m, n, k, shuffle=False: config(m)
    print(torch.cuda.get_device_name(), torch.__version__)
    for part in (quantiser, gemms, moe, ends):
        part()
