"""Whether a module is a product with its weight, whatever its class: small copies of it are tried out.

Libraries derive linears that add nothing, and write their own with the axes of the weight turned. Their names say
little and their source may change, so what counts is what a copy with small weights computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

Product = Literal["n first", "k first"]
"""``x @ weight.T + bias`` of a weight [N, K], or ``x @ weight + bias`` of a weight [K, N]."""

_N, _K, _SQUARE = 5, 7, 6
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2}


def product_of(module: nn.Module) -> Product | None:
    """Return how a module multiplies with its ``weight``, or None where it is no plain product.

    Args:
        module: any; on the meta device, too. It is not changed, and its own weights are not looked at.
    """
    if type(module) is nn.Linear:
        return "n first"
    if not _holds_one_weight(module):
        return None
    signature = _signature(module)
    if signature is None:
        return _tried(module)
    if signature not in _KNOWN:
        _KNOWN[signature] = _tried(module)
    return _KNOWN[signature]


_KNOWN: dict[tuple[object, ...], Product | None] = {}
_PLAIN = frozenset(vars(nn.Module()))


def _signature(module: nn.Module) -> tuple[object, ...] | None:
    """Return all that a trial depends on, the same for layers that are alike; None where that cannot be told."""
    weight, bias = module._parameters["weight"], module._parameters.get("bias")
    rows, columns = (0, 0) if weight is None else tuple(weight.shape)
    sizes = {rows: "rows", columns: "columns"}
    own = {name: value for name, value in vars(module).items() if name not in _PLAIN}
    if any(type(value) not in (int, float, bool, str, type(None)) for value in own.values()):
        return None
    facts = tuple(
        (name, sizes.get(value, value) if type(value) is int else value) for name, value in own.items()
    )
    return type(module), rows == columns, bias is None, tuple(module._parameters), facts


def _tried(module: nn.Module) -> Product | None:
    orders: tuple[Product, ...] = ("n first", "k first")
    for order in orders:
        if all(_computes(module, order, dtype) for dtype in _TOLERANCE):
            return order
    return None


def _holds_one_weight(module: nn.Module) -> bool:
    own = {name: each for name, each in module._parameters.items() if each is not None}
    weight, bias = own.pop("weight", None), own.pop("bias", None)
    return (
        weight is not None
        and weight.ndim == 2
        and weight.is_floating_point()
        and (bias is None or bias.ndim == 1)
        and not (own or module._modules or module._buffers)
    )


def _computes(module: nn.Module, order: Product, dtype: torch.dtype) -> bool:
    """Compare a copy of a module, with small weights of that order, with the product."""
    weight = module._parameters["weight"]
    rows, columns = tuple(weight.shape) if weight is not None else (0, 0)
    n, k = (rows, columns) if order == "n first" else (columns, rows)
    small = {n: _SQUARE} if n == k else {n: _N, k: _K}
    values = wave(small[n] * small[k], dtype).view(small[n], small[k])
    bias = None if module._parameters.get("bias") is None else wave(small[n], dtype) + 1
    x = wave(6 * small[k], dtype).view(2, 3, small[k])
    wanted = functional.linear(x, values, bias)
    stored = values if order == "n first" else values.T.contiguous()
    copy = small_copy(module, {"weight": stored, "bias": bias}, small)
    try:
        with torch.no_grad():
            found = copy.forward(x)
    except Exception:  # whatever it wants beside x, or does with it: it is no plain product
        return False
    same = isinstance(found, torch.Tensor) and (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    return same and torch.allclose(found, wanted, rtol=_TOLERANCE[dtype], atol=_TOLERANCE[dtype])


def small_copy(
    module: nn.Module, weights: Mapping[str, torch.Tensor | None], small: Mapping[int, int]
) -> Any:
    """Return a copy of a module with other weights, whose own sizes are what they would be for these.

    Args:
        module: is not changed.
        weights: by name, for the parameters that it has.
        small: sizes of its weights to those of the copy; whatever number it remembers of these is replaced.
    """
    copy: Any = object.__new__(type(module))
    for name, value in module.__dict__.items():
        copy.__dict__[name] = small.get(value, value) if type(value) is int else value
    copy.__dict__["_parameters"] = {
        name: None if value is None else nn.Parameter(value, requires_grad=False)
        for name, value in weights.items()
        if name in module._parameters
    }
    copy.__dict__["training"] = False
    return copy


def wave(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return values without a pattern that a wrong product could share, on the CPU whatever the default is."""
    steps = torch.arange(count, dtype=torch.float32, device="cpu")
    return torch.sin(steps * 1.7 + 0.3).to(dtype)


__all__ = ["Product", "product_of", "small_copy", "wave"]
