"""How much squared error does each scale rule and tie rule cost? Prints the table of decision record 3.

Usage: python bench/scale_rules.py
"""

from __future__ import annotations

import argparse
import math

import torch
from torch.distributions import Laplace, StudentT

import mxfp4_core

BLOCKS = 1 << 16
SAMPLERS = {
    "normal": lambda: torch.randn(BLOCKS, 32, dtype=torch.float64),
    "Laplace": lambda: Laplace(0.0, 1.0).sample((BLOCKS, 32)).double(),
    "Student t (4)": lambda: StudentT(4.0).sample((BLOCKS, 32)).double(),
    "uniform": lambda: torch.rand(BLOCKS, 32, dtype=torch.float64) * 2 - 1,
}
RULES = ("floor", "even", "rceil", "ceil", "ceil_d(7.25)")


def relative_error(weight: torch.Tensor, rule: str, ties: str) -> tuple[float, float]:
    """Return the mean over blocks of squared error over squared weight, and its standard error."""
    exact = weight.double()
    error = mxfp4_core.quantize(weight, rule=rule, ties=ties).dequantize(torch.float64) - exact
    blocks = (error**2).sum(1) / (exact**2).sum(1)
    return float(blocks.mean()), float(blocks.std()) / math.sqrt(BLOCKS)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.manual_seed(0)
    # A random phase spreads the block maxima evenly over a binade; a fixed one would favour some rule.
    weights = {
        name: sample() * torch.exp2(torch.rand(BLOCKS, 1).double()) for name, sample in SAMPLERS.items()
    }
    print("| rule |", " | ".join(weights), "|")
    print("|---" * (len(weights) + 1) + "|")
    for rule in RULES:
        cells = [relative_error(weight.float(), rule, "even") for weight in weights.values()]
        print(f"| {rule} |", " | ".join(f"{mean:.5f} ± {error:.5f}" for mean, error in cells), "|")
    for ties in ("even", "away", "zero"):
        mean, error = relative_error(weights["normal"].bfloat16(), "even", ties)
        print(f"ties {ties} on bfloat16 normal: {mean:.5f} ± {error:.5f}")


if __name__ == "__main__":
    main()
