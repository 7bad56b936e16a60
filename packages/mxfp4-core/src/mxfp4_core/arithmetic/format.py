"""The MXFP4 format: every constant that the rest of the project builds on.

Source: OCP Microscaling Formats (MX) Specification v1.0, section numbers beside each constant. The normative page with
the corner cases is ``docs/format.md``; a test compares its table with this module. This module imports nothing.
"""

from __future__ import annotations

from typing import Final

BLOCK: Final = 32
"""Values that share one scale: consecutive elements of the last (reduction, K) axis. Section 5.2, table 1."""

E2M1_VALUES: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""Value of each E2M1 code; code = sign << 3 | magnitude index. No infinity, no NaN. Section 5.3.3, table 5."""

E2M1_THRESHOLDS: Final = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
"""Midpoints between neighbouring magnitudes: magnitude index = how many of these a quotient has passed."""

E2M1_MAX: Final = 6.0  # 2**2 * 1.5, code 7
SIGN_BIT: Final = 0x8

E4M3_MAX: Final = 448.0
"""Largest E4M3 value, 2**8 * 1.75; code 0x7f is NaN, and there is no infinity. Section 5.3.1, table 1."""

GROUP: Final = 512
"""Values that share one scale of the outer level, where a format has two levels: Ascend's level0_block_size."""

E8M0_BIAS: Final = 127
"""A scale byte b stands for 2 ** (b - 127). Section 5.4.1, table 7."""

E8M0_NAN: Final = 255
"""The one byte that is no number: every value of its block is NaN. Decided on the byte, never on a decoded float."""

E8M0_MIN: Final = 1  # 2**-126: readers disagree on byte 0 (2**-127 or zero), so nothing is written below 1
E8M0_MAX: Final = 254  # 2**127

BITS_PER_VALUE: Final = 4 + 8 / BLOCK  # 4.25

__all__ = [
    "BITS_PER_VALUE",
    "BLOCK",
    "E2M1_MAX",
    "E2M1_THRESHOLDS",
    "E2M1_VALUES",
    "E4M3_MAX",
    "E8M0_BIAS",
    "E8M0_MAX",
    "E8M0_MIN",
    "E8M0_NAN",
    "GROUP",
    "SIGN_BIT",
]
