"""Quantize at speed, on the CPU and on any torch device, bit for bit as :mod:`mxfp4_core.arithmetic.reference`.

A *way* is the fast path of one format: `Way.run` cuts a weight into matrices and quantises one after another. The scale
byte of a block that is not finite is 255. So is that of blocks that a path without the whole table leaves alone
(subnormal maxima, the ends of the range): they are given to the judge.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
import torch

from mxfp4_core.arithmetic.dense import check_dense
from mxfp4_core.arithmetic.fast.choose import cpu_kernels
from mxfp4_core.arithmetic.format import BLOCK, E8M0_NAN
from mxfp4_core.arithmetic.profile import Profile
from mxfp4_core.errors import ConfigError, FormatError, NonFiniteError, ShapeError

WEIGHT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_DEVICE_CHUNK = 1 << 24  # values a step on other devices: bounds the int32 temporaries to some 200 MB

_JUDGED = 1 << 15  # blocks a step: a million values, whose temporaries stay in the cache
_SOUGHT = 1 << 20  # scale bytes a step: bounds the places of blocks to 16 MB

Outputs = tuple[torch.Tensor, ...]
"""Codes, scales, and then what else the format has, in the order of its parts."""


class Way(ABC):
    """The fast path of one format. Stateless."""

    def whole(self) -> bool:
        """Whether the CPU needs no temporaries as large as the weight, which holds of the compiled kernels alone."""
        return cpu_kernels() is not None

    @abstractmethod
    def quantize(self, weight: torch.Tensor, outputs: Outputs, profile: Profile, threads: int | None) -> int:
        """Quantise a matrix of whole blocks whose last axes are dense.

        Returns:
            How many blocks have the scale byte 255.
        """

    @abstractmethod
    def complete(self, weight: torch.Tensor, profile: Profile) -> bool:
        """Whether `quantize` does every block of such a weight: those with byte 255 are not finite, and done."""

    @abstractmethod
    def judge(
        self,
        blocks: torch.Tensor,
        outputs: Outputs,
        row: torch.Tensor,
        column: torch.Tensor,
        profile: Profile,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return codes and scales of single blocks.

        Args:
            blocks: ``[B, 32]`` on the CPU.
            outputs: of the matrix that they come from; what is above the scales is there already.
            row: of each block.
            column: of each block, counted in blocks.
            profile: what decides the bytes.
        """

    def check(self, weight: torch.Tensor, name: str) -> None:
        """Refuse what cannot be quantised; see `check_weight`."""
        check_weight(weight, name)

    def run(
        self,
        weight: torch.Tensor,
        outputs: Outputs,
        profile: Profile,
        nonfinite: str,
        name: str,
        threads: int | None,
    ) -> None:
        """Quantise whole blocks that were checked, by a resolved profile, into tensors that fit."""
        choice("nonfinite", nonfinite, ("refuse", "nan"))
        weight = weight.detach()
        if profile.dtypes and weight.dtype not in profile.dtypes:
            raise FormatError(
                f"{name} cannot be quantised with profile {profile.name!r}",
                seen=str(weight.dtype),
                rule=f"{profile.peer} takes {' and '.join(map(str, profile.dtypes))}",
                fix="convert the weight first, or use another profile",
            )
        for matrix, parts, offset in _matrices(self, weight, outputs):
            left = matrix.numel() and self.quantize(matrix, parts, profile, threads)
            if left and (nonfinite == "refuse" or not self.complete(matrix, profile)):
                _finish(self, matrix, parts, profile, nonfinite, name, offset, weight.shape)


def _matrices(
    way: Way, weight: torch.Tensor, outputs: Outputs
) -> Iterator[tuple[torch.Tensor, Outputs, int]]:
    """Yield matrices whose rows are evenly spaced and whose last axis is dense, with the number of rows before each."""
    if weight.ndim == 1:
        weight, outputs = weight[None], tuple(tensor[None] for tensor in outputs)
    if weight.ndim > 2 and all(tensor.is_contiguous() for tensor in (weight, *outputs)):
        weight, outputs = weight.flatten(0, -2), tuple(tensor.flatten(0, -2) for tensor in outputs)
    if weight.ndim == 2:
        # Outputs must be written in place; a weight with a strided last axis (a transposed view) may be copied.
        for start, stop in _row_chunks(weight, whole=weight.stride(-1) == 1 and way.whole()):
            parts = [tensor[start:stop] for tensor in outputs]
            dense = [part if part.stride(-1) == 1 else part.contiguous() for part in parts]
            source = weight[start:stop]
            yield source if source.stride(-1) == 1 else source.contiguous(), tuple(dense), start
            for written, part in zip(dense, parts, strict=True):
                if written is not part:
                    part.copy_(written)
        return
    rows = math.prod(weight.shape[1:-1])
    for index in range(weight.shape[0]):
        for matrix, found, offset in _matrices(way, weight[index], tuple(out[index] for out in outputs)):
            yield matrix, found, index * rows + offset


