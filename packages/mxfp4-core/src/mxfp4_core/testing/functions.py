"""The activations of experts in float64, by their formulas, and what an error of their input does to them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mxfp4_core.backend import Gate
from mxfp4_core.testing.answer import EPS32, Answer

_SLOPES = {"silu": 1.1, "gelu": 1.13, "gelu_tanh": 1.13, "relu": 1.0}
"""The steepest place of each; silu for every alpha."""


def value(x: Tensor, form: Gate) -> Tensor:
    """Return f(x) of a gate for float64 x, which is clamped already."""
    if form.function == "silu":
        return x * torch.sigmoid(form.alpha * x)
    if form.function == "gelu":
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2
    if form.function == "gelu_tanh":
        return x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))) / 2
    positive = torch.where(x < 0, torch.zeros_like(x), x)
    return positive if form.function == "relu" else positive * positive


def slope(x: Answer, form: Gate) -> Tensor | float:
    """Return the steepest that f is between values and their bounds."""
    if form.function == "relu2":
        return 2 * x.value.clamp(min=0) + x.bound
    return _SLOPES[form.function]


def cancelled(x: Tensor, form: Gate) -> Tensor:
    """Return what float32 loses of f(x) where ``1 + erf`` or ``1 + tanh`` is almost nothing: some units of that sum."""
    return 4 * EPS32 * x.abs() if form.function in ("gelu", "gelu_tanh") else torch.zeros_like(x)


__all__ = ["cancelled", "slope", "value"]
