"""Scale rules: from the largest magnitude of a block to the exponent of its scale.

Every published rule is one comparison. With ``a`` the largest magnitude of the block and ``D`` the limit of the rule,
the exponent is the smallest integer ``E`` such that

    a <  D * 2**E    (strict)      or      a <= D * 2**E    (closed).

``D`` is thus the largest quotient ``a / 2**E`` that the rule lets happen; what lies above 6 is clipped to 6.

    rule       D  comparison  the same as            clips          who writes it
    floor      8  strict      floor(log2 a) - 2      from 6 to 8    OCP v1.0 section 6.3, gguf, auto-round
    even       7  strict      carry at mantissa 1.75 from 6 to 7    Quark, compressed-tensors, vLLM, AITER Triton
    rceil      6  closed      ceil(log2(a / 6))      never          ModelOpt, triton_kernels, DeepGEMM, PTX cvt
    ceil       4  closed      ceil(log2 a) - 2       never          torchao CEIL
    ceil_d(D)  D  closed      ceil(log2(a / D))      from 6 to D    auto-round v2 and MXAttention (D = 7.25)
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mxfp4_core._text import did_you_mean
from mxfp4_core.errors import ConfigError

if TYPE_CHECKING:
    import torch

_CEIL_D = re.compile(r"ceil_d\(\s*([0-9.]+)\s*\)")
_CEIL_D_RANGE = (4.0, 8.0)


@dataclass(frozen=True)
class ScaleRule:
    """One scale rule.

    Attributes:
        name: as written in configs and files, for example ``even`` or ``ceil_d(7.25)``.
        limit: ``D``, the largest quotient that the rule lets happen.
        strict: whether ``a`` must stay below ``D * 2**E`` (True) or may reach it (False).
    """

    name: str
    limit: float
    strict: bool

    def exponent(self, amax: torch.Tensor) -> torch.Tensor:
        """Return the smallest exponent that satisfies the rule, without any clamp.

        Args:
            amax: float64, any shape, finite and positive: the largest magnitude of each block.

        Returns:
            int32 tensor of the same shape: ``E``, exact for every float64.
        """
        import torch

        # a = m * 2**x and D = d * 2**y with m, d in [0.5, 1): the answer is x - y, or one more when m has passed d.
        mantissa, exponent = torch.frexp(amax)
        limit_mantissa, limit_exponent = math.frexp(self.limit)
        passed = mantissa >= limit_mantissa if self.strict else mantissa > limit_mantissa
        return (exponent - limit_exponent + passed.to(torch.int32)).to(torch.int32)

    @classmethod
    def parse(cls, name: str) -> ScaleRule:
        """Return the rule of that name.

        Args:
            name: ``floor``, ``even``, ``rceil``, ``ceil`` or ``ceil_d(D)`` with 4 <= D <= 8.

        Raises:
            ConfigError: no rule has that name, or D lies outside its range.
        """
        if name in RULES:
            return RULES[name]
        if match := _CEIL_D.fullmatch(name):
            try:
                limit = float(match.group(1))
            except ValueError:
                limit = math.nan
            low, high = _CEIL_D_RANGE
            if low <= limit <= high:
                return cls(f"ceil_d({limit:g})", limit, strict=False)
            raise ConfigError(
                f"scale rule {name!r} cannot be used",
                seen=f"D = {match.group(1)}",
                rule=f"D is the largest quotient of a block; {low:g} <= D <= {high:g}, since E2M1 ends at 6",
                fix="use ceil_d(7.25), or a D inside the range",
            )
        raise ConfigError(
            "no scale rule has that name",
            seen=repr(name),
            rule=f"a scale rule is one of {', '.join(RULES)} or ceil_d(D)",
            fix=did_you_mean(name, [*RULES, "ceil_d(7.25)"], "use 'even', the default"),
        )


RULES: dict[str, ScaleRule] = {
    "floor": ScaleRule("floor", 8.0, strict=True),
    "even": ScaleRule("even", 7.0, strict=True),
    "rceil": ScaleRule("rceil", 6.0, strict=False),
    "ceil": ScaleRule("ceil", 4.0, strict=False),
}

E4M3_RULES: dict[str, ScaleRule] = {
    "floor": ScaleRule("floor", 512.0, strict=True),
    "rceil": ScaleRule("rceil", 448.0, strict=False),
}
"""The same rules for elements of E4M3, whose largest exponent is 8 and whose largest value is 448."""

__all__ = ["E4M3_RULES", "RULES", "ScaleRule"]
