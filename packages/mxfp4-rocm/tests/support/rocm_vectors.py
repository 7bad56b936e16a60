"""The frozen vectors, and what tests do with them."""

from __future__ import annotations

import hashlib
import lzma
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor

from mxfp4_core import dequantize

ARCHIVE = Path(__file__).resolve().parents[4] / "golden" / "v3" / "aiter.safetensors.xz"
SHA256 = "14c2ec5a9c310399e77bd70fbfeeb7edf17f3492771629cba6c5dfd5dc48eb36"


@cache
def _all() -> dict[str, Tensor]:
    return load(lzma.decompress(ARCHIVE.read_bytes()))


def vectors(prefix: str) -> dict[str, Tensor]:
    """Return the tensors below a prefix."""
    found = {k.removeprefix(f"{prefix}/"): v for k, v in _all().items() if k.startswith(f"{prefix}/")}
    assert found, prefix
    return found


def values(codes: Tensor, scales: Tensor) -> Tensor:
    """Return the values in float64, in which all products of the vectors are exact."""
    return dequantize(codes.contiguous(), scales.contiguous(), torch.float64)


def sha256(tensor: Tensor) -> Tensor:
    """Return the SHA-256 of the bytes of a tensor, as the vectors have it."""
    digest = hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).digest()
    return torch.tensor(list(digest), dtype=torch.uint8)


def equal_bits(got: Tensor, want: Tensor) -> bool:
    """Say whether bfloat16 values have these bits; any NaN is as good as another."""
    other = want.view(torch.bfloat16)
    nan = other.isnan()
    return torch.equal(got.isnan(), nan) and torch.equal(got.view(torch.int16)[~nan], want[~nan])
