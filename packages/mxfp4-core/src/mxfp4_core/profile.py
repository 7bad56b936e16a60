"""Profiles: a scale rule, a tie rule, and how the ends of the range are treated.

A profile is everything that decides the bytes. Two kinds exist:

* ``rule/ties`` pairs such as ``even/even`` are this project's own: bytes 1 to 254, a zero block gets byte 1, signs of
  zeros are kept;
* named profiles reproduce one peer's quantizer bit for bit, its quirks included. ``docs/scale-rules.md`` lists what
  each one does differently and how that was checked.

Quirks are fields, so that a profile can be read; only a scale that is computed in rounding arithmetic is a function.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

import torch

from mxfp4_core.codec import Ties
from mxfp4_core.errors import ConfigError
from mxfp4_core.format import E8M0_BIAS, E8M0_MAX, E8M0_MIN
from mxfp4_core.scales import RULES, ScaleRule

FLUSH: Final = 1000
"""Element exponent that turns every finite weight into a zero code."""


class Zeros(StrEnum):
    """The sign bit of a code whose magnitude is zero."""

    KEEP = "keep"
    """The sign of the weight."""
    PLUS = "plus"
    """Always plus."""
    PLUS_INPUT = "plus-input"
    """Plus where the quotient is exactly zero, the sign of the weight where it only underflows."""
    MINUS_INPUT = "minus-input"
    """Minus where the quotient is exactly zero, the sign of the weight where it only underflows."""


Exponent = Callable[[torch.Tensor, torch.dtype], torch.Tensor]
"""Block maxima (float64, positive, exact in the dtype of the weight) and that dtype, to int32 exponents."""


@dataclass(frozen=True)
class Profile:
    """Everything that decides the bytes.

    Attributes:
        name: what ``quantize(profile=...)`` takes and what files record.
        rule: the scale rule, exact unless ``exponent`` replaces it.
        ties: the tie rule of the elements.
        peer: whose bytes these are, with the version that was compared; empty for this project's own.
        zeros: the sign of zero codes.
        byte_min: smallest byte of a block that is not zero.
        byte_max: largest byte.
        zero_byte: byte of a block of zeros.
        amax_min: block maxima below are raised to this before the rule applies (not for ``zero_byte``).
        carry_byte: byte where rounding the maximum up leaves FP32 (``even`` at 1.75 * 2**127 and above); None where
            the rule is exact there.
        carry_flush: whether those blocks get zero codes.
        exponent_min: smallest exponent that elements are divided by, where it differs from the one written.
        flush_below: exponents below this give byte ``byte_min`` and zero codes.
        wrap: whether exponents below -127 wrap around in the byte instead of clamping.
        low_tie_up: whether the float32 quotient just below 0.25 becomes 0.5, a slip of floor(2 * q + 0.5).
        exponent: replaces the rule where a peer computes in rounding arithmetic.
        dtypes: weight dtypes that the peer takes; empty means all three.
    """

    name: str
    rule: ScaleRule
    ties: Ties
    peer: str = ""
    zeros: Zeros = Zeros.KEEP
    byte_min: int = E8M0_MIN
    byte_max: int = E8M0_MAX
    zero_byte: int = E8M0_MIN
    amax_min: float = 0.0
    carry_byte: int | None = None
    carry_flush: bool = False
    exponent_min: int | None = None
    flush_below: int | None = None
    wrap: bool = False
    low_tie_up: bool = False
    exponent: Exponent | None = None
    dtypes: tuple[torch.dtype, ...] = ()

    def scale(self, amax: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scale byte of each block and the exponent that its elements are divided by.

        Args:
            amax: float64, any shape, finite, not negative: largest magnitude of each block.
            dtype: dtype of the weight, for peers that compute in it.

        Returns:
            int32 bytes and int32 exponents. The exponent is the byte less 127, except where the peer divides by
            something other than what it writes.
        """
        zero = amax == 0
        raised = torch.where(zero, 1.0, amax).clamp(min=self.amax_min)
        if self.exponent is not None:
            exponent = self.exponent(raised, dtype).to(torch.int32)
        else:
            exponent = self.rule.exponent(raised)
        byte = exponent + E8M0_BIAS
        byte = byte & 0xFF if self.wrap else byte.clamp(self.byte_min, self.byte_max)
        divisor = byte - E8M0_BIAS
        if self.exponent_min is not None:
            divisor = exponent.clamp(min=self.exponent_min)
        if self.flush_below is not None:
            divisor = torch.where(exponent < self.flush_below, FLUSH, divisor)
        if self.carry_byte is not None:
            carries = amax >= 1.75 * 2.0**127
            byte = torch.where(carries, self.carry_byte, byte)
            divisor = torch.where(
                carries, FLUSH if self.carry_flush else self.carry_byte - E8M0_BIAS, divisor
            )
        return torch.where(zero, self.zero_byte, byte).to(torch.int32), torch.where(zero, 0, divisor).to(
            torch.int32
        )


