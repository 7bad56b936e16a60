"""Call a backend: check, pad, make contiguous, call, crop.

This is what every backend would otherwise repeat, or forget.

Padding is exact (``padding.py``): what is added to a weight is worth zero, x gets zeros there, and added rows are
cropped from the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from mxfp4_core.arithmetic.formats.mxfp4 import MXFP4
from mxfp4_core.arithmetic.formats.registry import get
from mxfp4_core.arithmetic.shapes import Alignment
from mxfp4_core.arithmetic.tensor import MxTensor
from mxfp4_core.backend.asking import numerics_for
from mxfp4_core.backend.device import Device
from mxfp4_core.backend.padding import grow, grow_bias, shrink
from mxfp4_core.backend.problem import Matrix, Problem
from mxfp4_core.backend.protocol import Backend, Packed, pack_in_place
from mxfp4_core.backend.routes import Routes
from mxfp4_core.backend.routing import checked
from mxfp4_core.errors import ConfigError, FormatError, ShapeError


def alignment(backend: Backend, problem: Problem) -> Alignment:
    """Return the multiples to which n and k of the problem are padded, over all of its weights.

    Args:
        backend: a backend that accepts the problem.
        problem: for ``moe`` n is the intermediate size (rows of gate-up, columns of down) and k the hidden
            size.

    Returns:
        Multiples of what the layouts take, and along the K of each weight of the format's blocks.
    """
    block = get(problem.format).block
    if problem.op != "moe":
        only = backend.layout(problem).alignment
        return Alignment(n=only.n, k=math.lcm(only.k, block))
    up, down = (backend.layout(problem, matrix).alignment for matrix in ("gate_up", "down"))
    return Alignment(n=math.lcm(up.n, down.k, block), k=math.lcm(up.k, down.n, block))


def shapes(problem: Problem, align: Alignment | None = None) -> dict[Matrix, tuple[int, ...]]:
    """Return the shape of each weight of the problem: logical, or physical for an alignment."""
    n, k = (problem.n, problem.k) if align is None else align.physical(problem.n, problem.k)
    if problem.op != "moe":
        return {"weight": (n, k)}
    return {"gate_up": (problem.stacked, problem.gate.rows * n, k), "down": (problem.stacked, k, n)}


def pack(
    backend: Backend,
    problem: Problem,
    weight: MxTensor,
    bias: Tensor | None = None,
    matrix: Matrix = "weight",
    *,
    consume: bool = False,
) -> Packed:
    """Pad a canonical weight as the backend's layout needs it, and pack it.

    Args:
        backend: a backend that accepts the problem.
        problem: see ``shapes``.
        weight: canonical, of the logical shape.
        bias: [(experts,) n] or None.
        matrix: which weight of the problem.
        consume: the layout may overwrite the weight, which nobody uses again; see `InPlaceLayout`.

    Raises:
        ShapeError: the weight or the bias does not have the problem's shape.
        FormatError: the device cannot represent a scale byte of the weight.
    """
    if weight.format.name != problem.format:
        raise FormatError(
            f"packing {matrix} for {backend.name}",
            seen=f"a weight of the format {weight.format.name}",
            rule=f"the problem is about {problem.format}",
            fix="ask the backend about the format of the weight: Problem(format=...)",
        )
    logical, physical = shapes(problem)[matrix], shapes(problem, alignment(backend, problem))[matrix]
    if tuple(weight.shape) != logical or (bias is not None and tuple(bias.shape) != logical[:-1]):
        raise ShapeError(
            f"packing {matrix} for {backend.name}",
            seen=f"weight {tuple(weight.shape)}, bias {None if bias is None else tuple(bias.shape)}",
            rule=f"{problem} has a weight of {logical} and a bias of {logical[:-1]}",
            fix="give the weight of this rank, in its logical shape",
        )
    halves = matrix == "gate_up" and problem.gate.halves
    aligned = grow(weight, physical, halves)
    bias = None if bias is None else grow_bias(bias, physical[-2], halves)
    layout = backend.layout(problem, matrix)
    tensors = pack_in_place(layout, aligned, bias) if consume else layout.pack(aligned, bias)
    return Packed(layout.id, tensors, physical)


def unpack(
    backend: Backend, problem: Problem, packed: Packed, matrix: Matrix = "weight", *, profile: str = ""
) -> MxTensor:
    """Give back the canonical weight of the logical shape; the inverse of ``pack``."""
    layout = backend.layout(problem, matrix)
    if layout.id != packed.layout:
        raise FormatError(
            f"unpacking {matrix} with {backend.name}",
            seen=f"a tensor in the layout {packed.layout!r}",
            rule=f"this problem uses the layout {layout.id!r}",
            fix="unpack with the backend, its version and the problem that packed it",
        )
    whole = layout.unpack(packed.tensors, packed.shape)
    halves = matrix == "gate_up" and problem.gate.halves
    return shrink(whole, shapes(problem)[matrix], halves, profile or whole.profile)


def linear(backend: Backend, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
    """Compute ``x @ weight.T + bias``.

    Args:
        backend: who packed the weight.
        x: [..., k] of ``problem.dtype``, any strides.
        weight: from ``pack``.
        problem: the problem it was packed for.

    Returns:
        [..., n], of the dtype of x.

    Raises:
        ShapeError: the last axis is not k.
        FormatError: dtype or device of x is not what was prepared for.
    """
    _check(x, weight, problem)
    if x.numel() == 0:
        return x.new_empty((*x.shape[:-1], problem.n))
    out = backend.linear(_rows(x, weight.shape[-1]), weight, problem)
    return out[:, : problem.n].reshape(*x.shape[:-1], problem.n)


def moe(
    backend: Backend, x: Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem
) -> Tensor:
    """Compute the weighted sum over the chosen experts.

    Args:
        backend: who packed the weights.
        x: [..., k] of ``problem.dtype``, any strides; k is the hidden size. [experts, rows, k] where
            ``problem.tokens`` is not ``flat``.
        gate_up: from ``pack(..., matrix="gate_up")``.
        down: from ``pack(..., matrix="down")``.
        routes: the router's choice for these tokens; under expert parallelism with a map.
        problem: the problem it was packed for.

    Returns:
        The shape and the dtype of x.

    Raises:
        ShapeError: sizes that do not belong together, or ids out of range.
        FormatError: a dtype or a device that is not what was prepared for.
    """
    _check(x, gate_up, problem)
    clean = checked(routes, x, problem)
    if x.numel() == 0:
        return torch.empty_like(x)
    rows = _rows(x, gate_up.shape[-1])
    if problem.tokens != "flat":
        rows = rows.view(*x.shape[:-1], -1)
    return backend.moe(rows, gate_up, down, clean, problem)[..., : problem.k].reshape(x.shape)


def quantize(backend: Backend, weight: Tensor, *, profile: str) -> MxTensor:
    """Quantise on the device of the weight, with the backend's own kernel.

    Args:
        backend: one that offers ``quantize``.
        weight: bfloat16, float16 or float32 [..., k], any strides, k a multiple of 32. Blocks with a NaN or an
            infinity become byte 255.
        profile: one of ``backend.numerics.profiles``.

    Raises:
        ConfigError: the backend does not know the profile.
        ShapeError: k is no multiple of 32.
        FormatError: another dtype.
    """
    _check_quantizable(backend, weight, profile)
    return backend.quantize(weight.contiguous(), profile=profile)


def quantize_into(
    backend: Backend, weight: Tensor, parts: Mapping[str, Tensor], *, profile: str, format: str = MXFP4.name
) -> None:
    """Quantise on the device of the weight into tensors that exist, without a copy where the backend needs none.

    Args:
        backend: one that offers ``quantize``.
        weight: as for `quantize`, like ``profile`` and the errors.
        parts: those of the format for the whole weight, which may be slices.
        profile: one of ``backend.numerics.profiles``, or for another format of the profiles of its verdict.
        format: what is made.
    """
    _check_quantizable(backend, weight, profile, format)
    into = getattr(backend, "quantize_into", None)  # a backend need not be a subclass
    if into is not None:
        into(weight.contiguous(), parts, profile=profile)
        return
    for name, part in backend.quantize(weight.contiguous(), profile=profile).parts.items():
        parts[name].copy_(part)


def _check_quantizable(backend: Backend, weight: Tensor, profile: str, format: str = MXFP4.name) -> None:
    block, profiles = MXFP4.block, backend.numerics.profiles
    if format != MXFP4.name:
        block = get(format).block
        here, dtype = Device.of(weight.device), str(weight.dtype).removeprefix("torch.")
        problem = Problem(op="quantize", n=1, k=block, dtype=dtype, format=format, device=here)
        profiles = numerics_for(backend, problem).profiles
    if profile not in profiles:
        raise ConfigError(
            f"quantising with {backend.name}",
            seen=f"profile {profile!r}",
            rule=f"it knows {', '.join(sorted(profiles)) or 'none'}",
            fix="use mxfp4_core.quantize, which knows all profiles and runs on any device",
        )
    if weight.dim() < 1 or weight.shape[-1] % block:
        raise ShapeError(
            f"quantising with {backend.name}",
            seen=f"shape {tuple(weight.shape)}",
            rule=f"the last axis is cut into blocks of {block}",
            fix="pad the weight with zeros, which is exact",
        )
    if weight.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise FormatError(
            f"quantising with {backend.name}",
            seen=str(weight.dtype),
            rule="a weight is bfloat16, float16 or float32",
            fix="convert the weight first",
        )


def _check(x: Tensor, weight: Packed, problem: Problem) -> None:
    if x.dim() < 1 or x.shape[-1] != problem.k:
        raise ShapeError(
            problem.op,
            seen=f"x of shape {tuple(x.shape)}",
            rule=f"the last axis of x is k = {problem.k}, without padding",
            fix="check which layer the activation belongs to",
        )
    device = next(iter(weight.tensors.values())).device
    if x.dtype != getattr(torch, problem.dtype, None) or x.device != device:
        raise FormatError(
            problem.op,
            seen=f"x is {x.dtype} on {x.device}",
            rule=f"the weight was prepared for {problem.dtype} on {device}",
            fix="convert x, or prepare the weight again for this dtype and device",
        )


def _rows(x: Tensor, k: int) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    return functional.pad(rows, (0, k - rows.shape[1])) if rows.shape[1] != k else rows.contiguous()
