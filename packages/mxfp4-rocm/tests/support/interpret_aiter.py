"""Run by ``test_interpreter.py``: AITER's Triton kernels in Triton's interpreter on a CPU, end to end.

    TRITON_INTERPRET=1 python interpret_aiter.py FOLDER_OF_THE_WHEEL

Tokens are quantised, weights laid out by us, multiplied by the vendor's kernels, launched by the vendor's functions;
the results are compared with the reference. The interpreter has no scaled matrix instruction, so it is computed here.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import rocm_vendor
import torch
from torch import Tensor
from triton import language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle

from mxfp4_core import dequantize, quantize
from mxfp4_core.backend import SILU, Gate
from mxfp4_core.testing.cases import BLOCKS
from mxfp4_core.testing.samples import random_routes, random_weight, random_x
from mxfp4_rocm import dense, experts, shuffle_weight, swizzle_scales, tokens, vendor

FORMS = {"e2m1", "bf16"}
original = interpreter._patch_lang_tensor


def operand(tensor: Any, scale: Any, form: str, exact: bool) -> Any:
    """Return float64 values of an operand, K last."""
    assert form in FORMS, form
    if form == "bf16":
        bits = tensor.handle.data
        return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    codes = torch.from_numpy(np.ascontiguousarray(tensor.handle.data).view(np.uint8))
    scales = torch.from_numpy(np.ascontiguousarray(scale.handle.data).view(np.uint8))
    wide = dequantize(codes, scales, torch.float64)
    # Where the other operand is no FP4, weights become bfloat16, in which byte 0 is 0.
    return (wide if exact else torch.where(scales.repeat_interleave(32, -1) == 0, 0.0, wide)).numpy()


def dot_scaled(
    lhs: Any,
    lhs_scale: Any,
    lhs_format: Any,
    rhs: Any,
    rhs_scale: Any,
    rhs_format: Any,
    acc: Any = None,
    **_: Any,
) -> Any:
    """Compute what the matrix unit does: products are exact, the sum is rounded to float32 once a step."""
    forms = [str(getattr(form, "value", form)) for form in (lhs_format, rhs_format)]
    exact = forms == ["e2m1", "e2m1"]
    first = operand(lhs, lhs_scale, forms[0], exact)
    second = operand(tl.trans(rhs), rhs_scale, forms[1], exact)
    out = first @ second.T + (0.0 if acc is None else acc.handle.data)
    return tl.tensor(
        TensorHandle(out.astype(np.float32), tl.float32), tl.block_type(tl.float32, list(out.shape))
    )


def patch_tensor(tensor: Any, scope: Any) -> None:
    """Let a scalar count: the interpreter keeps it in an array of one element, which numpy 2.4 converts no more."""
    original(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))
    scope.set_attr(tensor, "floor", floor)


def like(tensor: Any, data: Any) -> Any:
    return tl.tensor(TensorHandle(data.astype(np.float32), tl.float32), tensor.type)


def floor(tensor: Any) -> Any:
    """Round down: the interpreter does not know it as a method."""
    return like(tensor, np.floor(tensor.handle.data))


def exp2(tensor: Any) -> Any:
    """Return powers of two, exactly: numpy's are one unit off at the end of the range."""
    return like(tensor, np.ldexp(1.0, tensor.handle.data.astype(np.int32)))


def exact(codes: Tensor, scales: Tensor) -> Tensor:
    return dequantize(codes.contiguous(), scales.contiguous(), torch.float64)


def same(got: Tensor, want: Tensor, what: str) -> None:
    """Compare sums of exact products: float32 relative to the largest, bfloat16, which is cut off here, to each."""
    error, largest = (got.double() - want).abs(), want.abs().max()
    room = 2.0**-20 * largest + (0.0 if got.dtype == torch.float32 else 2.0**-7 * want.abs())
    assert got.shape == want.shape and bool((error <= room).all()), f"{what}: off by {float(error.max())}"


def quantiser() -> None:
    """Every named block, in the wheel's rule: as float32, because the interpreter loses subnormals of bfloat16."""
    run = rocm_vendor.module("quant").dynamic_mxfp4_quant
    noise = torch.randn(61, 96, generator=torch.Generator().manual_seed(0)) * 3
    for x in (torch.stack([block.weight for block in BLOCKS]), noise):
        codes, scales = run(x)
        want = quantize(x, profile="aiter-triton-0.1.7")
        assert torch.equal(scales, want.scales), "scales of the quantiser"
        assert torch.equal(codes, want.codes), "codes of the quantiser"
    assert tokens.quantizer_rule.__wrapped__(torch.device("cpu")) == "aiter-triton-0.1.7"


