"""Weights and activations for the suites: every code byte, chosen scale bytes, the same on every run."""

from __future__ import annotations

import torch
from torch import Tensor

from mxfp4_core.arithmetic import BLOCK, MxTensor, padded
from mxfp4_core.backend import Backend, Problem
from mxfp4_core.backend.calls import shapes


def random_weight(*shape: int, seed: int = 0, scales: tuple[int, int] = (119, 127)) -> MxTensor:
    """Draw codes and scale bytes at random; the padding of k holds zero codes.

    Args:
        *shape: logical [(experts,) n, k].
        seed: of the generator.
        scales: lowest and highest scale byte.
    """
    generator = torch.Generator().manual_seed(seed)
    *rows, k = shape
    whole = padded(k, BLOCK)
    codes = torch.randint(0, 256, (*rows, whole // 2), generator=generator, dtype=torch.uint8)
    codes[..., (k + 1) // 2 :] = 0
    if k % 2:
        codes[..., k // 2] &= 0x0F
    low, high = scales
    bytes_ = torch.randint(low, high + 1, (*rows, whole // BLOCK), generator=generator, dtype=torch.uint8)
    return MxTensor(codes, bytes_, torch.Size(shape))


def without_minus_zero(codes: Tensor) -> Tensor:
    """Return the codes with 8 (minus zero) turned into 0."""
    low, high = codes & 0x0F, codes >> 4
    return torch.where(low == 8, 0, low) | (torch.where(high == 8, 0, high) << 4)


def had_back(backend: Backend, name: str, stored: Tensor) -> Tensor:
    """Return what a backend gives back of a part of a weight: codes lose their minus zeros where it says so.

    Args:
        backend: which was prepared for the weight.
        name: of the part or of its buffer; those of scales end with ``scale`` or ``scales``.
        stored: the part before.
    """
    codes = stored.dtype is torch.uint8 and not name.endswith(("scale", "scales"))
    return without_minus_zero(stored) if codes and backend.numerics.minus_zero == "dropped" else stored


def random_x(m: int, k: int, dtype: torch.dtype = torch.bfloat16, seed: int = 1) -> Tensor:
    """Draw normal activations [m, k]."""
    return torch.randn(m, k, generator=torch.Generator().manual_seed(seed)).to(dtype)


def random_biases(problem: Problem, seed: int = 2) -> list[Tensor | None]:
    """Draw a bfloat16 bias for each weight of the problem, or None for each if it has no bias."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape[:-1], generator=generator).to(torch.bfloat16) if problem.bias else None
        for shape in shapes(problem).values()
    ]


def random_routes(m: int, experts: int, top_k: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Draw distinct experts for each token, int32 [m, top_k], and normalised weights, float32 [m, top_k]."""
    generator = torch.Generator().manual_seed(seed)
    weights, ids = torch.rand(m, experts, generator=generator).topk(top_k, dim=1)
    return ids.to(torch.int32), weights / weights.sum(1, keepdim=True)
