"""Which of AITER's kernels serves a problem: the rules, and what is computed by each. No torch, no device.

    linear, activations none     fused_moe_mxfp4 with one expert      weights widened to bfloat16
    linear, activations mxfp4    gemm_a4w4 from 256 features on       below, gemm_afp4wfp4; options: gemm
                                 of 31 tokens and fewer its twin gemm_afp4wfp4_preshuffle, on the same weights
    moe, activations none        fused_moe_mxfp4, twice               weights widened to bfloat16
    moe, activations mxfp4       fused_moe for SiLU without biases    else fused_moe_mxfp4, twice; options: moe

On gfx942, where this backend is used by name alone, ``auto`` is none: there are no units for FP4.

``gemm_a16wfp4`` of later versions is not used, in spite of its name: it quantises the tokens to MXFP4 inside
(``_mxfp4_quant_op`` in its kernel), so it would be W4A4 where W4A16 was asked for. ``fused_moe`` is not used for the
activation of gpt-oss: from 512 tokens on, later versions quantise the tokens to FP8 there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

from mxfp4_core.backend import No, Numerics, Problem
from mxfp4_rocm.contract import Contract
from mxfp4_rocm.limits import ACTIVATION_PROFILE, ASM_FEATURES, INSTALL, PROFILES, WIDE_MAX, WIDENS

Way = Literal["asm", "triton", "experts", "fused", "widened"]
"""Which kernels, with their layouts."""

NEEDS: Final[dict[Way, tuple[str, ...]]] = {
    "asm": ("gemm_a4w4",),
    "triton": ("gemm_afp4wfp4",),
    "experts": ("fused_moe_mxfp4", "torch_to_triton_dtype"),
    "fused": ("fused_moe", "QuantType", "ActivationType"),
    "widened": ("fused_moe_mxfp4", "torch_to_triton_dtype"),
}
"""What each calls."""

PROVIDERS: Final[dict[Way, str]] = {
    "asm": "aiter gemm_a4w4",
    "triton": "aiter gemm_afp4wfp4 (Triton)",
    "experts": "aiter fused_moe_mxfp4 (Triton)",
    "fused": "aiter fused_moe",
    "widened": "aiter fused_moe_mxfp4 (Triton)",
}
"""What a verdict calls each."""

LAYOUTS: Final[dict[Way, str]] = {
    "asm": "aiter-16x16",
    "triton": "aiter-raw-256",
    "experts": "aiter-raw-128",
    "fused": "aiter-16x16-experts",
    "widened": "aiter-raw-128-bf16",
}
"""The layout that each reads; see ``packed``."""

WIDENED: Final = Numerics(
    scale_byte_0="zero",
    scale_byte_255="refused",
    scale_bytes=(0, WIDE_MAX),
    profiles=PROFILES,
    activation_profile=ACTIVATION_PROFILE,
)
"""Weights become bfloat16, whose exponent ends where E8M0 does: byte 0 is read as zero, 253 to 255 are refused."""

SCALED: Final = Numerics(activation_profile=ACTIVATION_PROFILE, activation="mxfp4")
"""Codes and scale bytes go to the matrix unit as they are."""

ROUNDED_TWICE: Final = 2.0**-8
"""``gemm_a4w4`` gives bfloat16, to which the bias is added: half a unit of the sum, at most that of all products."""


_WIDENED: Final = "W4A16: weights widened to bfloat16; activation='auto' is W4A4 where there are units for it"


@dataclass(frozen=True)
class Choice:
    """What serves a problem.

    Attributes:
        way: which kernels.
        why: the rule that decided, for people.
        numerics: what is computed.
    """

    way: Way
    why: str
    numerics: Numerics


def choose(problem: Problem, contract: Contract) -> Choice | No:
    """Return what serves a linear or moe problem with the AITER of a contract, or why nothing does.

    Args:
        problem: of bfloat16, on a device that has the instructions, or needs none.
        contract: what can be called.
    """
    if problem.device.arch == WIDENS and problem.activation == "auto":
        problem = replace(problem, activation="none")
    picked = _linear(problem, contract) if problem.op == "linear" else _moe(problem, contract)
    if isinstance(picked, No):
        return picked
    way, why = picked
    if not contract.has(*NEEDS[way]):
        return No(
            f"this AITER does not have what {PROVIDERS[way]} needs: {contract.missing(*NEEDS[way])}", INSTALL
        )
    numerics = {"widened": WIDENED, "fused": _fused(contract)}.get(way, SCALED)
    if way in ("asm", "triton", "experts") and problem.options.get("quantizer") == "aiter":
        if not contract.has("dynamic_mxfp4_quant"):
            return No(
                f"this AITER does not have its quantizer: {contract.missing('dynamic_mxfp4_quant')}",
                "leave the option quantizer out",
            )
        numerics = replace(numerics, activation_profile=contract.quantizer_profile)
        why = f"{why}; AITER's quantizer as asked for"
    if way == "asm" and problem.bias:
        numerics = replace(numerics, product_error=ROUNDED_TWICE)
    return Choice(way, why, numerics)


def _linear(problem: Problem, contract: Contract) -> tuple[Way, str] | No:
    if problem.activation == "none":
        return "widened", _WIDENED
    asked = str(problem.options.get("gemm", "auto"))
    if asked == "triton":
        return "triton", "W4A4, gemm = triton as asked for"
    if problem.n < ASM_FEATURES:
        if asked == "asm":
            return No(
                f"n = {problem.n}, gemm_a4w4 is right from {ASM_FEATURES} features of a shard on",
                "set gemm = 'triton'",
            )
        return "triton", f"W4A4, n = {problem.n} is below {ASM_FEATURES}"
    if asked == "auto" and not contract.has("gemm_a4w4"):
        return "triton", f"W4A4, without gemm_a4w4: {contract.missing('gemm_a4w4')}"
    return "asm", f"W4A4, n = {problem.n} is at least {ASM_FEATURES}"


def _moe(problem: Problem, contract: Contract) -> tuple[Way, str] | No:
    asked, gate = str(problem.options.get("moe", "auto")), problem.gate
    if problem.activation == "none" or (problem.activation == "auto" and "gate:clamped" in gate.words):
        if asked == "fused":
            return No("fused_moe quantises the tokens", "set moe = 'triton', or activation = 'mxfp4'")
        by_gate = "W4A16 is what AITER does with this gated activation: weights widened to bfloat16"
        return "widened", _WIDENED if problem.activation == "none" else by_gate
    unfit = ""
    if problem.bias:
        unfit = "biases, which fused_moe leaves out"
    if "gate:clamped" in gate.words:
        unfit = "a clamped gate, which fused_moe does not have in every version"
    elif not gate.is_silu:
        words = ", ".join(sorted(gate.words - {"rows:interleaved"}))
        unfit = f"{words}, and fused_moe is called for SiLU with a gate alone"
    if asked == "triton":
        return "experts", "W4A4, moe = triton as asked for"
    if asked == "fused" and unfit:
        return No(unfit, "set moe = 'triton'")
    if unfit or (asked == "auto" and not contract.has(*NEEDS["fused"])):
        return "experts", f"W4A4, {unfit or 'without fused_moe: ' + contract.missing(*NEEDS['fused'])}"
    return "fused", "W4A4, SiLU without biases"


def _fused(contract: Contract) -> Numerics:
    return Numerics(
        scale_byte_255="refused",
        activation="mxfp4",
        activation_profile=contract.fused_profile,
        hidden="input",
    )


__all__ = ["LAYOUTS", "NEEDS", "PROVIDERS", "SCALED", "WIDENED", "Choice", "Way", "choose"]
