# mypy: ignore-errors
# numba and llvmlite carry no types; what is typed here is what Python code calls.
"""The CPU kernels: one block of 32 values at a time, as LLVM vectors (:mod:`mxfp4_core.arithmetic.fast.lanes`).

Everything is integer arithmetic on the bits of the weights, see :mod:`mxfp4_core.arithmetic.fast.steps`.

Addresses and strides are in bytes. The functions release the GIL and trust their arguments: callers check them. The
``tag`` argument picks the dtype: an integer type of numba's stands for each (see ``TAGS``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from mxfp4_core.arithmetic.fast.lanes import (
    _I8,
    _I16,
    _I32,
    _KINDS,
    NOTHING,
    TAGS,
    _amax,
    _extended,
    _fill,
    _jit,
    _load,
    _peek,
    _poke,
    _splat,
    _store,
    _weights,
)
from mxfp4_core.arithmetic.fast.steps import SPECIAL
from mxfp4_core.arithmetic.format import BLOCK, E8M0_BIAS

_HALF = BLOCK // 2
_ALL = np.int32(-1)

# Scale bytes under which 0.5 is a normal number and 6 is finite.
NORMAL: dict[torch.dtype, tuple[int, int]] = {
    torch.bfloat16: (2, 252),
    torch.float16: (114, 140),
    torch.float32: (2, 252),
}


def _encoder(signs_kept: bool, special: bool = False) -> Any:
    """Make the intrinsic, with or without what changes the signs of zero codes, and what special blocks need."""

    @intrinsic
    def encode(typing_context, tag, address, out, exponent, limits, lifted, plus, exact, minus, keep):
        """Divide 32 weights by 2**exponent and store their 16 code bytes; ``keep`` as in `_extended`."""

        def emit(context, build, signature, arguments):
            _, address, out, exponent, limits, lifted, plus, exact, minus, keep = arguments
            lane, magnitude, sign = _weights(build, address, _KINDS[signature.args[0]])
            if special:
                magnitude, sign = _extended(build, lane, magnitude, sign, keep)
                lane = _I32
            narrow, vector = lane is _I16, magnitude.type
            nothing = _fill(lane, NOTHING if special else 0)

            def lanes(scalar: Any) -> Any:
                return _splat(build, build.trunc(scalar, _I16) if narrow else scalar)

            def mask(predicate: str, left: Any, right: Any) -> Any:
                return build.sext(build.icmp_signed(predicate, left, right), vector)

            shift = ir.Constant(_I32, 7 if narrow else 23)
            quotient = build.sub(magnitude, lanes(build.shl(exponent, shift)))
            index = _fill(lane, 0)
            for number in range(7):
                limit = build.extract_value(limits, number)
                if narrow:  # the smallest bfloat16 that reaches the float32 limit
                    limit = build.ashr(build.add(limit, ir.Constant(_I32, 0xFFFF)), ir.Constant(_I32, 16))
                index = build.sub(index, mask(">=", quotient, lanes(limit)))
            if not narrow:  # no bfloat16 lies between 0.25 and the float32 below it
                index = build.sub(index, mask("==", quotient, lanes(lifted)))
            if not signs_kept:
                zero_code = mask("==", index, _fill(lane, 0))
                zero_weight = mask("==", magnitude, nothing)
                sign = build.and_(sign, build.not_(build.and_(zero_code, lanes(plus))))
                sign = build.and_(sign, build.not_(build.and_(zero_weight, lanes(exact))))
                sign = build.or_(sign, build.and_(zero_weight, lanes(minus)))
            codes = build.or_(index, sign)
            if not narrow:
                codes = build.trunc(codes, ir.VectorType(_I16, BLOCK))
            pairs = build.bitcast(codes, ir.VectorType(_I32, _HALF))
            pairs = build.or_(pairs, build.lshr(pairs, _fill(_I32, 12, _HALF)))
            _store(build, build.trunc(pairs, ir.VectorType(_I8, _HALF)), out)
            return context.get_dummy_value()

        i32, pointer = types.int32, types.uintp
        masks = (i32, i32, i32, i32)
        return types.void(tag, pointer, pointer, i32, types.UniTuple(i32, 7), *masks, i32), emit

    return encode


_encode, _encode_and_sign = _encoder(signs_kept=True), _encoder(signs_kept=False)


@intrinsic
def _decode(typing_context, tag, address, out, exponent):
    """Multiply 32 codes by 2**exponent and store the values; every result must be a normal number or zero."""

    def emit(context, build, signature, arguments):
        _, address, out, exponent = arguments
        pairs = build.zext(_load(build, address, _I8, _HALF), ir.VectorType(_I32, _HALF))
        low = build.and_(pairs, _fill(_I32, 0xF, _HALF))
        high = build.shl(build.lshr(pairs, _fill(_I32, 4, _HALF)), _fill(_I32, 16, _HALF))
        codes = build.bitcast(build.or_(low, high), ir.VectorType(_I16, BLOCK))
        index = build.and_(codes, _fill(_I16, 7))
        # From 1.0 (index 2) on, each index adds half an exponent step to the bits; 0.5 sits where index 0 would.
        kind = _KINDS[signature.args[0]]
        mantissa_bits, half = (10, 0x3800) if kind == "float16" else (7, 0x3F00)
        value = build.add(build.shl(index, _fill(_I16, mantissa_bits - 1)), _fill(_I16, half))
        value = build.select(build.icmp_signed("==", index, _fill(_I16, 1)), _fill(_I16, half), value)
        steps = build.shl(exponent, ir.Constant(_I32, mantissa_bits))
        value = build.add(value, _splat(build, build.trunc(steps, _I16)))
        value = build.select(build.icmp_signed("==", index, _fill(_I16, 0)), _fill(_I16, 0), value)
        value = build.or_(value, build.shl(build.and_(codes, _fill(_I16, 8)), _fill(_I16, 12)))
        if kind == "float32":  # bfloat16 and sixteen zeros
            value = build.shl(build.zext(value, ir.VectorType(_I32, BLOCK)), _fill(_I32, 16))
        _store(build, value, out)
        return context.get_dummy_value()

    return types.void(tag, types.uintp, types.uintp, types.int32), emit


@_jit
def quantize(
    tag, value_bytes, source, codes, scales, strides, row_blocks, start, stop, tables, limits, signs
):
    """Quantize blocks ``start`` to ``stop``, counted along rows.

    Args:
        tag: dtype of the weights, from ``TAGS``.
        value_bytes: its size.
        source: address of the first row of weights.
        codes: address of the first row of codes.
        scales: address of the first row of scales.
        strides: bytes between the rows of each of the three.
        row_blocks: blocks in a row.
        start: first block.
        stop: block after the last one.
        tables: ``mantissa``, ``byte`` and ``exponent`` of :class:`mxfp4_core.arithmetic.fast.steps.Steps`.
        limits: its seven thresholds and ``lifted``.
        signs: masks that say which zero codes lose their sign (all, those of zero weights), the sign bit that zero
            weights gain, and the scale byte of zero blocks.

    Returns:
        How many blocks were left to :mod:`mxfp4_core.arithmetic.fast.cpu_special`; their scale byte is 255.
    """
    mantissa, byte, exponent = tables
    thresholds = (limits[0], limits[1], limits[2], limits[3], limits[4], limits[5], limits[6])
    block_bytes = BLOCK * value_bytes
    signs_kept = signs[0] == 0 and signs[1] == 0 and signs[2] == 0
    special = 0
    row, column = start // row_blocks, start % row_blocks
    for _ in range(stop - start):
        address = source + row * strides[0] + column * block_bytes
        largest = _amax(tag, address)
        binade = largest >> 23
        side = 1 if (largest & 0x7FFFFF) >= mantissa[binade] else 0
        scale, divisor = byte[side, binade], exponent[side, binade]
        if largest == 0:
            scale, divisor = np.uint8(signs[3]), np.int32(0)
        if divisor == SPECIAL:
            special += 1
        else:
            out = codes + row * strides[1] + column * (BLOCK // 2)
            if signs_kept:
                _encode(tag, address, out, divisor, thresholds, limits[7], 0, 0, 0, _ALL)
            else:
                _encode_and_sign(
                    tag, address, out, divisor, thresholds, limits[7], signs[0], signs[1], signs[2], _ALL
                )
        _poke(scales + row * strides[2] + column, scale)
        column += 1
        if column == row_blocks:
            row, column = row + 1, 0
    return special


@_jit
def dequantize(tag, value_bytes, codes, scales, out, blocks, first, last):
    """Dequantize contiguous blocks; arguments as for :func:`quantize`.

    Returns:
        How many blocks were left alone because their scale byte is not between ``first`` and ``last``.
    """
    special = 0
    for block in range(blocks):
        scale = _peek(scales + block)
        if scale < first or scale > last:
            special += 1
        else:
            exponent = np.int32(scale) - np.int32(E8M0_BIAS)
            _decode(tag, codes + block * (BLOCK // 2), out + block * (BLOCK * value_bytes), exponent)
    return special


__all__ = ["NORMAL", "TAGS", "dequantize", "quantize"]
