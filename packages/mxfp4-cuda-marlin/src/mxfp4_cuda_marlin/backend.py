"""The backend ``cuda-marlin``: what the SM90 kernels take, and the way from the core's calls to the operators."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Final

from mxfp4_core.arithmetic import padded
from mxfp4_core.backend import (
    Backend,
    Choice,
    Kernels,
    Layout,
    Matrix,
    No,
    Numerics,
    Packed,
    Problem,
    Routes,
    Verdict,
    Yes,
    torch_build,
)
from mxfp4_cuda_marlin import choices, warmup
from mxfp4_cuda_marlin.kernels.build import PACKAGES
from mxfp4_cuda_marlin.limits import (
    LARGE_MAX,
    MAX_EXPERTS,
    MAX_TOP_K,
    PROFILES,
    SIZE_MAX,
    TILE,
    layout_id,
    rows_of,
)

if TYPE_CHECKING:
    from torch import Tensor

    from mxfp4_core.arithmetic import MxTensor

_INSTALL: Final = {"cuda-bindings": f"pip install {PACKAGES}", "triton": "pip install 'triton>=3.4'"}

ops: Any = None
"""The module of the operators once one is called: verdicts are given without torch, whose import takes a second."""


def _load() -> Any:
    global ops
    from mxfp4_cuda_marlin import ops as loaded

    ops = loaded
    return ops


class CudaMarlinBackend(Backend):
    """W4A16 linear and MoE on NVIDIA GPUs of compute capability 9.0, and the GPU quantizer."""

    name = "cuda-marlin"
    description = "NVIDIA Hopper (SM90): W4A16 linear and MoE, weights widened to bfloat16 in registers"
    features = frozenset(
        {
            *("linear", "moe", "quantize", "bias", "expert-map"),
            *("gate:silu", "gate:clamped", "rows:interleaved"),
            # float16 and float32 are for quantize; supports says why the matmuls refuse them.
            *("dtype:bfloat16", "dtype:float16", "dtype:float32"),
        }
    )
    numerics = Numerics(scale_bytes=(0, LARGE_MAX), profiles=PROFILES)
    automatic_on = frozenset({"cuda"})
    packages = ("cuda-bindings", "triton")

    def supports(self, problem: Problem) -> Verdict:
        """Accept SM90, bfloat16 activations, and sizes that 32-bit numbers hold; see ``Backend.supports``."""
        device = problem.device
        if device.type != "cuda":
            return No(
                f"the device is {device}, the kernels are for cuda sm_90", "use the backend of this device"
            )
        if device.arch != "sm_90":
            return No(
                f"compute capability {device.arch}, the kernels use wgmma and setmaxnreg of sm_90 and run nowhere else",
                "use an H100 or H200, or name the backend 'reference'",
            )
        missing = _missing("triton" if problem.op == "quantize" else "cuda-bindings")
        if missing is not None:
            return missing
        if problem.op == "quantize":
            if problem.dtype not in ("bfloat16", "float16", "float32"):
                return No(f"weights of {problem.dtype}", "quantise from bfloat16, float16 or float32")
            return Yes(provider="triton")
        if problem.dtype != "bfloat16":
            return No(
                f"activations of {problem.dtype}: the tensor cores want both operands in one dtype, and only bfloat16 "
                "holds the scales of MXFP4 (2^-127 to 2^127)",
                "run the model in bfloat16",
            )
        return self._sizes(problem)

    def _sizes(self, problem: Problem) -> Verdict:
        rows = 2 * problem.n if problem.op == "moe" else problem.n
        if max(rows, problem.k) > SIZE_MAX or rows // TILE * max(problem.experts, 1) > SIZE_MAX:
            return No(
                f"n = {problem.n}, k = {problem.k}, experts = {problem.experts}: rows are counted in 32 bits",
                "cut the layer into shards",
            )
        if problem.op == "linear":
            return Yes(layout=layout_id())
        if problem.experts > MAX_EXPERTS:
            return No(
                f"{problem.experts} experts, the routing kernel takes {MAX_EXPERTS}", "use expert parallelism"
            )
        if problem.total_experts > SIZE_MAX or problem.top_k > MAX_TOP_K:
            return No(
                f"total_experts = {problem.total_experts}, top_k = {problem.top_k}: slots are counted in 32 bits",
                "check the router's settings",
            )
        if problem.gate.limit is not None and not problem.gate.limit >= 0:
            return No(
                f"limit = {problem.gate.limit}, a clamp needs limit >= 0", "check the model's swiglu_limit"
            )
        needed = 0
        if problem.m:
            from mxfp4_cuda_marlin import compute

            n, k = padded(problem.n, TILE), padded(problem.k, TILE)
            needed = compute.moe_bytes(problem.m, problem.top_k, problem.experts, n, k, problem.total_experts)
        return Yes("", needed, layout=layout_id(rows_of(problem.gate.interleaved)))

    def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
        """Return tiles of 64 by 64, with gate and up rows side by side for ``gate_up``."""
        from mxfp4_cuda_marlin.layout import Sm90Layout

        return Sm90Layout(rows_of(problem.gate.interleaved)) if matrix == "gate_up" else Sm90Layout()

    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        """Compute ``x @ weight.T + bias``; see ``Backend.linear``."""
        t = weight.tensors
        return (ops or _load()).linear(x, t["codes"], t["scales"], t.get("bias"))

    def moe(self, x: Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem) -> Tensor:
        """Compute the weighted sum over the chosen experts; see ``Backend.moe``. Ids out of range are empty slots."""
        up, gate = gate_up.tensors, problem.gate
        return (ops or _load()).moe(
            x,
            *(up["codes"], up["scales"], up.get("bias")),
            *(down.tensors["codes"], down.tensors["scales"], down.tensors.get("bias")),
            *(routes.topk_ids, routes.topk_weights, routes.expert_map),
            *(gate.alpha, gate.limit, gate.up_offset),
        )

    def direct_linear(self, weight: Packed, problem: Problem) -> Callable[[Tensor], Tensor]:
        """Return ``linear`` for one weight without torch's dispatcher; see ``Backend.direct_linear``."""
        from mxfp4_cuda_marlin import direct

        return direct.linear(weight)

    def direct_moe(
        self, gate_up: Packed, down: Packed, problem: Problem
    ) -> Callable[[Tensor, Routes], Tensor]:
        """Return ``moe`` for one layer without torch's dispatcher; see ``Backend.direct_moe``."""
        from mxfp4_cuda_marlin import direct

        return direct.moe(gate_up, down, problem)

    def quantize(self, weight: Tensor, *, profile: str) -> MxTensor:
        """Quantise on the GPU of the weight; see ``Backend.quantize``."""
        from mxfp4_core.arithmetic import MxTensor

        codes, scales = (ops or _load()).quantize(weight, profile)
        return MxTensor(codes, scales, weight.shape, profile)

    def quantize_into(self, weight: Tensor, parts: Mapping[str, Tensor], *, profile: str) -> None:
        """Quantise on the GPU of the weight, straight into its parts; see ``Backend.quantize_into``."""
        from mxfp4_core.arithmetic import quantize_triton

        quantize_triton(weight, profile, out=(parts["codes"], parts["scales"]))

    def kernels(self) -> Kernels:
        """List what NVRTC compiles; see ``warmup``."""
        return warmup.kernels()

    def choices(self, problem: Problem) -> Sequence[Choice]:
        """List the tiles for each number of tokens; see ``choices``."""
        return choices.choices(problem)


def _missing(distribution: str) -> No | None:
    """Refuse where torch is built for CUDA but the compiler of the kernels is missing.

    With a CPU build of torch the question is about another machine, so what is installed here says nothing.
    """
    build = torch_build()
    if build is None or build.cuda is None:
        return None
    found = _version(distribution)
    if found is None:
        return No(f"{distribution} is not installed, and compiles the kernels", _INSTALL[distribution])
    need = (12, 8) if distribution == "cuda-bindings" else (3, 4)
    have = tuple(int(part) if part.isdigit() else 0 for part in found.split(".")[:2])
    if have < need:
        return No(f"found {distribution} {found}, needs {need[0]}.{need[1]}", _INSTALL[distribution])
    return None


@functools.cache
def _version(distribution: str) -> str | None:
    """Look once: it takes a millisecond, and a model asks for each of its layers."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


backend = CudaMarlinBackend()

__all__ = ["CudaMarlinBackend", "backend"]