def gemms() -> None:
    """The three dense kernels, on operands that our layouts prepared, of few and of many tokens."""
    weight, x = random_weight(96, 512, scales=(119, 124)), random_x(40, 512)
    wide = exact(weight.codes, weight.scales)
    packed = shuffle_weight(weight.codes), swizzle_scales(weight.scales)
    for m in (3, 31, 40):
        codes, scales = tokens.quantize_rows(x[:m].contiguous())
        want = exact(codes, scales) @ wide.T
        got = dense._triton(codes, scales, weight.codes, weight.scales, torch.float32)
        same(got, want, f"gemm_afp4wfp4, m = {m}")
        if m < 32:
            same(dense._preshuffled(codes, scales, *packed), want, f"preshuffled, m = {m}")
    widened = experts.one_expert(x, weight.codes, weight.scales, torch.float32)
    same(widened, x.double() @ wide.T, "W4A16 by one expert")


def moe() -> None:
    """Experts by two launches, W4A4 and W4A16, with biases, empty slots and a shared expert."""
    count, n, k = 4, 128, 128
    gate_up = random_weight(count, 2 * n, k, scales=(117, 122))
    down = random_weight(count, k, n, scales=(117, 122))
    x, (ids, weights) = random_x(19, k), random_routes(19, 3, 2)
    ids[4, 1] = -1
    bias = torch.randn(count, 256, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    for way in ("experts", "widened"):
        for gate in (SILU, Gate(1.702, 7.0, 1.0, interleaved=True), Gate(function="relu2", gated=False)):
            rows = slice(gate.rows * n)
            got = experts.moe(
                x,
                experts.Stack(
                    gate_up.codes[:, rows].contiguous(), gate_up.scales[:, rows].contiguous(), bias[:, rows]
                ),
                experts.Stack(down.codes, down.scales, None),
                *(ids, weights, None, 1),
                gate,
                *(way, False),
            )
            local = torch.cat((ids, torch.full((19, 1), 3, dtype=torch.int32)), 1)
            factors = torch.cat((weights, torch.ones(19, 1)), 1)
            want = reference(x, gate_up, down, bias, local, factors, gate, way == "experts")
            error = float((got.double() - want).norm() / want.norm())
            assert error < (2e-2 if way == "experts" else 6e-3), f"{way} {gate}: {error}"


def reference(
    x: Tensor,
    gate_up: Any,
    down: Any,
    bias: Tensor,
    ids: Tensor,
    weights: Tensor,
    gate: Gate,
    quantised: bool,
) -> Tensor:
    def rounded(values: Tensor) -> Tensor:
        if not quantised:
            return values.to(torch.bfloat16).double()
        made = quantize(values.float().contiguous(), profile="even/even")
        return exact(made.codes, made.scales)

    out, rows = torch.zeros(x.shape, dtype=torch.float64), rounded(x)
    for token, slot in (ids >= 0).nonzero().tolist():
        expert = int(ids[token, slot])
        both = rows[token] @ exact(gate_up.codes[expert], gate_up.scales[expert]).T + bias[expert].double()
        hidden = rounded(activation(both, gate)[None])[0]
        out[token] += hidden @ exact(down.codes[expert], down.scales[expert]).T * float(weights[token, slot])
    return out


def activation(both: Tensor, gate: Gate) -> Tensor:
    if not gate.gated:
        return both[: len(both) // 2].clamp(min=0).square()
    first, up = (both[0::2], both[1::2]) if gate.interleaved else both.chunk(2)
    if gate.limit is not None:
        first, up = first.clamp(max=gate.limit), up.clamp(-gate.limit, gate.limit)
    return (up + gate.up_offset) * first * torch.sigmoid(gate.alpha * first)


if __name__ == "__main__":
    np.seterr(divide="ignore")  # log2 of a block of zeros
    rocm_vendor.install(Path(sys.argv[1]))
    tl.exp2 = exp2
    tl.dot_scaled, interpreter._patch_lang_tensor = dot_scaled, patch_tensor
    vendor.forget()
    quantiser()
    gemms()
    moe()
