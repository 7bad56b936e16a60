"""Named blocks, with the bytes that each scale rule must give: zeros, ties, borders of rules, ends of the range.

Expected bytes are written as ``scale:codes``, hexadecimal, one digit for each code of the leading values; the rest of
the block is zeros. Every value is a bfloat16 number. The bytes follow from the definitions in ``docs/scale-rules.md``
by exact fractions, not from an implementation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mxfp4_core.arithmetic import BLOCK

if TYPE_CHECKING:
    from torch import Tensor

RULES = ("floor", "even", "rceil", "ceil", "ceil_d(7.25)")
"""The rules of the columns below."""


@dataclass(frozen=True)
class Block:
    """One block of 32 values.

    Attributes:
        name: what is special about it.
        values: leading values; zeros follow.
        bytes: ``scale:codes`` for each of ``RULES``, with ties to even.
    """

    name: str
    values: tuple[float, ...]
    bytes: tuple[str, str, str, str, str]

    @property
    def weight(self) -> Tensor:
        """The block as float32 [32]."""
        import torch

        return torch.tensor([*self.values, *[0.0] * (BLOCK - len(self.values))])

    def expected(self, rule: str) -> tuple[int, list[int]]:
        """Return the scale byte and the 32 codes for one of ``RULES`` with ties to even."""
        return parse(self.bytes[RULES.index(rule)])


def parse(text: str) -> tuple[int, list[int]]:
    """Return the scale byte and the 32 codes of ``scale:codes``."""
    scale, _, codes = text.partition(":")
    return int(scale, 16), [*(int(code, 16) for code in codes), *[0] * (BLOCK - len(codes))]


_MINUS = f"01:{'8' * 32}"

BLOCKS = (
    Block("zeros", (), ("01:", "01:", "01:", "01:", "01:")),
    Block("minus zeros", (-0.0,) * 32, (_MINUS, _MINUS, _MINUS, _MINUS, _MINUS)),
    Block("one", (1.0,), ("7d:6", "7d:6", "7d:6", "7d:6", "7d:6")),
    Block(
        "every code",
        (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0),
        (
            "7f:0123456789abcdef",
            "7f:0123456789abcdef",
            "7f:0123456789abcdef",
            "80:00122345889aabcd",
            "7f:0123456789abcdef",
        ),
    ),
    Block(
        "ties",
        (6.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.25, -0.75, -1.25, -1.75, -2.5, -3.5, -5.0),
        (
            "7f:702244668aaccee",
            "7f:702244668aaccee",
            "7f:702244668aaccee",
            "80:50112244899aacc",
            "7f:702244668aaccee",
        ),
    ),
    Block(
        "just below ties",
        (6.0, 0.2490234375, 0.74609375, 1.2421875, 1.7421875, 2.484375, 3.484375, 4.96875),
        ("7f:70123456", "7f:70123456", "7f:70123456", "80:50112234", "7f:70123456"),
    ),
    Block(
        "just above ties",
        (6.0, 0.251953125, 0.75390625, 1.2578125, 1.7578125, 2.515625, 3.515625, 5.03125),
        ("7f:71234567", "7f:71234567", "7f:71234567", "80:50112345", "7f:71234567"),
    ),
    Block("below 4", (3.984375, 1.0, -0.25), ("7e:749", "7f:628", "7f:628", "7f:628", "7f:628")),
    Block("4", (4.0, 1.0, -0.25), ("7f:628", "7f:628", "7f:628", "7f:628", "7f:628")),
    Block("above 4", (4.03125, 1.0, -0.25), ("7f:628", "7f:628", "7f:628", "80:418", "7f:628")),
    Block("below 6", (5.96875, 1.0, -0.25), ("7f:728", "7f:728", "7f:728", "80:518", "7f:728")),
    Block("6", (6.0, 1.0, -0.25), ("7f:728", "7f:728", "7f:728", "80:518", "7f:728")),
    Block("above 6", (6.03125, 1.0, -0.25), ("7f:728", "7f:728", "80:518", "80:518", "7f:728")),
    Block("below 7", (6.96875, 1.0, -0.25), ("7f:728", "7f:728", "80:518", "80:518", "7f:728")),
    Block("7", (7.0, 1.0, -0.25), ("7f:728", "80:618", "80:618", "80:618", "7f:728")),
    Block("above 7", (7.03125, 1.0, -0.25), ("7f:728", "80:618", "80:618", "80:618", "7f:728")),
    Block("7.25", (7.25, 1.0, -0.25), ("7f:728", "80:618", "80:618", "80:618", "7f:728")),
    Block("above 7.25", (7.28125, 1.0, -0.25), ("7f:728", "80:618", "80:618", "80:618", "80:618")),
    Block("below 8", (7.96875, 1.0, -0.25), ("7f:728", "80:618", "80:618", "80:618", "80:618")),
    Block("8", (8.0, 1.0, -0.25), ("80:618", "80:618", "80:618", "80:618", "80:618")),
    Block("above 8", (8.0625, 1.0, -0.25), ("80:618", "80:618", "80:618", "81:408", "80:618")),
    Block("an outlier", (-448.0, 1.0, 14.0, -64.0), ("85:f00a", "86:e009", "86:e009", "86:e009", "85:f00a")),
    Block(
        "underflow to signed zeros",
        (1.0, 9.5367431640625e-07, -9.5367431640625e-07),
        ("7d:608", "7d:608", "7d:608", "7d:608", "7d:608"),
    ),
    Block("smallest bfloat16", (2.0**-133, -(2.0**-133)), ("01:08", "01:08", "01:08", "01:08", "01:08")),
    Block(
        "smallest normal",
        (2.0**-126, 2.0**-127, -(2.0**-130)),
        ("01:218", "01:218", "01:218", "01:218", "01:218"),
    ),
    Block(
        "6 times the smallest scale",
        (1.5 * 2.0**-124, 2.0**-126),
        ("01:72", "01:72", "01:72", "02:51", "01:72"),
    ),
    Block(
        "largest bfloat16",
        (1.9921875 * 2.0**127, -(2.0**127), 2.0**120),
        ("fc:7e0", "fd:6c0", "fd:6c0", "fd:6c0", "fd:6c0"),
    ),
    Block(
        "largest power of two",
        (2.0**127, 2.0**126, -(2.0**125)),
        ("fc:64a", "fc:64a", "fc:64a", "fc:64a", "fc:64a"),
    ),
)

TIES = {"even": "7f:702244668aaccee", "away": "7f:712345679abcdef", "zero": "7f:7012345689abcde"}
"""The block ``ties`` under scale rule ``even``, for each tie rule."""
