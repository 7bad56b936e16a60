"""Linear layers through AITER's matmuls."""

from __future__ import annotations

import torch
from torch import Tensor

from mxfp4_core.arithmetic import padded
from mxfp4_rocm.checks import check_rows, check_weight
from mxfp4_rocm.experts import one_expert
from mxfp4_rocm.layout import swizzle_scales
from mxfp4_rocm.limits import FEW_TOKENS
from mxfp4_rocm.tokens import E8M0, FP4, quantize_rows
from mxfp4_rocm.vendor import function, has, takes


def linear(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, way: str, by_aiter: bool) -> Tensor:
    """Compute ``x @ weight.T + bias``.

    Args:
        x: bfloat16 [m, k], contiguous, m >= 1.
        codes: uint8 [n, k/2], in the layout of the way.
        scales: uint8, likewise.
        bias: [n] or None, added in float32.
        way: ``asm``, ``triton`` or ``widened``; see ``rules``.
        by_aiter: whether AITER's Triton quantizer quantises the tokens, instead of the core's.

    Returns:
        bfloat16 [m, n].

    Raises:
        FormatError, ShapeError: tensors that do not belong together; see ``checks``.
    """
    check_rows("linear", x)
    check_weight("linear", codes, scales, x, way, x.shape[1], experts=False)
    if way == "widened":
        out = one_expert(x, codes, scales, torch.bfloat16 if bias is None else torch.float32)
    else:
        tokens = quantize_rows(x, by_aiter)
        if way == "triton":
            out = _triton(*tokens, codes, scales, torch.bfloat16 if bias is None else torch.float32)
        elif x.shape[0] <= FEW_TOKENS and has("gemm_afp4wfp4_preshuffle"):
            out = _preshuffled(*tokens, codes, scales)
        else:
            out = _asm(*tokens, codes, scales)
    return out if bias is None else (out.float() + bias.float()).to(x.dtype)


def _triton(x: Tensor, x_scales: Tensor, codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    out: Tensor = function("gemm_afp4wfp4")(x=x, w=codes, x_scales=x_scales, w_scales=scales, dtype=dtype)
    return out


def _preshuffled(x: Tensor, x_scales: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """Multiply few tokens: their scales are as they are, those of the weight are swizzled."""
    n, width = codes.shape
    out: Tensor = function("gemm_afp4wfp4_preshuffle")(
        x,
        codes.view(n // 16, width * 16),
        x_scales,
        scales.view(scales.shape[0] // 32, -1)[: n // 32],
        dtype=torch.bfloat16,
    )
    return out


def _asm(x: Tensor, x_scales: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    m, n = x.shape[0], codes.shape[0]
    operands = {
        "A": x.view(FP4),
        "B": codes.view(FP4),
        "A_scale": swizzle_scales(x_scales).view(E8M0),
        "B_scale": scales.view(E8M0),
    }
    if takes("gemm_a4w4", "out"):
        out = torch.empty((padded(m, 32), n), dtype=torch.bfloat16, device=x.device)
        function("gemm_a4w4")(**operands, out=out, bpreshuffle=True)
    else:
        out = function("gemm_a4w4")(**operands, dtype=torch.bfloat16, bpreshuffle=True)
    return out[:m]


__all__ = ["linear"]
