"""PTX that turns eight 16-bit floats into eight codes: two values in a register, no branch, no compare.

With ``q = |x| * 2^-E``, which is exact wherever it matters, and ``s`` the power of two at or below ``q``, at least 1,
the sum ``q + m`` with ``m = s * 2^(mantissa bits - 1)`` has its last bit at the step of E2M1 there, so the addition
rounds. The sum less ``m`` counts the steps from zero, and the exponent of ``s`` adds two codes a binade.

Ties: the addition rounds to even. Away from zero, ``q`` gets its last bit, which lifts ties and nothing else across
(no tie has that bit). Toward zero, ``q`` is multiplied by the number below 1 in the same instruction: a tie falls
below itself, and what was above stays above, since the next float is further than the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch

from mxfp4_core.arithmetic.codec import Ties
from mxfp4_core.arithmetic.profile import Profile, Zeros


@dataclass(frozen=True)
class _Format:
    name: str
    mantissa: int
    one: int
    factors: int  # 2^-E as so many factors: float16 has too few exponents for one


_FORMATS: Final = {
    torch.bfloat16: _Format("bf16x2", 7, 0x3F80, 1),
    torch.float16: _Format("f16x2", 10, 0x3C00, 2),
}

_SUM: Final = {
    Ties.EVEN: "add.rn.{f} r, q, m;",
    Ties.AWAY: "or.b32 q, q, 0x00010001;\nadd.rn.{f} r, q, m;",
    Ties.ZERO: "fma.rn.{f} r, q, below, m;",
}

# t holds bits that are signs of codes at 15 and 31.
_SIGN: Final = {
    Zeros.KEEP: "mov.b32 t, {x};",
    Zeros.PLUS: "add.u32 t, r, 0x00070007;\nshl.b32 t, t, 12;\nand.b32 t, t, {x};",
    Zeros.PLUS_INPUT: "add.u32 t, a, 0x7fff7fff;\nand.b32 t, t, {x};",
    Zeros.MINUS_INPUT: "add.u32 t, a, 0x7fff7fff;\nnot.b32 t, t;\nor.b32 t, t, {x};",
}


def _twice(bits: int) -> str:
    return f"0x{bits:04x}{bits:04x}"


def _pair(form: _Format, profile: Profile, i: int) -> str:
    """Return the lines that leave the two codes of input ``i`` in the low byte of ``p{i}``."""
    x, half = f"${1 + i}", form.mantissa - 1
    lines = ["and.b32 a, {x}, 0x7fff7fff;", f"mul.rn.{{f}} q, a, ${5 + i};"]
    lines += [f"mul.rn.{{f}} q, q, ${9 + i};"] * (form.factors - 1)
    lines += [
        f"and.b32 s, q, {_twice(0x7FFF >> form.mantissa << form.mantissa)};",
        "max.u16x2 s, s, one;",
        f"add.u32 m, s, {_twice(half << form.mantissa)};",
        _SUM[profile.ties],
        "sub.u32 r, r, m;",
        f"shr.u32 s, s, {half};",
        "add.u32 r, r, s;",
        f"sub.u32 r, r, {_twice(form.one >> half)};",
        "min.u16x2 r, r, seven;",
        _SIGN[profile.zeros],
        "shr.u32 t, t, 12;",
        "and.b32 t, t, 0x00080008;",
        "or.b32 r, r, t;",
        "shr.u32 t, r, 12;",
        f"or.b32 p{i}, r, t;",
    ]
    return "\n".join(lines).format(f=form.name, x=x)


@lru_cache(maxsize=128)
def encoder(profile: Profile, dtype: torch.dtype) -> tuple[str, str]:
    """Return PTX and its constraints for ``inline_asm_elementwise`` with ``pack=4``.

    Args:
        profile: its ties and its zeros are used.
        dtype: bfloat16 or float16.

    Returns:
        Text whose inputs are pairs of values and, twice in a word, the factors whose product is 2^-E: one for
        bfloat16, two for float16; its output is four bytes of codes. It needs compute capability 9.0.
    """
    form = _FORMATS[dtype]
    lines = [
        "{",
        ".reg .b32 a, q, s, m, r, t, p0, p1, p2, p3, d0, d1, one, seven, below;",
        f"mov.b32 one, {_twice(form.one)};",
        f"mov.b32 below, {_twice(form.one - 1)};",
        "mov.b32 seven, 0x00070007;",
        *(_pair(form, profile, i) for i in range(4)),
        "prmt.b32 d0, p0, p1, 0x0040;",
        "prmt.b32 d1, p2, p3, 0x0040;",
        "prmt.b32 $0, d0, d1, 0x5410;",
        "}",
    ]
    return "\n".join(lines), ",".join(["=r"] + ["r"] * 4 * (1 + form.factors))


__all__ = ["encoder"]
