"""What must hold of a quantised model, seen from the unquantised one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from architectures.inputs import flat
from architectures.rows import Fault
from mxfp4_core import quantize

LIMIT = 1e-5
"""Largest difference of two outputs, relative to the largest number of each.

Both multiply the same numbers, those of the dequantised weights, in FP32, and differ in the order of additions and
nothing else. An addition rounds by 2^-24 = 6e-8, a dot product of K = 1024 so by about sqrt(K) * 6e-8 = 2e-6 of its
size in the mean, and few layers follow one another. A wrong block of 32 numbers changes an output by 1e-2 or more.
"""


def parts(parameter: torch.Tensor, weight: Any) -> dict[str, torch.Tensor]:
    """Return the codes and scales that `quantize` makes of a parameter, by the names that a state dict has for them."""
    rows = parameter.transpose(-1, -2).contiguous() if weight.transposed else parameter
    made = quantize(rows, tail="pad")
    return {weight.name: made.codes, f"{weight.name}_scale": made.scales}


def dequantized(parameter: torch.Tensor, weight: Any, dtype: torch.dtype) -> torch.Tensor:
    """Return a parameter with the values that MXFP4 has for it, in its own layout."""
    rows = parameter.transpose(-1, -2).contiguous() if weight.transposed else parameter
    values = quantize(rows, tail="pad").dequantize(dtype)
    return values.transpose(-1, -2).contiguous() if weight.transposed else values


def widen(model: Any, weights: Mapping[str, Any]) -> None:
    """Give an unquantised model the values of MXFP4, in place."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, weight in weights.items():
        parameter = parameters[name]
        parameter.data = dequantized(parameter.data, weight, parameter.dtype)


def same_bytes(step: str, model: Any, plain: Any, weights: Mapping[str, Any]) -> None:
    """Check that the codes and scales of a model are those of `quantize`, and everything else is unchanged.

    Args:
        step: for the fault.
        model: quantised.
        plain: the same checkpoint, unquantised, with the same dtype.
        weights: what the loader says that it quantised.
    """
    held, wanted = model.state_dict(), dict(plain.state_dict())
    parameters = dict(plain.named_parameters(remove_duplicate=False))
    for name, weight in weights.items():
        del wanted[name]
        wanted |= parts(parameters[name].data, weight)
    same_state(step, held, wanted)


def same_state(
    step: str, held: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], *, wider: bool = False
) -> None:
    """Check that two state dicts have the same names and bits.

    Args:
        step: for the fault.
        held: what there is.
        wanted: what there should be.
        wider: a tensor may have the same numbers in a wider dtype.
    """
    if lost := sorted(wanted.keys() - held.keys()):
        raise Fault(step, f"missing: {_some(lost)}")
    if more := sorted(held.keys() - wanted.keys()):
        raise Fault(step, f"added: {_some(more)}")
    wrong = []
    for name, tensor in wanted.items():
        other = held[name]
        if wider and tensor.is_floating_point():
            tensor = tensor.to(other.dtype)
        if other.dtype != tensor.dtype or other.shape != tensor.shape:
            seen, rule = (f"{each.dtype} {list(each.shape)}" for each in (other, tensor))
            wrong.append(f"{name}: {seen}, wanted {rule}")
        elif not torch.equal(_bits(other), _bits(tensor)):
            wrong.append(f"{name}: other bits")
    if wrong:
        raise Fault(step, f"{len(wrong)} of {len(wanted)} tensors differ; {wrong[0]}")


def same_output(step: str, output: Any, wanted: Any, limit: float = LIMIT) -> None:
    """Check that two outputs differ by no more than a limit, relative to the largest number of each tensor."""
    mine, theirs = list(flat(output)), list(flat(wanted))
    if [each.shape for each in mine] != [each.shape for each in theirs]:
        raise Fault(
            step, f"shapes {[list(each.shape) for each in mine]}, {[list(each.shape) for each in theirs]}"
        )
    for one, other in zip(mine, theirs, strict=True):
        one, other = one.double(), other.double()
        if not torch.equal(one.isfinite(), other.isfinite()):
            raise Fault(
                step,
                f"{int((~one.isfinite()).sum())} numbers are not finite, {int((~other.isfinite()).sum())} wanted",
            )
        size, apart = other.nan_to_num(0, 0, 0).abs().max(), (one - other).nan_to_num(0, 0, 0).abs().max()
        if apart > limit * size:
            raise Fault(step, f"relative difference {float(apart / size.clamp_min(1e-30)):.1e}")


def share(plain: torch.nn.Module, weights: Iterable[str]) -> float:
    """Return how much of a model's matrices, embeddings and convolutions aside, becomes MXFP4."""
    chosen, every, mine = set(weights), 0, 0
    for path, module in plain.named_modules():
        if isinstance(module, (torch.nn.Embedding, torch.nn.modules.conv._ConvNd)):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            size = parameter.numel() if parameter.ndim > 1 else 0
            every += size
            mine += size if f"{path}.{name}" in chosen else 0
    return mine / max(1, every)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8) if tensor.numel() and tensor.ndim else tensor.reshape(-1)


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


__all__ = ["LIMIT", "dequantized", "same_bytes", "same_output", "same_state", "share", "widen"]
