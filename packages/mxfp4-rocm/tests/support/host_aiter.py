"""The host code of AITER's wheel, on a CPU: between our calls and its kernels stand its own files, and torch.

Its kernels are the strict ones beside this file. What is run of the vendor's is what decides over arguments: the
functions that are called by name, and ``torch_compile_guard``, which makes operators of torch of some.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import rocm_strict
import rocm_vendor
import torch
from torch import Tensor

from mxfp4_core import quantize
from mxfp4_core.backend import Gate
from mxfp4_rocm import dense, experts
from mxfp4_rocm.packed import ExpertsLayout, ShuffledLayout

KERNELS: dict[str, Callable[..., Any]] = {}
"""What the vendor compiles, by name."""


class Dtypes:
    """The vendor's names of dtypes; those that matter here are torch's."""

    fp16, bf16, fp32, i32, fp4x2 = torch.float16, torch.bfloat16, torch.float32, torch.int32, rocm_strict.FP4

    def __getattr__(self, name: str) -> str:
        return name


def stand_in(name: str, **members: Any) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(members)
    sys.modules[name] = module
    return module


def compile_ops(*_: Any, **__: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return lambda function: lambda *args, **kwargs: KERNELS[function.__name__](*args, **kwargs)


def gemm_a4w4_asm(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, out: Tensor, name: str,
    bias: Tensor | None, alpha: float, beta: float, bpreshuffle: bool, log2_k_split: int,
) -> Tensor:  # fmt: skip
    out[: a.shape[0]] = rocm_strict.gemm_a4w4(a, b, a_scale, b_scale, bpreshuffle)
    return out


def install(wheel: Path) -> None:
    """Make the files of the wheel importable that stand between a call and a kernel."""
    rocm_vendor.install(wheel)
    for name in ("aiter.jit", "aiter.jit.utils"):
        stand_in(name, __path__=[str(wheel / name.replace(".", "/"))])
    files = {"AITER_CONFIG_GEMM_A4W4_FILE": "", "AITER_CONFIG_FMOE_FILE": "", "AITER_LOG_TUNED_CONFIG": False}
    stand_in(
        "aiter.jit.core", **files, compile_ops=compile_ops, PY="", bd_dir="", get_asm_dir=str, mp_lock=None
    )
    stand_in("aiter.jit.utils.chip_info", get_cu_num=lambda: 256, get_gfx=lambda: "gfx950")
    stand_in("aiter.utility.fp4_utils", moe_mxfp4_sort=None)
    stand_in("pandas")
    enums = {"ActivationType": rocm_strict.ActivationType, "QuantType": rocm_strict.QuantType}
    stand_in("aiter.ops.enum", **enums)
    quiet = SimpleNamespace(info=print, warning=print)
    unused = dict.fromkeys(
        (
            "fmoe",
            "fmoe_g1u1",
            "fmoe_int8_g1u0",
            "fmoe_fp8_blockscale_g1u1",
            "ck_moe_stage1_fwd",
            "ck_moe_stage2_fwd",
        )
    )
    sys.modules["aiter"].__dict__.update(
        **enums, **unused, dtypes=Dtypes(), logger=quiet, get_hip_quant=None, get_torch_quant=None
    )
    KERNELS.update(gemm_a4w4_asm=gemm_a4w4_asm)


def matmul() -> None:
    """``gemm_a4w4`` through the operator that the wheel registers with torch."""
    called = importlib.import_module("aiter.ops.gemm_op_a4w4")
    called.get_GEMM_config = lambda m, n, k: None  # type: ignore[attr-defined]  # a table of tuned kernels
    x, w = torch.randn(40, 512).bfloat16(), quantize(torch.randn(384, 512))
    packed = ShuffledLayout().pack(w)
    got = dense.linear(x, packed["codes"], packed["scales"], None, "asm", False)
    tokens = quantize(x)
    want = rocm_strict.widened(tokens.codes, tokens.scales) @ rocm_strict.widened(w.codes, w.scales).T
    assert hasattr(torch.ops.aiter, "gemm_a4w4"), "it is no operator of torch"
    assert torch.equal(got, want.bfloat16())


def moe() -> None:
    """``fused_moe`` up to the stages, which get the marks, the scales and the mask."""
    called = importlib.import_module("aiter.fused_moe")
    seen: dict[str, Any] = {}

    def moe_sorting(ids: Tensor, weights: Tensor, experts: int, *rest: Any) -> tuple[Tensor | None, ...]:
        seen.update(ids=ids, weights=weights, experts=experts, mask=rest[3])
        return None, None, None, None, torch.empty(len(ids), rest[0], dtype=rest[1])

    def stages(x: Tensor, w1: Tensor, w2: Tensor, *_: Any, **how: Any) -> Tensor:
        assert seen["experts"] == seen["mask"].numel()
        return rocm_strict.fused_moe(
            x, w1, w2, seen["weights"], seen["ids"], seen["mask"], how["activation"], how["quant_type"],
            how["w1_scale"], how["w2_scale"], "aiter-hip-0.1.7",
        )  # fmt: skip

    called.moe_sorting, called.fused_moe_2stages = moe_sorting, stages  # type: ignore[attr-defined]
    called.get_2stage_cfgs = lambda *_: SimpleNamespace(run_1stage=False, block_m=32)  # type: ignore[attr-defined]
    layout = ExpertsLayout()
    up, down = quantize(torch.randn(3, 512, 256)), quantize(torch.randn(3, 256, 256))
    stacks = [experts.Stack(**layout.pack(weight), bias=None) for weight in (up, down)]
    x, ids = (
        torch.randn(5, 256).bfloat16(),
        torch.tensor([[0, 2], [1, 0], [-1, 1], [2, 1], [0, 1]], dtype=torch.int32),
    )
    weights = torch.rand(5, 2)
    got = experts.moe(x, *stacks, ids, weights, None, 0, Gate(), "fused", False)
    assert hasattr(torch.ops.aiter, "fused_moe_"), "it is no operator of torch"
    assert got.shape == x.shape and bool(got.isfinite().all()) and bool(got.abs().sum() > 0)
    assert seen["ids"].dtype == torch.int32 and seen["experts"] == 4


if __name__ == "__main__":
    install(Path(sys.argv[1]))
    torch.manual_seed(0)
    matmul()
    moe()
