"""What a backend answers: whether it takes a problem, and what it computes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal


class Rank(IntEnum):
    """How a backend stands among those that may be chosen unnamed; numbers in between may be used, too."""

    EMULATED = 100
    """It widens the weights before an ordinary matmul."""
    PORTABLE = 200
    """It computes on the codes, with kernels that are not made for this device."""
    NATIVE = 300
    """It computes on the codes, with kernels made for this device."""


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """What a backend computes, where the format leaves a choice or a kernel takes a short cut.

    Attributes:
        scale_byte_0: a block of a weight with scale byte 0 is worth 2^-127, or is read as zero.
        scale_byte_255: a block of a weight with scale byte 255 is NaN as the format says, is infinite, or is refused by
            ``pack``.
        scale_bytes: lowest and highest scale byte, beside 255, that ``pack`` takes; it refuses the others.
        minus_zero: code 8 survives pack and unpack, or comes back as code 0.
        emulated: weights are widened to a float dtype before an ordinary matmul.
        product_error: largest relative error of one product x * w; 0.0 where it is exact.
        accumulate: torch's name of the dtype of the sum over k.
        profiles: profiles of ``Backend.quantize``; empty if there is no such op.
        activation: how x is quantised. None: as ``Problem.activation`` says, and not at all for ``auto``.
        activation_profile: profile by which x is quantised; empty for ``none`` and ``fp8``. ``Backend.numerics`` has
            that of ``mxfp4``, an answer that of its problem.
        hidden: to what the hidden state between the two products of an expert is rounded before it is quantised:
            it stays ``float32`` as the sums are, or gets the dtype of the ``input``. Likewise x times its multiplier.
    """

    scale_byte_0: Literal["2^-127", "zero"] = "2^-127"
    scale_byte_255: Literal["nan", "inf", "refused"] = "nan"
    scale_bytes: tuple[int, int] = (0, 254)
    minus_zero: Literal["kept", "dropped"] = "kept"
    emulated: bool = False
    product_error: float = 0.0
    accumulate: str = "float32"
    profiles: frozenset[str] = frozenset()
    activation: Literal["none", "mxfp4", "mxfp8", "fp8"] | None = None
    activation_profile: str = ""
    hidden: Literal["float32", "input"] = "float32"


@dataclass(frozen=True)
class Yes:
    """The backend takes the problem, and this is true for it.

    Attributes:
        note: what a person should know, for example which kernel will run.
        temporary_bytes: memory that one call needs beside its inputs, its output and the packed weight; at
            ``m=None`` the part that does not depend on m.
        numerics: what is computed for this problem; None: ``Backend.numerics``.
        rank: larger first among the backends that may be chosen unnamed, after all that do not emulate; None:
            `Rank.EMULATED` if the numerics are emulated, else `Rank.NATIVE`.
        provider: the package or library whose kernels run, where a backend has several; else empty.
        layout: variant of the layout, where it depends on the problem; else empty.
        automatic: whether it may be chosen for this problem without being named; None: on the devices of
            `Backend.automatic_on`.
    """

    note: str = ""
    temporary_bytes: int = 0
    numerics: Numerics | None = None
    rank: int | None = None
    provider: str = ""
    layout: str = ""
    automatic: bool | None = None


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

__all__ = ["No", "Numerics", "Rank", "Verdict", "Yes"]
