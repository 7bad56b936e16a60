"""Transforms that look at what they move: codes in a container of 8 bits, multipliers that must not be zero, biases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from mxfp4_core.dialects import Bytes, Recipe
from mxfp4_core.errors import DialectError

if TYPE_CHECKING:
    import torch

_E4M3 = (0x00, 0x30, 0x38, 0x3C, 0x40, 0x44, 0x48, 0x4C)
"""The bytes of 0, 0.5, 1, 1.5, 2, 3, 4 and 6 in E4M3: bias 7, three bits of mantissa."""


@dataclass(frozen=True)
class Narrowed(Recipe):
    """Codes U8 ``[N, K/2]`` from the same values in E4M3 ``[N, K]``; made where a file holds the older container.

    Args:
        of: the values.
    """

    of: Recipe

    @property
    def children(self) -> tuple[Recipe, ...]:
        """The one below."""
        return (self.of,)

    def rows(self, source: Bytes, start: int, stop: int) -> torch.Tensor:
        """Look each byte up; a value that E2M1 does not have is an error that names the tensor."""
        import torch

        codes = torch.full((256,), 255, dtype=torch.uint8)
        for code, byte in enumerate(_E4M3):
            codes[byte], codes[byte | 0x80] = code, code | 8
        stored = self.of.rows(source, start, stop)
        found = codes[stored.view(torch.uint8).long()]
        if bool((found == 255).any()):
            row, column = (found == 255).nonzero()[0].tolist()
            value = float(stored.view(torch.float8_e4m3fn)[row, column])
            _refuse(
                self.names[0], f"{value} at [{start + row}, {column}]", "its values are those of E2M1: 0 to 6"
            )
        return found[:, 0::2] | (found[:, 1::2] << 4)


@dataclass(frozen=True)
class Multiplier(Recipe):
    """Multipliers of the input F32 ``[K]``, none of them zero, negative or not finite.

    Args:
        name: the stored tensor.
        of: the recipe that reads it.
    """

    name: str
    of: Recipe

    @property
    def children(self) -> tuple[Recipe, ...]:
        """The one below."""
        return (self.of,)

    def rows(self, source: Bytes, start: int, stop: int) -> torch.Tensor:
        """Pass the bits on, after a look at the values."""
        import torch

        made = self.of.rows(source, start, stop)
        values = made.view(torch.float32)
        wrong = ~(torch.isfinite(values) & (values > 0))
        if bool(wrong.any()):
            at = int(wrong.nonzero()[0])
            seen = f"{float(values[at])} at [{start + at}]"
            _refuse(self.name, seen, "each input is multiplied by a positive, finite number")
        return made


@dataclass(frozen=True)
class Wide(Recipe):
    """Values F32 of the same numbers in BF16 or F16, which is exact.

    Args:
        of: the recipe that reads them.
    """

    of: Recipe

    @property
    def children(self) -> tuple[Recipe, ...]:
        """The one below."""
        return (self.of,)

    def rows(self, source: Bytes, start: int, stop: int) -> torch.Tensor:
        """Widen them."""
        import torch

        return self.of.load(source, start, stop).to(torch.float32).view(torch.int32)


def _refuse(name: str, seen: str, rule: str) -> NoReturn:
    raise DialectError(
        f"tensor {name!r} of a modelslim checkpoint",
        seen=seen,
        rule=rule,
        fix="export the checkpoint again with msmodelslim",
    )


__all__ = ["Multiplier", "Narrowed", "Wide"]
