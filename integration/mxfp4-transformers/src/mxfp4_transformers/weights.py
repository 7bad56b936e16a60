"""A weight that is to be quantised, and the names and shapes of what it becomes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mxfp4_core.arithmetic import BLOCK, padded

SCALE = "_scale"
"""What is appended to the name of a weight to name its scales."""


@dataclass(frozen=True)
class Weight:
    """One parameter of the model that is to be quantised.

    Attributes:
        name: full name in the model, for example ``model.layers.0.mlp.experts.gate_up_proj``.
        shape: logical shape ``[n, k]`` or ``[experts, n, k]``; k is last also where the model holds it first.
        transposed: the model, and the checkpoint with it, holds ``[experts, k, n]``.
        profile: name of the profile that decides the bytes.
    """

    name: str
    shape: tuple[int, ...]
    transposed: bool
    profile: str

    @property
    def codes_shape(self) -> tuple[int, ...]:
        """Shape of the codes, uint8: k padded to whole blocks, two codes a byte."""
        return (*self.shape[:-1], padded(self.shape[-1], BLOCK) // 2)

    @property
    def scales_shape(self) -> tuple[int, ...]:
        """Shape of the scales, uint8: one for each block along k."""
        return (*self.shape[:-1], padded(self.shape[-1], BLOCK) // BLOCK)

    @property
    def codes_nbytes(self) -> int:
        """Bytes of the codes."""
        return torch.Size(self.codes_shape).numel()

    def empty(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Allocate codes and scales."""
        return (
            torch.empty(self.codes_shape, dtype=torch.uint8, device=device),
            torch.empty(self.scales_shape, dtype=torch.uint8, device=device),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes_nbytes + torch.Size(self.scales_shape).numel()


__all__ = ["SCALE", "Weight"]
