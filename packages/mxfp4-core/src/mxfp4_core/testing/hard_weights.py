"""Weights that are hard to quantise, for every format."""

from __future__ import annotations

import torch


def hard_weights(dtype: torch.dtype, k: int = 1024) -> torch.Tensor:
    """Return ``[*, k]``: random ones at every scale, ties and their neighbours, subnormals, zeros, not finite ones."""
    generator = torch.Generator().manual_seed(0)

    def noise(rows: int) -> torch.Tensor:
        return torch.randn(rows, k, generator=generator)

    def powers(low: int, high: int, rows: int, columns: int) -> torch.Tensor:
        return torch.randint(low, high, (rows, columns), generator=generator).float().exp2()

    ties = torch.randint(-64, 65, (40, k), generator=generator) / 8 * powers(-140, 120, 40, 1)
    rows = [
        noise(20),
        noise(40) * powers(-140, 120, 40, 1),
        noise(40) * powers(-30, 30, 40, k),
        noise(20) * powers(-140, 100, 20, k // 32).repeat_interleave(32, 1),
        ties,
        torch.nextafter(ties, torch.full_like(ties, torch.inf)),
        torch.randint(-200, 201, (8, k), generator=generator) * 2.0**-149,
        torch.randint(-40, 41, (8, k), generator=generator) * 2.0**-24,
        torch.randint(-65504, 65505, (8, k), generator=generator).float(),
        torch.zeros(1, k),
        -torch.zeros(1, k),
    ]
    odd = noise(8)
    odd[0, 3], odd[1, 40], odd[2, -1], odd[3] = torch.nan, torch.inf, -torch.inf, torch.nan
    odd[4], odd[5, 5], odd[6, ::32], odd[7, :512] = 3.4e38, 3.4e38, 0, 0
    odd[6, 1::2] *= 2.0**-30
    return torch.cat((*rows, odd)).to(dtype)


__all__ = ["hard_weights"]
