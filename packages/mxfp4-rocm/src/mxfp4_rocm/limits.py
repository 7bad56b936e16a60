"""Sizes and names that verdicts need: importing this takes no torch."""

from __future__ import annotations

from typing import Final

from mxfp4_core.arithmetic import RULES
from mxfp4_core.config import PROFILE_NAMES, TIES

ASM_FEATURES: Final = 256
"""Fewest features for ``gemm_a4w4``. Below, its tiles lose precision (sglang#21431), and its choice of kernels gives
wrong rows at 128 and fewer (SGLang 0.5.23, ``quark_w4a4_mxfp4.py``). Of a shard; so the whole has as many, too."""

FEW_TOKENS: Final = 31
"""Most tokens for the preshuffled Triton GEMM: from 32 on it wants the scales of the tokens swizzled, too."""

WIDE_MAX: Final = 252
"""Highest scale byte where weights are widened: 6 * 2^(253 - 127) is no bfloat16 (machine code, 2026-11-27)."""

EXPERT_K: Final = 128
"""Columns that the Triton kernel for experts reads at a time; without a mask only whole ones are read."""

EXPERT_N: Final = 64
"""Rows of a weight that it computes at a time."""

SIZE_MAX: Final = 2**31 - 1
"""Largest n, k, and rows of all experts together: kernels count in 32 bits."""

MAX_EXPERTS: Final = 4096
"""Experts on a rank. What is sorted is a table of tokens by experts."""

PROFILES: Final = frozenset(PROFILE_NAMES) | {
    f"{rule}/{ties}" for rule in (*RULES, "ceil_d(7.25)") for ties in TIES
}
"""Profiles of the quantizer, which is the core's: every named one and every pair of a rule and a tie rule."""

ACTIVATION_PROFILE: Final = "even/even"
"""The rule by which the core quantises tokens: the word ``mxfp4``."""

DEVICES: Final = "gfx95"
"""How the architectures begin that have matrix instructions for scaled FP4."""

WIDENS: Final = "gfx942"
"""An architecture without them for which AITER's kernel for experts compiles with bfloat16 tokens. Not gfx90a, whose
matrix units flush the subnormal operands that scale bytes 0 and 1 make."""

PROVEN: Final = "amd-aiter 0.1.7.post2.dev18"
"""The version whose kernels were run: in an emulator of the instruction set, in Triton's interpreter, on an H200."""

INSTALL: Final = f"pip install {PROVEN.replace(' ', '==')}, or build ROCm/aiter from its repository"
"""By this package's own name pip would take whatever a stranger has put under it on PyPI."""

__all__ = [
    "ACTIVATION_PROFILE",
    "ASM_FEATURES",
    "DEVICES",
    "EXPERT_K",
    "EXPERT_N",
    "FEW_TOKENS",
    "INSTALL",
    "MAX_EXPERTS",
    "PROFILES",
    "PROVEN",
    "SIZE_MAX",
    "WIDENS",
    "WIDE_MAX",
]
