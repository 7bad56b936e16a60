"""Quantize at speed, on the CPU and on any torch device, bit for bit as :mod:`mxfp4_core.arithmetic.reference`.

On the CPU the kernels of :mod:`mxfp4_core.arithmetic.fast.cpu` do the work; elsewhere the same integer comparisons are
torch operations. Both read the tables of :mod:`mxfp4_core.arithmetic.fast.steps` and hand the few blocks that these
cannot express (subnormal maxima, the ends of the range, NaN and infinity) to the reference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch

from mxfp4_core.arithmetic import reference
from mxfp4_core.arithmetic.fast import device as _kernels_torch
from mxfp4_core.arithmetic.fast.steps import steps
from mxfp4_core.arithmetic.fast.threads import spread
from mxfp4_core.arithmetic.format import BLOCK
from mxfp4_core.arithmetic.profile import Profile
from mxfp4_core.arithmetic.profiles import resolve
from mxfp4_core.errors import ConfigError, FormatError, NonFiniteError, ShapeError

WEIGHT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_DEVICE_CHUNK = 1 << 24  # values a step on other devices: bounds the int32 temporaries to some 200 MB


def quantize_into(
    weight: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    *,
    profile: str | None = None,
    rule: str | None = None,
    ties: str | None = None,
    nonfinite: Literal["refuse", "nan"] = "refuse",
    name: str = "weight",
    threads: int | None = None,
) -> None:
    """Quantize whole blocks into tensors that exist, such as slices of a larger parameter.

    Args:
        weight: as for :func:`mxfp4_core.quantize`, K a multiple of 32.
        codes: uint8 ``[..., K / 2]``, any strides, on the device of the weight; written.
        scales: uint8 ``[..., K / 32]``, likewise.
        profile: as for :func:`mxfp4_core.quantize`, like all that follow.
        rule: a scale rule.
        ties: a tie rule.
        nonfinite: what to do about NaN and infinity.
        name: name of the weight in messages.
        threads: CPU threads to use.

    Raises:
        FormatError, ShapeError, NonFiniteError, ConfigError: as for :func:`mxfp4_core.quantize`, and for outputs that
            do not fit.
            After a NonFiniteError the outputs hold unspecified bytes.
    """
    check_weight(weight, name)
    weight = weight.detach()
    whole = (*weight.shape[:-1], weight.shape[-1] // 2), (*weight.shape[:-1], weight.shape[-1] // BLOCK)
    if weight.shape[-1] % BLOCK or (codes.shape, scales.shape) != whole:
        raise ShapeError(
            f"{name} does not fit the tensors that take its codes and scales",
            seen=f"weight {tuple(weight.shape)}, codes {tuple(codes.shape)}, scales {tuple(scales.shape)}",
            rule=f"weight [..., K] with K % {BLOCK} == 0, codes [..., K / 2], scales [..., K / {BLOCK}]",
            fix="pad the weight to whole blocks, or pass the matching slices",
        )
    for role, tensor in (("codes", codes), ("scales", scales)):
        if tensor.dtype != torch.uint8 or tensor.device != weight.device:
            raise FormatError(
                f"{role} of {name} cannot be written",
                seen=f"{tensor.dtype} on {tensor.device}, the weight being on {weight.device}",
                rule="codes and scales are torch.uint8 on the device of the weight",
                fix="allocate them with dtype=torch.uint8, device=weight.device",
            )
    run_profile(weight, codes, scales, resolve(profile, rule=rule, ties=ties), nonfinite, name, threads)


def run_profile(
    weight: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    profile: Profile,
    nonfinite: str,
    name: str,
    threads: int | None,
) -> None:
    """Quantise whole blocks that were checked, by a resolved profile."""
    choice("nonfinite", nonfinite, ("refuse", "nan"))
    if profile.dtypes and weight.dtype not in profile.dtypes:
        raise FormatError(
            f"{name} cannot be quantised with profile {profile.name!r}",
            seen=str(weight.dtype),
            rule=f"{profile.peer} takes {' and '.join(map(str, profile.dtypes))}",
            fix="convert the weight first, or use another profile",
        )
    run = _quantize_cpu if weight.device.type == "cpu" else _quantize_device
    for matrix, out, scale, offset in _matrices(weight, codes, scales):
        if matrix.numel() and run(matrix, out, scale, profile, threads):
            _finish(matrix, out, scale, profile, nonfinite, name, offset, weight.shape)


def _matrices(
    weight: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]]:
    """Yield matrices whose rows are evenly spaced and whose last axis is dense, with the number of rows before each."""
    if weight.ndim == 1:
        weight, codes, scales = weight[None], codes[None], scales[None]
    if weight.ndim > 2 and all(tensor.is_contiguous() for tensor in (weight, codes, scales)):
        weight, codes, scales = (tensor.flatten(0, -2) for tensor in (weight, codes, scales))
    if weight.ndim == 2:
        # Outputs must be written in place; a weight with a strided last axis (a transposed view) may be copied.
        for start, stop in _row_chunks(weight, whole=weight.stride(-1) == 1):
            dense = [tensor[start:stop] for tensor in (weight, codes, scales)]
            targets = [part if part.stride(-1) == 1 else part.contiguous() for part in dense[1:]]
            source = dense[0] if dense[0].stride(-1) == 1 else dense[0].contiguous()
            yield source, targets[0], targets[1], start
            for target, part in zip(targets, dense[1:], strict=True):
                if target is not part:
                    part.copy_(target)
        return
    rows = math.prod(weight.shape[1:-1])
    for index in range(weight.shape[0]):
        for matrix, out, scale, offset in _matrices(weight[index], codes[index], scales[index]):
            yield matrix, out, scale, index * rows + offset


def _quantize_device(
    weight: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, profile: Profile, threads: int | None
) -> int:
    return _kernels_torch.quantize(weight, codes, scales, profile)


def _row_chunks(weight: torch.Tensor, *, whole: bool) -> Iterator[tuple[int, int]]:
    """Cut rows where a step needs temporaries as large as its input; ``whole`` says that it needs none."""
    rows, k = weight.shape
    step = rows if whole and weight.device.type == "cpu" else max(1, _DEVICE_CHUNK // max(1, k))
    for start in range(0, rows, max(1, step)):
        yield start, min(rows, start + step)


def _quantize_cpu(
    weight: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, profile: Profile, threads: int | None
) -> int:
    from mxfp4_core.arithmetic.fast import cpu as kernels  # numba takes a second to import

    table = steps(profile, weight.dtype)
    size = weight.element_size()
    strides = (weight.stride(0) * size, codes.stride(0), scales.stride(0))
    tables = (table.mantissa.numpy(), table.byte.numpy(), table.exponent.numpy())
    limits = np.array([*table.thresholds.tolist(), table.lifted], dtype=np.int32)
    row_blocks = weight.shape[1] // BLOCK

    def run(start: int, stop: int) -> int:
        return kernels.quantize(
            kernels.TAGS[weight.dtype],
            size,
            weight.data_ptr(),
            codes.data_ptr(),
            scales.data_ptr(),
            strides,
            row_blocks,
            start,
            stop,
            tables,
            limits,
            _kernels_torch.sign_masks(profile),
        )

    return spread(run, weight.shape[0] * row_blocks, threads)


def _finish(
    weight: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    profile: Profile,
    nonfinite: str,
    name: str,
    offset: int,
    shape: torch.Size,
) -> None:
    """Quantize the blocks that the fast path left (byte 255) by the reference."""
    row, column = (scales == 255).nonzero(as_tuple=True)
    blocks = weight.unflatten(-1, (-1, BLOCK))[row, column].cpu()
    bad = (~torch.isfinite(blocks)).nonzero()
    if nonfinite == "refuse" and len(bad):
        block, element = bad[0].tolist()
        flat = (offset + int(row[block])) * shape[-1] + int(column[block]) * BLOCK + element
        index = tuple(int(part) for part in np.unravel_index(flat, tuple(shape)))
        raise NonFiniteError(
            f"{name} cannot be quantised",
            seen=f"{float(blocks[block, element])} at index {list(index)}, in {len(bad[:, 0].unique())} block(s)",
            rule="a weight is finite; MXFP4 can only make the whole block NaN",
            fix="repair the checkpoint, or pass nonfinite='nan' to make those blocks NaN",
        )
    block_codes, block_scales = reference.quantize(blocks, profile)
    codes.unflatten(-1, (-1, BLOCK // 2))[row, column] = block_codes.to(codes.device)
    scales[row, column] = block_scales[..., 0].to(scales.device)


def check_weight(weight: torch.Tensor, name: str) -> None:
    """Refuse what cannot be quantised: other dtypes, scalars, tensors without values."""
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


__all__ = ["WEIGHT_DTYPES", "check_weight", "choice", "quantize_into", "run_profile"]