def _row_chunks(weight: torch.Tensor, *, whole: bool) -> Iterator[tuple[int, int]]:
    """Cut rows where a step needs temporaries as large as its input; ``whole`` says that it needs none."""
    rows, k = weight.shape
    step = rows if whole and weight.device.type == "cpu" else max(1, _DEVICE_CHUNK // max(1, k))
    for start in range(0, rows, max(1, step)):
        yield start, min(rows, start + step)


def _finish(
    way: Way,
    weight: torch.Tensor,
    outputs: Outputs,
    profile: Profile,
    nonfinite: str,
    name: str,
    offset: int,
    shape: torch.Size,
) -> None:
    """Refuse what is not finite, and quantise the blocks that the fast path left (byte 255) by the judge."""
    codes, scales, *_ = outputs
    values, packed = (
        weight.unflatten(-1, (-1, BLOCK)),
        codes.unflatten(-1, (-1, BLOCK * codes.shape[-1] // weight.shape[-1])),
    )
    complete = way.complete(weight, profile)
    if nonfinite == "refuse":
        _refuse_nonfinite(values, _places(scales), complete, name, offset, shape)
    for row, column in () if complete else _places(scales):
        block_codes, block_scales = way.judge(values[row, column].cpu(), outputs, row, column, profile)
        packed[row, column] = block_codes.to(codes.device)
        scales[row, column] = block_scales[..., 0].to(scales.device)


def _places(scales: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield rows and columns of the blocks whose byte is 255, a few at a time: who reads them has many temporaries."""
    step = max(1, _SOUGHT // scales.shape[1])
    for start in range(0, len(scales), step):
        for found in (scales[start : start + step] == E8M0_NAN).nonzero().split(_JUDGED):
            yield found[:, 0] + start, found[:, 1]


def _refuse_nonfinite(
    values: torch.Tensor,
    places: Iterator[tuple[torch.Tensor, torch.Tensor]],
    complete: bool,
    name: str,
    offset: int,
    shape: torch.Size,
) -> None:
    """Raise NonFiniteError for the first of these blocks that is not finite; if ``complete``, they all are not."""
    first: tuple[float, list[int]] | None = None
    count = 0
    for row, column in places:
        looked = len(row) if first is None or not complete else 0
        blocks = values[row[:looked], column[:looked]].cpu()
        bad = (~torch.isfinite(blocks)).nonzero()
        if len(bad) and first is None:
            block, element = bad[0].tolist()
            flat = (offset + int(row[block])) * shape[-1] + int(column[block]) * BLOCK + element
            index = [int(part) for part in np.unravel_index(flat, tuple(shape))]
            first = float(blocks[block, element]), index
        count += len(row) if complete else len(bad[:, 0].unique())
    if first is not None:
        raise NonFiniteError.at(name, *first, count)


def addresses(tag: object, weight: torch.Tensor, outputs: Outputs) -> tuple[object, ...]:
    """Return the first seven arguments of compiled kernels of one level, for a matrix ``[N, K]``.

    Args:
        tag: for the dtype of the weight.
        weight: whose last axis is dense.
        outputs: codes and scales, likewise.
    """
    (codes, scales), size = outputs, weight.element_size()
    strides = weight.stride(0) * size, codes.stride(0), scales.stride(0)
    return (
        tag,
        size,
        weight.data_ptr(),
        codes.data_ptr(),
        scales.data_ptr(),
        strides,
        weight.shape[1] // BLOCK,
    )


def check_weight(weight: torch.Tensor, name: str) -> None:
    """Refuse what cannot be quantised: other dtypes, scalars, tensors without values."""
    check_dense(weight, name)
    if weight.dtype not in WEIGHT_DTYPES:
        raise FormatError(
            f"{name} cannot be quantised",
            seen=f"{weight.dtype} of shape {tuple(weight.shape)}",
            rule=f"a weight is one of {', '.join(map(str, WEIGHT_DTYPES))}",
            fix="convert it first; packed codes are already quantised",
        )
    if weight.ndim == 0:
        raise ShapeError(
            f"{name} cannot be quantised",
            seen="a scalar",
            rule="blocks run along the last axis, so there must be one",
            fix="leave it in high precision",
        )
    if weight.is_meta:
        raise FormatError(
            f"{name} cannot be quantised",
            seen="a tensor on the meta device, which has no values",
            rule="a weight holds values",
            fix="load it first",
        )


def choice(option: str, value: str, allowed: tuple[str, ...]) -> str:
    """Return a value that is one of those allowed, or raise ConfigError."""
    if value not in allowed:
        raise ConfigError(
            f"{option} cannot be used",
            seen=repr(value),
            rule=f"{option} is one of {', '.join(allowed)}",
            fix=f"use {allowed[0]!r}",
        )
    return value


__all__ = ["WEIGHT_DTYPES", "Outputs", "Way", "addresses", "check_weight", "choice"]
