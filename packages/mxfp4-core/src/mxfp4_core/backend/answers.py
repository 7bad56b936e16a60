"""What a backend answers: whether it takes a problem, and what it computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Yes:
    """The backend takes the problem.

    Attributes:
        note: what a person should know, for example which provider or kernel will run.
        temporary_bytes: memory that one call needs beside its inputs, its output and the packed weight; at
            ``m=None`` the part that does not depend on m.
    """

    note: str = ""
    temporary_bytes: int = 0


@dataclass(frozen=True)
class No:
    """The backend does not take the problem.

    Attributes:
        reason: the value that was seen and the rule it breaks.
        fix: one thing that the reader can do.
    """

    reason: str
    fix: str


Verdict = Yes | No


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """What a backend computes, where the format leaves a choice or a kernel takes a short cut.

    Attributes:
        scale_byte_0: a block with scale byte 0 is worth 2^-127, or is read as zero.
        scale_byte_255: a block with scale byte 255 is NaN as the format says, is infinite, or is refused by
            ``pack``.
        scale_bytes: lowest and highest scale byte, beside 255, that ``pack`` takes; it refuses the others.
        minus_zero: code 8 survives pack and unpack, or comes back as code 0.
        emulated: weights are widened to a float dtype before an ordinary matmul.
        product_error: largest relative error of one product x * w; 0.0 where it is exact.
        accumulate: dtype of the sum over k.
        profiles: profiles of ``Backend.quantize``; empty if there is no such op.
        activation_profile: profile by which x is quantised where ``Problem.activation`` asks for it.
    """

    scale_byte_0: Literal["2^-127", "zero"] = "2^-127"
    scale_byte_255: Literal["nan", "inf", "refused"] = "nan"
    scale_bytes: tuple[int, int] = (0, 254)
    minus_zero: Literal["kept", "dropped"] = "kept"
    emulated: bool = False
    product_error: float = 0.0
    accumulate: str = "float32"
    profiles: frozenset[str] = frozenset()
    activation_profile: str = ""


__all__ = ["No", "Numerics", "Verdict", "Yes"]
