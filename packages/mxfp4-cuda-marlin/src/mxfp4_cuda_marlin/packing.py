"""Pack on the GPU: one Triton launch for a weight, or piece by piece over the bytes that it replaces.

A tile of the layout has as many bytes as the 64 rows and 64 columns that it stands for. So a strip of 64 rows, or an
expert whose gate and up rows change places, can take the place of its canonical bytes through a buffer of its size.
"""

from __future__ import annotations

import functools
from importlib.util import find_spec
from types import ModuleType
from typing import Final

import torch
from torch import Tensor

from mxfp4_core.arithmetic import compiling
from mxfp4_core.errors import BackendError

_STEP_BYTES: Final = 1 << 25
"""Codes and scales in the buffer of ``pack_over``; one strip or one expert where that is more."""

_ON_GPU: Final = frozenset({"cuda"})  # as torch calls AMD's, too


def usable(tensor: Tensor) -> bool:
    """Say whether the kernel can pack a tensor: it is on a GPU, and Triton is installed."""
    return tensor.device.type in _ON_GPU and _has_triton()


@functools.cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def pack(codes: Tensor, scales: Tensor, table: Tensor, rows: str) -> tuple[Tensor, Tensor]:
    """Return codes uint8 [e, n/64, k/64, 2048] and scales uint8 [e, n/64, k/64, 128].

    Args:
        codes: uint8 [e, n, k/2], contiguous, n and k multiples of 64, on a GPU.
        scales: uint8 [e, n, k/32], contiguous.
        table: int32 [4, 256] on the same device: what each byte adds to a word, by pair.
        rows: ``plain``, ``gate-up`` or ``gate-up-interleaved``.

    Raises:
        BackendError: Triton does not import, or finds no C compiler.
    """
    (experts, n, _), across = codes.shape, codes.shape[2] // 32
    tiles = codes.new_empty((experts, n // 64, across, 2048))
    tiled_scales = scales.new_empty((experts, n // 64, across, 128))
    if codes.numel():
        _launch(codes, scales, table, tiles, tiled_scales, rows)
    return tiles, tiled_scales


def pack_over(codes: Tensor, scales: Tensor, table: Tensor, rows: str) -> tuple[Tensor, Tensor]:
    """Return what ``pack`` does, in the memory of ``codes`` and ``scales``, which are overwritten.

    Raises:
        BackendError: as ``pack``; before the first piece, so that nothing is lost.
    """
    experts, n, half = codes.shape
    tiles = codes.view(experts, n // 64, half // 32, 2048)
    tiled_scales = scales.view(experts, n // 64, half // 32, 128)
    # Plain strips stand alone, whatever expert they belong to; with gate and up rows an expert does.
    unit = 64 if rows == "plain" else n
    units, scale_units = codes.view(-1, unit, half), scales.view(-1, unit, half // 16)
    step = max(1, _STEP_BYTES // max(1, unit * half * 17 // 16))
    for start in range(0, units.shape[0], step):
        some = slice(start, start + step)
        moved, moved_scales = pack(units[some], scale_units[some], table, rows)
        units[some].view(-1).copy_(moved.view(-1))
        scale_units[some].view(-1).copy_(moved_scales.view(-1))
        del moved, moved_scales  # before the next are allocated
    return tiles, tiled_scales


def _launch(
    codes: Tensor, scales: Tensor, table: Tensor, tiles: Tensor, tiled_scales: Tensor, rows: str
) -> None:
    experts, strips, across, _ = tiles.shape
    grid = (experts * strips * across,)
    words = tiles.view(torch.int32)
    with torch.cuda.device_of(codes), compiling("packing on the GPU", "without Triton torch packs"):
        _kernels().pack_kernel[grid](
            codes, scales, table, words, tiled_scales, codes.shape[1], strips, across, ROWS=rows
        )


@functools.cache
def _kernels() -> ModuleType:
    try:
        from mxfp4_cuda_marlin import packing_kernels
    except ImportError as error:
        raise BackendError(
            "packing on the GPU",
            seen=f"Triton is installed, but importing it failed: {error}",
            rule="its kernel is written in Triton; without Triton torch packs, with more memory",
            fix="pip install 'triton>=3.4', or uninstall Triton",
        ) from error
    return packing_kernels


__all__ = ["pack", "pack_over", "usable"]
