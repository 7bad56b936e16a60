"""AITER's functions as strict as its kernels are silent: they refuse what the kernels compute wrongly.

Each is what the vendor's function of that name does, in float32 on the CPU: from the bytes as the kernels take them,
after the layouts are undone by closed forms of their own. dtypes, contiguity and sizes are checked; memory that the
vendor leaves uninitialised is NaN.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mxfp4_core import dequantize, quantize
from mxfp4_core.arithmetic import resolve

FP4, E8M0 = torch.float4_e2m1fn_x2, torch.float8_e8m0fnu


class QuantType(enum.Enum):
    No = 0
    per_Tensor = 1
    per_Token = 2
    per_1x32 = 4
    per_1x128 = 5
    per_128x128 = 6


class ActivationType(enum.Enum):
    No = -1
    Silu = 0
    Gelu = 1
    Swiglu = 2


TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


class Wrong(AssertionError):
    """A call that the vendor's kernels would answer with wrong numbers, or not at all."""


def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Hide a function as ``torch_compile_guard`` of the wheel does: what it leaves tells nothing of its arguments."""

    def wrapper_custom(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper_custom


def check(sound: bool, what: str) -> None:
    if not sound:
        raise Wrong(what)


def widened(codes: Tensor, scales: Tensor) -> Tensor:
    """Widen canonical bytes to float32; byte 255 is NaN, over zero codes too."""
    return dequantize(codes.contiguous(), scales.contiguous(), torch.float32)


def as_bfloat16(codes: Tensor, scales: Tensor) -> Tensor:
    """Widen to bfloat16 as dot_scaled does with fast_math: the byte becomes an exponent, so that 0 is 0."""
    ones = dequantize(codes, torch.full_like(scales, 127), torch.float32)
    factor = (scales.to(torch.int16) << 7).view(torch.bfloat16).float().repeat_interleave(32, -1)
    return (ones * factor).to(torch.bfloat16).float()


def unshuffled(codes: Tensor) -> Tensor:
    """Undo shuffle_weight (16, 16) by its address: tile of 16 rows, 32 bytes, half of 16 bytes, row, byte."""
    n, width = codes.shape
    row, byte = torch.arange(n)[:, None], torch.arange(width)[None]
    place = row // 16 * 16 * width + byte // 32 * 512 + byte % 32 // 16 * 256 + row % 16 * 16 + byte % 16
    return codes.reshape(-1)[place]


def unswizzled(scales: Tensor, n: int, columns: int) -> Tensor:
    """Undo e8m0_shuffle by its address; see the facts of A.3."""
    width = -(-columns // 8) * 8
    row, column = torch.arange(n)[:, None], torch.arange(columns)[None]
    place = row // 32 * 32 * width + column // 8 * 256 + column % 4 * 64
    place = place + row % 16 * 4 + column % 8 // 4 * 2 + row % 32 // 16
    return scales.reshape(-1)[place]


def sizes(name: str, a: Tensor, b: Tensor) -> tuple[int, int, int]:
    (m, width), n = a.shape, b.shape[0]
    check(a.is_contiguous() and b.is_contiguous(), f"{name}: operands have gaps")
    check(b.shape[1] == width, f"{name}: {tuple(a.shape)} by {tuple(b.shape)}")
    return m, n, 2 * width


def gemm_a4w4(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, bpreshuffle: bool) -> Tensor:
    check(a.dtype == b.dtype == FP4, f"gemm_a4w4: codes are {a.dtype} and {b.dtype}")
    check(
        a_scale.dtype == b_scale.dtype == E8M0, f"gemm_a4w4: scales are {a_scale.dtype} and {b_scale.dtype}"
    )
    a, b, a_scale, b_scale = (each.view(torch.uint8) for each in (a, b, a_scale, b_scale))
    m, n, k = sizes("gemm_a4w4", a, b)
    check(bpreshuffle, "gemm_a4w4: the weight is shuffled")
    check(k % 256 == 0, f"gemm_a4w4: k = {k} gives wrong results")
    check(n % 128 == 0, f"gemm_a4w4: no kernel for n = {n}")
    check(n > 128, f"gemm_a4w4: wrong rows at n = {n}")
    for scale, rows in ((a_scale, m), (b_scale, n)):
        check(scale.shape == (-(-rows // 256) * 256, k // 32), f"gemm_a4w4: scales {tuple(scale.shape)}")
        check(scale.is_contiguous(), "gemm_a4w4: scales have gaps")
    x = widened(a, unswizzled(a_scale, m, k // 32))
    w = widened(unshuffled(b), unswizzled(b_scale, n, k // 32))
    return (x @ w.T).to(torch.bfloat16)


def gemm_afp4wfp4(x: Tensor, w: Tensor, x_scales: Tensor, w_scales: Tensor, dtype: torch.dtype) -> Tensor:
    check({x.dtype, w.dtype, x_scales.dtype, w_scales.dtype} == {torch.uint8}, "gemm_afp4wfp4: takes bytes")
    m, n, k = sizes("gemm_afp4wfp4", x, w)
    check(k % 256 == 0, f"gemm_afp4wfp4: scales behind k = {k} are read without a mask")
    check(x_scales.shape == (m, k // 32) and w_scales.shape == (n, k // 32), "gemm_afp4wfp4: scales")
    return (widened(x, x_scales) @ widened(w, w_scales).T).to(dtype)


def preshuffled(x: Tensor, w: Tensor, x_scales: Tensor, w_scales: Tensor, dtype: torch.dtype) -> Tensor:
    check({x.dtype, w.dtype, x_scales.dtype, w_scales.dtype} == {torch.uint8}, "preshuffle: takes bytes")
    (m, width), n = x.shape, 16 * w.shape[0]
    k = 2 * width
    check(m < 32, f"preshuffle: of m = {m} tokens the scales are to be swizzled")
    check(
        w.shape[1] == 16 * width and k % 256 == 0 and n % 32 == 0, f"preshuffle: {tuple(w.shape)} for k = {k}"
    )
    check(x_scales.shape == (m, k // 32) and w_scales.shape == (n // 32, k), "preshuffle: scales")
    weight = widened(unshuffled(w.reshape(n, width)), unswizzled(w_scales, n, k // 32))
    return (widened(x, x_scales) @ weight.T).to(dtype)


def dynamic_mxfp4_quant(x: Tensor, profile: str) -> tuple[Tensor, Tensor]:
    check(x.dim() == 2 and x.shape[1] % 4 == 0, f"dynamic_mxfp4_quant: {tuple(x.shape)}")
    check(x.is_floating_point(), f"dynamic_mxfp4_quant: {x.dtype}")
    made = quantize(x.nan_to_num(0.0), profile=profile, tail="pad")
    return made.codes, made.scales.T.contiguous().T  # made as [k/32, m]


def fused_moe_mxfp4(
    a: Tensor, b: Tensor, c: Tensor, a_mx: Tensor | None, b_mx: Tensor, ids: Tensor, sorted_ids: Tensor,
    expert_ids: Tensor, count: Tensor, top_k: int, config: dict[str, Any], compute: str, weighted: bool,
) -> None:  # fmt: skip
    """Write the rows of c that the sorted slots name; all others stay what they were."""
    block, rows, columns = config["BLOCK_SIZE_M"], config["BLOCK_SIZE_N"], config["BLOCK_SIZE_K"]
    check(TYPES[c.dtype] == compute, f"fused_moe_mxfp4: computes {compute} into {c.dtype}")
    check(not weighted, "fused_moe_mxfp4: weights are applied by the caller here")
    check(b.dtype == b_mx.dtype == torch.uint8 and b.is_contiguous() and b_mx.is_contiguous(), "weights")
    n, k = b.shape[1], 2 * b.shape[2]
    check(n % rows == 0, f"fused_moe_mxfp4: n = {n} is no multiple of BLOCK_SIZE_N, which it says it is")
    check(b_mx.shape == (*b.shape[:2], k // 32), f"fused_moe_mxfp4: scales {tuple(b_mx.shape)}")
    check({ids.dtype, sorted_ids.dtype, expert_ids.dtype, count.dtype} == {torch.int32}, "int32 tables")
    if a.dtype == torch.uint8:
        check(a_mx is not None and a_mx.shape == (a.shape[0], k // 32), "fused_moe_mxfp4: scales of a")
        assert a_mx is not None
        x, widen = widened(a, a_mx), widened
    else:
        check(a.dtype == torch.bfloat16 and a_mx is None, f"fused_moe_mxfp4: a is {a.dtype}")
        check(k % columns == 0, f"fused_moe_mxfp4: k = {k} reads beyond the weight")
        x, widen = a.float(), as_bfloat16
    check(x.shape[1] == k, f"fused_moe_mxfp4: a {tuple(a.shape)} by b {tuple(b.shape)}")
    c.fill_(float("nan"))  # rows that no slot names are never written
    slots, total = c.view(-1, n), ids.numel()
    check(x.shape[0] * top_k == total == slots.shape[0], "fused_moe_mxfp4: rows, slots and results")
    end = int(count)
    check(end <= len(sorted_ids) and end % block == 0, f"fused_moe_mxfp4: {end} of {len(sorted_ids)}")
    if x.shape[0] < block:
        check(end <= x.shape[0] * top_k * block, "fused_moe_mxfp4: more blocks than it launches")
    owners = expert_ids.repeat_interleave(block)[:end]
    there = sorted_ids[:end] < total
    for expert in owners[there].unique().tolist():
        mine = sorted_ids[:end][there & (owners == expert)].long()
        slots[mine] = (x[mine // top_k] @ widen(b[expert], b_mx[expert]).T).to(c.dtype)


def fused_moe(
    x: Tensor, w1: Tensor, w2: Tensor, weights: Tensor, ids: Tensor, mask: Tensor | None, activation: Any,
    quant_type: Any, w1_scale: Tensor, w2_scale: Tensor, profile: str,
) -> Tensor:  # fmt: skip
    """Two stages: tokens and hidden states in bfloat16 are quantised per 32."""
    check(quant_type is QuantType.per_1x32 and activation is ActivationType.Silu, "fused_moe: which kernels?")
    for name, weight in (("w1", w1), ("w2", w2)):
        check(weight.dtype == FP4 and weight.is_contiguous(), f"fused_moe: {name} is {weight.dtype}")
        check(bool(getattr(weight, "is_shuffled", False)), f"fused_moe: {name} is not marked as shuffled")
    experts, inner, hidden = w2.shape[0], 2 * w2.shape[2], w2.shape[1]
    check(w1.shape == (experts, 2 * inner, hidden // 2), f"fused_moe: {tuple(w1.shape)}, {tuple(w2.shape)}")
    check(hidden % 256 == 0 and inner % 256 == 0, f"fused_moe: wrong for {hidden} and {inner}")
    check(x.dtype == torch.bfloat16 and x.is_contiguous(), f"fused_moe: tokens are {x.dtype}")
    check(weights.dtype == torch.float32 and ids.dtype == torch.int32, "fused_moe: routes")
    total = experts if mask is None else mask.numel()
    check(bool(((ids >= 0) & (ids < total)).all()), "fused_moe: an id out of range reads another expert")
    place = torch.arange(total) if mask is None else torch.where(mask != 0, mask.cumsum(0) - 1, -1)
    scales = []
    for scale, rows, columns in ((w1_scale, 2 * inner, hidden // 32), (w2_scale, hidden, inner // 32)):
        check(scale.dtype == E8M0 and scale.is_contiguous(), f"fused_moe: scales are {scale.dtype}")
        check(scale.shape == (experts * rows, columns), f"fused_moe: scales {tuple(scale.shape)}")
        scales.append(unswizzled(scale.view(torch.uint8), experts * rows, columns).view(experts, rows, -1))

    def rounded(values: Tensor) -> Tensor:
        made = quantize(values.nan_to_num(0.0), profile=resolve(profile).name)
        return widened(made.codes, made.scales)

    out, tokens = torch.zeros(x.shape), rounded(x)
    local = place[ids.long()]
    for expert in local[local >= 0].unique().tolist():
        first, second = (
            widened(unshuffled(w[expert].view(torch.uint8)), s[expert])
            for w, s in zip((w1, w2), scales, strict=True)
        )
        rows, slots = torch.where(local == expert)
        gate, up = (tokens[rows] @ first.T).chunk(2, 1)
        middle = rounded((gate * torch.sigmoid(gate) * up).to(torch.bfloat16))
        out.index_add_(0, rows, (middle @ second.T) * weights[rows, slots, None])
    return out.to(torch.bfloat16)
