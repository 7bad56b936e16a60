"""A true result and how far from it a correct one may be."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

EPS32 = 2.0**-23
FLUSHED = 2.0**-126


@dataclass(frozen=True)
class Answer:
    """The true result and the errors of a correct one.

    Attributes:
        value: float64.
        bound: float64 of the same shape: largest error of each element.
        noise: largest norm of all errors, relative to the norm of the finite values; infinite if only ``bound`` counts.
        lost: bool of the same shape: where sums or values in between may leave the range of their dtype, so that a
            correct result may be infinite or NaN; None: nowhere.
    """

    value: Tensor
    bound: Tensor
    noise: float = math.inf
    lost: Tensor | None = None

    @classmethod
    def exact(cls, value: Tensor) -> Answer:
        """Return an answer without any error."""
        wide = value.to("cpu", torch.float64)
        return cls(wide, torch.zeros_like(wide))

    def check(self, got: Tensor, what: str = "result") -> None:
        """Compare.

        Raises:
            AssertionError: an element is further away than the bound, or is NaN where the truth is not; or all of
                them together are noisier than they may be.
        """
        assert tuple(got.shape) == tuple(self.value.shape), f"{what}: shape {tuple(got.shape)}"
        here = got.to("cpu", torch.float64)
        error = (here - self.value).abs()
        kind = torch.finfo(
            got.dtype
        )  # half a unit more is rounded to infinity: eps / 4, and eps / 2 in the bound
        over = self._overflown(here, kind.max * (1 + 0.75 * kind.eps))
        bad = ~(error <= self.bound) & ~(here.isnan() & self.value.isnan()) & ~over
        if not bool(bad.any()):
            finite = self.value.isfinite() & ~(over if self.lost is None else over | self.lost)
            noise = float(error[finite].norm() / self.value[finite].norm().clamp(min=FLUSHED))
            assert noise <= self.noise, (
                f"{what}: relative error {noise:.3g} as a whole, at most {self.noise:.3g}"
            )
            return
        worst = tuple(int(i) for i in bad.nonzero()[0])
        raise AssertionError(
            f"{what}: {int(bad.sum())} of {bad.numel()} elements are beyond the bound, first at {worst}: "
            f"{float(got[worst])} instead of {float(self.value[worst])} +- {float(self.bound[worst]):.3g}"
        )

    def rounded(self, dtype: torch.dtype) -> Answer:
        """Return the answer after one rounding to ``dtype``."""
        half = torch.finfo(dtype).eps / 2
        room = half * (self.value.abs() + self.bound) + torch.finfo(dtype).smallest_normal * half
        return Answer(self.value, self.bound + room, self.noise, self.lost)

    def overflows(self, dtype: torch.dtype) -> Tensor:
        """Say for each element whether a correct one may be more than ``dtype`` holds; a NaN is not."""
        beyond = ~(self.value.abs() + self.bound <= torch.finfo(dtype).max) & ~self.value.isnan()
        return beyond if self.lost is None else beyond | self.lost

    def _overflown(self, got: Tensor, limit: float) -> Tensor:
        """Say where a result is not finite and may be so: from the limit on, rounding gives infinity of that sign."""
        over = got.isinf()
        if bool(over.any()):
            over &= self.value * got.sign() + self.bound >= limit
        return over if self.lost is None else over | (self.lost & ~got.isfinite())


__all__ = ["EPS32", "FLUSHED", "Answer"]
