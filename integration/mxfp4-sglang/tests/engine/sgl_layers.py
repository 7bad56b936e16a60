"""Weights for tests, and what a layer of SGLang holds of them."""

from __future__ import annotations

import torch

from mxfp4_core.modules import Mxfp4Module


def weights(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return a weight of a given seed."""
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    return (made * 0.08).bfloat16()


def parts_of(layer: torch.nn.Module, matrix: str = "weight") -> dict[str, torch.Tensor]:
    """Return what a layer holds, part by part."""
    module = layer.get_submodule("mxfp4")
    assert isinstance(module, Mxfp4Module)
    return dict(module.canonical(matrix).parts)  # type: ignore[arg-type]
