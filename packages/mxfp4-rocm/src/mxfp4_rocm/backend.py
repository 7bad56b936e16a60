"""The backend ``rocm``: what AITER's kernels take on gfx95x, and the way from the core's calls to the operators."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from mxfp4_core.arithmetic import padded
from mxfp4_core.backend import (
    Backend,
    Choice,
    Layout,
    Matrix,
    No,
    Options,
    Packed,
    Problem,
    Routes,
    Verdict,
    Yes,
    check_choice,
    check_keys,
    tabulate,
    torch_build,
)
from mxfp4_rocm import contract, rules
from mxfp4_rocm.limits import (
    DEVICES,
    EXPERT_K,
    EXPERT_N,
    FEW_TOKENS,
    INSTALL,
    MAX_EXPERTS,
    PROFILES,
    PROVEN,
    SIZE_MAX,
    WIDENS,
)

if TYPE_CHECKING:
    from torch import Tensor

    from mxfp4_core.arithmetic import MxTensor

OPTIONS: Final = {
    "gemm": ("auto", "asm", "triton"),
    "moe": ("auto", "fused", "triton"),
    "quantizer": ("core", "aiter"),
}
"""What a config may say under ``backend_options.rocm``, the default first."""

WAYS: Final = {layout: way for way, layout in rules.LAYOUTS.items()} | {
    "aiter-16x16-experts-deinterleaved": "fused"
}
"""Which kernels read a layout: a packed weight is known by its layout alone."""

ops: Any = None
"""The module of the operators once one is called: verdicts are given without torch, whose import takes a second."""


def _load() -> Any:
    global ops
    from mxfp4_rocm import ops as loaded

    ops = loaded
    return ops


class RocmBackend(Backend):
    """FP4 matrix units of AMD CDNA4 through AITER: W4A4 and W4A16, linear and MoE."""

    name = "rocm"
    description = (
        "AMD CDNA4 (gfx95x) through AITER: W4A4 on the FP4 matrix units, W4A16 where it is asked for"
    )
    features = frozenset(
        {
            *("linear", "moe", "quantize", "bias", "expert-map", "moe:shared-experts", "activation:mxfp4"),
            *("gate:silu", "gate:clamped", "rows:interleaved", "gate:none"),
            *("gate:gelu", "gate:gelu_tanh", "gate:relu", "gate:relu2"),
            # float16 and float32 are for quantize; supports says why the matmuls refuse them.
            *("dtype:bfloat16", "dtype:float16", "dtype:float32"),
        }
    )
    numerics = rules.WIDENED
    automatic_on = frozenset({f"hip:{DEVICES}0"})  # on gfx942 the kernels of petit come first
    packages = ("amd-aiter", "triton")
    usual_activation = "auto"

    def contract(self) -> contract.Contract | No:
        """Return what the installed AITER can be called with, or why none can be used.

        With a torch that is not built for HIP the question is about another machine: what was proven is assumed.
        """
        build = torch_build()
        if build is None or build.hip is None:
            return proven()
        if (found := contract.installed()) is not None:
            return found
        if (other := contract.stranger()) is not None:
            return No(
                f"the package aiter at {other} is another project of that name, without AMD's kernels",
                f"pip uninstall aiter, then {INSTALL}",
            )
        return No("AITER is not installed, and has the kernels", INSTALL)

    def supports(self, problem: Problem) -> Verdict:
        """Accept gfx95x with an AITER that has what the problem needs; see ``Backend.supports``."""
        device = problem.device
        if device.type != "hip":
            return No(
                f"the device is {device}, the kernels are for AMD's {DEVICES}x",
                "use the backend of this device",
            )
        if not device.arch.lower().startswith(DEVICES) and not self._widens(problem):
            return No(
                f"{device.arch} has no matrix instructions for FP4, which came with gfx950 (MI350, MI355)",
                "use the backend 'petit' (mxfp4-petit) on gfx90a and gfx942, or name the backend 'reference'",
            )
        build = torch_build()
        if build is not None and build.hip is not None and not has_triton():
            return No(
                "Triton is not installed, in which the quantizer of the tokens and most of AITER's kernels are written",
                "install the one that this build of torch requires: pip show torch",
            )
        if problem.op == "quantize":
            if problem.dtype not in ("bfloat16", "float16", "float32"):
                return No(f"weights of {problem.dtype}", "quantise from bfloat16, float16 or float32")
            return Yes(provider="mxfp4_core (Triton)")
        if problem.dtype != "bfloat16":
            return No(
                f"activations of {problem.dtype}: AITER's kernels give bfloat16, and only bfloat16 holds the scales",
                "run the model in bfloat16",
            )
        if (unfit := self._sizes(problem)) is not None:
            return unfit
        found = self.contract()
        if isinstance(found, No):
            return found
        chosen = rules.choose(problem, found)
        if isinstance(chosen, No):
            return chosen
        return Yes(
            chosen.why,
            self._temporary(problem, chosen.way),
            chosen.numerics,
            provider=rules.PROVIDERS[chosen.way],
            layout=rules.LAYOUTS[chosen.way],
        )

    @staticmethod
    def _widens(problem: Problem) -> bool:
        """Say whether a problem is W4A16 on an architecture without FP4 that AITER's kernel compiles for."""
        plain = problem.op != "quantize" and problem.activation in ("none", "auto")
        return problem.device.arch == WIDENS and plain

    def _sizes(self, problem: Problem) -> No | None:
        rows = padded(problem.n, 256) * 2 * max(problem.stacked, 1)
        if max(rows, padded(problem.k, 256) * max(problem.stacked, 1)) > SIZE_MAX:
            return No(
                f"n = {problem.n}, k = {problem.k}, experts = {problem.stacked}: rows are counted in 32 bits",
                "cut the layer into shards",
            )
        if problem.op != "moe":
            return None
        if problem.stacked > MAX_EXPERTS or problem.total_experts > SIZE_MAX or problem.top_k > MAX_EXPERTS:
            return No(
                f"experts = {problem.stacked}, total_experts = {problem.total_experts}, top_k = {problem.top_k}: "
                f"at most {MAX_EXPERTS} here",
                "use expert parallelism",
            )
        if problem.gate.limit is not None and not problem.gate.limit >= 0:
            return No(
                f"limit = {problem.gate.limit}, a clamp needs limit >= 0", "check the model's swiglu_limit"
            )
        return None

    def _temporary(self, problem: Problem, way: rules.Way) -> int:
        if not problem.m:
            return 0
        m, n, k = problem.m, padded(problem.n, 256), padded(problem.k, 256)
        if problem.op == "linear":
            swizzled = padded(m, 256) * k // 32 if way == "asm" else 0
            return (0 if way == "widened" else m * k * 17 // 32 + swizzled) + (
                4 * m * n if problem.bias else 0
            )
        slots = m * (problem.top_k + problem.shared_experts)
        if way == "fused":
            return m * k * 17 // 32 + slots * (2 * n + n * 17 // 32)
        return slots * (8 * n + 4 * n + 4 * k)

    def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
        """Return the layout of the kernels that serve the problem."""
        found = self.contract()
        chosen = rules.choose(problem, found if isinstance(found, contract.Contract) else proven())
        # A problem that was accepted has a way; for others the layout of the widest kernel is as good as any.
        return self._layout(problem, matrix, "widened" if isinstance(chosen, No) else chosen.way)

    def _layout(self, problem: Problem, matrix: Matrix, way: rules.Way) -> Layout:
        from mxfp4_rocm.packed import ExpertsLayout, RawLayout, ShuffledLayout

        if way == "asm":
            return ShuffledLayout()
        if way == "triton":
            return RawLayout()
        if way == "fused":
            return ExpertsLayout(matrix == "gate_up" and problem.gate.interleaved)
        # Half of the rows of gate and up are gate rows.
        n = EXPERT_N // problem.gate.rows if matrix == "gate_up" else EXPERT_N
        return RawLayout(n, EXPERT_K, way == "widened")

    def check_options(self, options: Mapping[str, object]) -> None:
        """Take ``gemm``, ``moe`` and ``quantizer``; see ``Backend.check_options``."""
        check_keys(self.name, options, OPTIONS)
        for key, choices in OPTIONS.items():
            check_choice(self.name, options, key, choices)

    def choices(self, problem: Problem) -> Sequence[Choice]:
        """List the kernels by the number of tokens; see ``Backend.choices``."""
        if problem.op == "quantize":
            return ()
        found = self.contract()
        chosen = found if isinstance(found, No) else rules.choose(problem, found)
        if isinstance(chosen, No) or isinstance(found, No):
            return ()
        few = chosen.way == "asm" and found.has("gemm_afp4wfp4_preshuffle")

        def kernel(m: int) -> tuple[str, Mapping[str, int | str]]:
            if few and m <= FEW_TOKENS:
                return "gemm_afp4wfp4_preshuffle", {"scales of tokens": "by rows"}
            name = rules.NEEDS[chosen.way][0]
            return name, {"scales of tokens": "swizzled"} if chosen.way == "asm" else {}

        return tabulate(kernel, 64)

    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        """Compute ``x @ weight.T + bias``; see ``Backend.linear``."""
        t, way = weight.tensors, WAYS[weight.layout]
        by_aiter = problem.options.get("quantizer") == "aiter"
        return (ops or _load()).linear(x, t["codes"], t["scales"], t.get("bias"), way, by_aiter)

    def moe(self, x: Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem) -> Tensor:
        """Compute the weighted sum over the chosen experts; see ``Backend.moe``. Ids out of range are empty slots."""
        up, way = gate_up.tensors, WAYS[gate_up.layout]
        by_aiter = problem.options.get("quantizer") == "aiter"
        return (ops or _load()).moe(
            x,
            *(up["codes"], up["scales"], up.get("bias")),
            *(down.tensors["codes"], down.tensors["scales"], down.tensors.get("bias")),
            *(routes.topk_ids, routes.topk_weights, routes.expert_map, problem.shared_experts),
            *(*problem.gate.arguments, way, by_aiter),
        )

    def quantize(self, weight: Tensor, *, profile: str) -> MxTensor:
        """Quantise on the GPU of the weight by the core's kernel; see ``Backend.quantize``."""
        from mxfp4_core.arithmetic import MxTensor

        codes, scales = (ops or _load()).quantize(weight, profile)
        return MxTensor(codes, scales, weight.shape, profile)


@functools.cache
def has_triton() -> bool:
    """Say whether Triton can be found; it is not imported."""
    return find_spec("triton") is not None


def proven() -> contract.Contract:
    """Return the contract of the version that was proven, for questions about a machine that is not this one."""
    from mxfp4_rocm.wheel import CONTRACT

    return CONTRACT


backend = RocmBackend()

__all__ = ["OPTIONS", "PROFILES", "PROVEN", "Options", "RocmBackend", "backend", "proven"]