def _log2(value: torch.Tensor) -> torch.Tensor:
    """Return log2 rounded to float32, as the peers' libm does: a value 1 ulp off a power of two may land on it."""
    return torch.log2(value.to(torch.float64)).to(torch.float32)


def _ceil_log2_sixth(amax: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # torchao to_mx RCEIL and ModelOpt MXFP4QTensor: ceil(log2(amax / 6)) with both steps rounded to float32.
    return torch.ceil(_log2(amax.to(torch.float32) / 6.0))


def _floor_log2(amax: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # ggml quantize_row_mxfp4_ref and auto-round quant_mx: floor(log2f(amax)) - 2.
    return torch.floor(_log2(amax)) - 2


def _bits_of_sixth(amax: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # triton_kernels: exponent field of float32(amax / 6), plus one if any mantissa bit is set.
    return _round_up(amax.to(torch.float32) / 6.0)


def _bits_times_sixth(amax: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # AITER HIP multiplies by float32(1 / 6), which differs from the division for subnormal maxima.
    return _round_up(amax.to(torch.float32) * torch.tensor(1 / 6, dtype=torch.float32))


def _round_up(scale: torch.Tensor) -> torch.Tensor:
    return ((scale.view(torch.int32) + 0x7FFFFF) >> 23) - E8M0_BIAS


def _msmodelslim_minmax(amax: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # msmodelslim calculate_qparam: floor(log2(amax * 8/7 + 9.6e-7)) - 2, each step rounded to the dtype of the weight.
    return (torch.floor(torch.log2(amax.to(dtype) * (8 / 7) + 9.6e-7)).to(torch.float32) - 2).clamp(max=125)


_FLOOR, _EVEN, _RCEIL, _CEIL = RULES["floor"], RULES["even"], RULES["rceil"], RULES["ceil"]
_TORCHAO = "torchao 0.18.0, MXTensor.to_mx"

_PEERS = (
    Profile(
        "compressed-tensors",
        _EVEN,
        Ties.EVEN,
        peer="compressed-tensors 0.20.0, MXFP4PackedCompressor",
        zeros=Zeros.PLUS_INPUT,
        byte_min=0,
        zero_byte=0,
        carry_byte=127,
        carry_flush=True,
    ),
    Profile(
        "quark",
        _EVEN,
        Ties.EVEN,
        peer="amd-quark 0.13, static weight export, scale_calculation_mode even",
        zeros=Zeros.PLUS,
        carry_byte=254,
        exponent_min=-127,
    ),
    Profile("torchao-floor", _FLOOR, Ties.EVEN, peer=_TORCHAO, byte_min=0, zero_byte=0, exponent_min=-126),
    Profile("torchao-ceil", _CEIL, Ties.EVEN, peer=_TORCHAO, byte_min=0, zero_byte=0, exponent_min=-126),
    Profile("torchao-even", _EVEN, Ties.EVEN, peer=_TORCHAO, byte_min=0, zero_byte=0, exponent_min=-126),
    Profile(
        "torchao-rceil",
        _RCEIL,
        Ties.EVEN,
        peer=_TORCHAO,
        byte_min=0,
        zero_byte=0,
        flush_below=-126,
        exponent=_ceil_log2_sixth,
    ),
    Profile(
        "aiter-triton",
        _EVEN,
        Ties.EVEN,
        peer="AITER e4048607, Triton dynamic_mxfp4_quant",
        byte_min=0,
        zero_byte=0,
        carry_byte=254,
    ),
    Profile(
        "aiter-triton-0.1.7",
        _EVEN,
        Ties.AWAY,
        peer="amd-aiter 0.1.7.post2, Triton dynamic_mxfp4_quant",
        byte_min=0,
        zero_byte=0,
        carry_byte=254,
    ),
    Profile(
        "aiter-hip",
        _RCEIL,
        Ties.EVEN,
        peer="AITER e4048607, mx_quant_utils.h round_up",
        byte_min=0,
        zero_byte=0,
        exponent=_bits_times_sixth,
    ),
    Profile(
        "vllm",
        _EVEN,
        Ties.EVEN,
        peer="vLLM 0.33.0, online downcast_to_mxfp",
        byte_min=0,
        zero_byte=0,
        carry_byte=254,
        dtypes=(torch.bfloat16, torch.float16),
    ),
    Profile(
        "triton-kernels",
        _RCEIL,
        Ties.EVEN,
        peer="triton_kernels 018a674f, downcast_to_mxfp_torch ROUND_UP",
        byte_min=0,
        zero_byte=0,
        exponent=_bits_of_sixth,
    ),
    Profile(
        "triton-kernels-old",
        _RCEIL,
        Ties.AWAY,
        peer="triton_kernels as shipped in vLLM 0.33.0, downcast_to_mxfp_torch ROUND_UP",
        byte_min=0,
        zero_byte=0,
        exponent=_bits_of_sixth,
    ),
    Profile(
        "modelopt",
        _RCEIL,
        Ties.ZERO,
        peer="nvidia-modelopt 0.47.0, MXFP4QTensor.quantize",
        zeros=Zeros.MINUS_INPUT,
        byte_min=0,
        zero_byte=0,
        exponent=_ceil_log2_sixth,
    ),
    Profile(
        "deepgemm",
        _RCEIL,
        Ties.ZERO,
        peer="DeepGEMM 54e2261, per_token_cast_to_fp4 with use_ue8m0",
        zeros=Zeros.PLUS,
        zero_byte=112,
        amax_min=1e-4,
    ),
    Profile("tilekernels", _RCEIL, Ties.EVEN, peer="TileKernels 36d9e45, cast e2m1 1x32 round_sf"),
    Profile(
        "gguf",
        _FLOOR,
        Ties.ZERO,
        peer="ggml d99724f2 quantize_row_mxfp4_ref, gguf-py 0.19.0",
        zeros=Zeros.PLUS,
        zero_byte=0,
        wrap=True,
        exponent=_floor_log2,
    ),
    Profile(
        "msmodelslim",
        _EVEN,
        Ties.AWAY,
        peer="msmodelslim 26.1.0, minmax",
        zeros=Zeros.PLUS_INPUT,
        byte_min=0,
        zero_byte=105,
        low_tie_up=True,
        exponent=_msmodelslim_minmax,
    ),
    Profile(
        "auto-round",
        _FLOOR,
        Ties.EVEN,
        peer="auto-round 0.16.1, data type mx_fp4",
        zeros=Zeros.PLUS_INPUT,
        byte_min=0,
        zero_byte=126,
        low_tie_up=True,
        exponent=_floor_log2,
    ),
)

_BY_NAME: Mapping[str, Profile] = MappingProxyType({profile.name: profile for profile in _PEERS})


def profiles() -> Mapping[str, Profile]:
    """Return the named profiles, read-only, in the order of ``docs/scale-rules.md``."""
    return _BY_NAME


def resolve(profile: str | None = None, *, rule: str | None = None, ties: str | None = None) -> Profile:
    """Return the profile that a name, or a rule and a tie rule, stand for.

    Args:
        profile: a named profile, or a ``rule/ties`` pair such as ``even/even``.
        rule: a scale rule; ``even`` if neither is given.
        ties: ``even``, ``away`` or ``zero``; ``even`` if not given.

    Raises:
        ConfigError: unknown names, or a profile together with a rule or ties.
    """
    if profile is None:
        scale_rule, tie_rule = ScaleRule.parse("even" if rule is None else rule), _parse_ties(ties)
        return Profile(f"{scale_rule.name}/{tie_rule}", scale_rule, tie_rule)
    if rule is not None or ties is not None:
        raise ConfigError(
            "a profile and a rule were both given",
            seen=f"profile={profile!r}, rule={rule!r}, ties={ties!r}",
            rule="a profile fixes the scale rule and the tie rule",
            fix="drop profile, or drop rule and ties",
        )
    if profile in _BY_NAME:
        return _BY_NAME[profile]
    if "/" in profile:
        scale, _, tie = profile.partition("/")
        return resolve(rule=scale, ties=tie)
    near = difflib.get_close_matches(profile, [*_BY_NAME, *RULES], n=1, cutoff=0.5)
    fix = "see mxfp4_core.profiles() for the names"
    if near:
        fix = f"did you mean rule={near[0]!r}?" if near[0] in RULES else f"did you mean {near[0]!r}?"
    raise ConfigError(
        "no profile has that name",
        seen=repr(profile),
        rule=f"a profile is one of {', '.join(_BY_NAME)}, or a pair such as even/even",
        fix=fix,
    )


def _parse_ties(ties: str | None) -> Ties:
    try:
        return Ties.EVEN if ties is None else Ties(ties)
    except ValueError:
        raise ConfigError(
            "no tie rule has that name",
            seen=repr(ties),
            rule=f"ties is one of {', '.join(Ties)}",
            fix="use 'even', the default",
        ) from None


__all__ = ["FLUSH", "Profile", "Zeros", "profiles", "resolve"]
