"""The backend ``npu``: what torch_npu's FP4 operators take on an A5, and the way from the core's calls to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from mxfp4_core.backend import (
    Backend,
    Layout,
    Matrix,
    No,
    Numerics,
    Packed,
    Problem,
    Routes,
    Verdict,
    Yes,
    check_choice,
    check_keys,
)
from mxfp4_npu import vendor

if TYPE_CHECKING:
    from torch import Tensor

    from mxfp4_core.arithmetic import MxTensor

A5: Final = ("Ascend950",)
"""How the names of the devices begin that have the FP4 operators; their C++ refuses all others."""

GROUPS: Final = 1024
"""Most experts of one grouped matmul (CANN's page of aclnnGroupedMatmulV5)."""

SINGLE_PROFILES: Final = frozenset(single for single, _ in vendor.MODES.values())
DUAL_PROFILES: Final = frozenset(dual for _, dual in vendor.MODES.values())

_MODE: Final = "round_mode"

ops: Any = None
"""The module of the operators once one is called: verdicts are given without torch."""


def _load() -> Any:
    global ops
    from mxfp4_npu import ops as loaded

    ops = loaded
    return ops


class NpuBackend(Backend):
    """W4A4 linear and MoE on Ascend A5, and its quantizers.

    It has one option, ``round_mode``: how ties are rounded where activations are quantised, ``rint`` (to even) or
    ``round`` (away from zero).
    """

    name = "npu"
    description = (
        "Ascend A5 (950): W4A4 linear with one or two levels of scales, MoE with one, through torch_npu"
    )
    features = frozenset(
        {
            *("linear", "moe", "quantize", "bias", "expert-map"),
            *("gate:silu", "gate:clamped", "rows:interleaved", "gate:none"),
            *("gate:gelu", "gate:gelu_tanh", "gate:relu", "gate:relu2"),
            *("dtype:bfloat16", "dtype:float16", "activation:mxfp4"),
            *(
                "linear:format:mxfp4-dual",
                "quantize:format:mxfp4-dual",
                "linear:input-scale",
                "moe:input-scale",
            ),
        }
    )
    numerics = Numerics(profiles=SINGLE_PROFILES, activation_profile="ascend-single", hidden="input")
    automatic_on = frozenset({"npu"})
    packages = ("torch-npu",)
    usual_activation = "auto"

    def check_options(self, options: Mapping[str, object]) -> None:
        """Take ``round_mode``; see ``Backend.check_options``."""
        check_keys(self.name, options, (_MODE,))
        check_choice(self.name, options, _MODE, tuple(vendor.MODES))

    def supports(self, problem: Problem) -> Verdict:
        """Accept A5, 16-bit activations that are quantised; see ``Backend.supports``."""
        device = problem.device
        if device.type != "npu":
            return No(
                f"the device is {device}, the kernels are for Ascend A5", "use the backend of this device"
            )
        if device.arch != "unknown" and not device.arch.startswith(A5):
            return No(
                f"the device is {device.arch}, the FP4 operators are for A5 ({A5[0]}) and run on no A2 or A3",
                "use an Ascend 950, or name the backend 'reference'",
            )
        if problem.dtype not in vendor.INPUTS:
            return No(
                f"{'weights' if problem.op == 'quantize' else 'activations'} of {problem.dtype}: the operators take "
                "bfloat16 and float16",
                "run the model in bfloat16",
            )
        dual = "level0" in _parts(problem.format)
        if problem.op != "quantize" and problem.activation == "none":
            return No(
                "activations in high precision: torch_npu multiplies FP4 by FP4",
                "ask for activation='mxfp4' or 'auto'",
            )
        if problem.stacked > GROUPS:
            return No(
                f"{problem.stacked} experts, npu_grouped_matmul takes {GROUPS} groups",
                "use expert parallelism",
            )
        needed = vendor.DUAL if dual else vendor.GROUPED if problem.op == "moe" else vendor.SINGLE
        answer = vendor.missing(needed)
        return self._yes(problem, dual) if answer is None else answer

    def _yes(self, problem: Problem, dual: bool) -> Yes:
        note = ""
        if problem.device.arch == "unknown":
            note = "the device has not been started, so whether it is an A5 shows at the first call"
        if problem.op == "quantize":
            profiles = DUAL_PROFILES if dual else SINGLE_PROFILES
            return Yes(note, numerics=replace(self.numerics, profiles=profiles), provider="torch_npu")
        profile = vendor.MODES[self._mode(problem)][dual]
        numerics = replace(self.numerics, activation="mxfp4", activation_profile=profile)
        m, k = problem.m or 0, problem.k
        # Codes, scales and outer scales of x, and for experts the rows of every slot.
        temporary = m * (k // 2 + k // 32 + k // 128)
        if problem.op == "moe":
            temporary = m * problem.top_k * (10 * k + 14 * problem.n)
        return Yes(note, temporary, numerics, provider="torch_npu", layout="dual" if dual else "single")

    def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
        """Return the layout of the format; see ``layout``."""
        from mxfp4_npu.layout import AscendLayout

        return AscendLayout(problem.format)

    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        """Compute ``x @ weight.T + bias``; see ``Backend.linear``."""
        t = weight.tensors
        made: Tensor = (ops or _load()).linear(
            x,
            *(t["codes"], t["scales"], t.get("level0"), t.get("multiplier"), t.get("bias")),
            self._mode(problem),
        )
        return made

    def moe(self, x: Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem) -> Tensor:
        """Compute the weighted sum over the chosen experts; see ``Backend.moe``. Ids out of range are empty slots."""
        names = ("codes", "scales", "multiplier", "bias")
        made: Tensor = (ops or _load()).moe(
            x,
            *(packed.tensors.get(name) for packed in (gate_up, down) for name in names),
            *(routes.topk_ids, routes.topk_weights, routes.expert_map),
            *(*problem.gate.arguments, self._mode(problem)),
        )
        return made

    def quantize(self, weight: Tensor, *, profile: str) -> MxTensor:
        """Quantise to one level on the device; see ``Backend.quantize``."""
        from mxfp4_npu import quantize

        return quantize.single(weight, profile)

    def quantize_into(self, weight: Tensor, parts: Mapping[str, Tensor], *, profile: str) -> None:
        """Quantise on the device, to two levels where the parts have two; see ``Backend.quantize_into``."""
        from mxfp4_npu import quantize

        quantize.into(weight, parts, profile)

    def _mode(self, problem: Problem) -> str:
        return str(problem.options.get(_MODE, "rint"))


def _parts(format: str) -> tuple[str, ...]:
    from mxfp4_core.arithmetic import get_format

    return tuple(part.name for part in get_format(format).parts)


backend = NpuBackend()

__all__ = ["NpuBackend", "backend"]
