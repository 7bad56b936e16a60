# mypy: ignore-errors
# numba and llvmlite carry no types; what is typed here is what Python code calls.
"""The CPU kernels: one block of 32 values at a time, as LLVM vectors.

Plain loops are several times slower, since the compiler widens 16-bit integers to 64; so the body of a block is
written as vector instructions (LLVM IR through numba's ``intrinsic``), which LLVM maps onto whatever the processor has.
Everything is integer arithmetic on the bits of the weights, see :mod:`mxfp4_core.arithmetic.fast.steps`.

Addresses and strides are in bytes. The functions release the GIL and trust their arguments: callers check them. The
``tag`` argument picks the dtype: an integer type of numba's stands for each (see ``TAGS``).
"""

from __future__ import annotations

import logging
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from mxfp4_core.arithmetic.fast.steps import SPECIAL
from mxfp4_core.arithmetic.format import BLOCK, E8M0_BIAS

_LOG = logging.getLogger(__name__)
_I8, _I16, _I32, _F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()
_HALF = BLOCK // 2

TAGS: dict[torch.dtype, Any] = {
    torch.bfloat16: np.uint16(0),
    torch.float16: np.int16(0),
    torch.float32: np.uint32(0),
}
# Scale bytes under which 0.5 is a normal number and 6 is finite.
NORMAL: dict[torch.dtype, tuple[int, int]] = {
    torch.bfloat16: (2, 252),
    torch.float16: (114, 140),
    torch.float32: (2, 252),
}
_KINDS = {types.uint16: "bfloat16", types.int16: "float16", types.uint32: "float32"}


def _fill(lane: Any, value: float, lanes: int = BLOCK) -> Any:
    return ir.Constant(ir.VectorType(lane, lanes), [value] * lanes)


def _splat(build: Any, scalar: Any) -> Any:
    vector = ir.Constant(ir.VectorType(scalar.type, BLOCK), ir.Undefined)
    vector = build.insert_element(vector, scalar, ir.Constant(_I32, 0))
    return build.shuffle_vector(vector, vector, _fill(_I32, 0))


def _load(build: Any, address: Any, lane: Any, lanes: int = BLOCK) -> Any:
    vector = build.load(build.inttoptr(address, ir.VectorType(lane, lanes).as_pointer()))
    vector.align = 1  # rows of a slice may start anywhere
    return vector


def _store(build: Any, value: Any, address: Any) -> None:
    build.store(value, build.inttoptr(address, value.type.as_pointer())).align = 1


def _weights(build: Any, address: Any, kind: str) -> tuple[Any, Any, Any]:
    """Load 32 weights; return the lane type, magnitudes as float bits of that width, and signs as 0 or 8."""
    if kind == "float32":
        raw = _load(build, address, _I32)
        sign = build.and_(build.lshr(raw, _fill(_I32, 28)), _fill(_I32, 8))
        return _I32, build.and_(raw, _fill(_I32, 0x7FFFFFFF)), sign
    raw = _load(build, address, _I16)
    magnitude = build.and_(raw, _fill(_I16, 0x7FFF))
    sign = build.and_(build.lshr(raw, _fill(_I16, 12)), _fill(_I16, 8))
    if kind == "bfloat16":
        return _I16, magnitude, sign
    # float16 to float32 bits: move the fields, then rescale by 2**112, which is exact for subnormals too.
    wide = ir.VectorType(_I32, BLOCK)
    moved = build.shl(build.zext(magnitude, wide), _fill(_I32, 13))
    value = build.fmul(build.bitcast(moved, ir.VectorType(_F32, BLOCK)), _fill(_F32, 2.0**112))
    return _I32, build.bitcast(value, wide), build.zext(sign, wide)


@intrinsic
def _amax(typing_context, tag, address):
    """Return the largest magnitude of 32 weights as float32 bits."""

    def emit(context, build, signature, arguments):
        lane, magnitude, _ = _weights(build, arguments[1], _KINDS[signature.args[0]])
        reduction = ir.FunctionType(lane, [magnitude.type])
        name = f"llvm.vector.reduce.umax.v{BLOCK}i{lane.width}"
        largest = build.call(cgutils.get_or_insert_function(build.module, reduction, name), [magnitude])
        return build.shl(build.zext(largest, _I32), ir.Constant(_I32, 16)) if lane is _I16 else largest

    return types.int32(tag, types.uintp), emit


def _encoder(signs_kept: bool) -> Any:
    """Make the intrinsic, with or without the instructions that change the signs of zero codes."""

    @intrinsic
    def encode(typing_context, tag, address, out, exponent, limits, lifted, plus, exact, minus):
        """Divide 32 weights by 2**exponent and store their 16 code bytes."""

        def emit(context, build, signature, arguments):
            _, address, out, exponent, limits, lifted, plus, exact, minus = arguments
            lane, magnitude, sign = _weights(build, address, _KINDS[signature.args[0]])
            narrow, vector = lane is _I16, magnitude.type

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
                zero_weight = mask("==", magnitude, _fill(lane, 0))
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
        return types.void(tag, pointer, pointer, i32, types.UniTuple(i32, 7), i32, i32, i32, i32), emit

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


@intrinsic
def _peek(typing_context, address):
    """Return the byte at an address."""

    def emit(context, build, signature, arguments):
        return build.load(build.inttoptr(arguments[0], _I8.as_pointer()))

    return types.uint8(types.uintp), emit


@intrinsic
def _poke(typing_context, address, byte):
    """Store one byte at an address."""

    def emit(context, build, signature, arguments):
        _store(build, arguments[1], arguments[0])
        return context.get_dummy_value()

    return types.void(types.uintp, types.uint8), emit


def _jit(function: Any) -> Any:
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError as error:  # numba found no folder that it may write its cache to
        _LOG.info("CPU kernels are compiled anew in every process: %s", error)
        return numba.njit(nogil=True)(function)


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
        How many blocks were left alone for the reference; their scale byte is 255.
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
                _encode(tag, address, out, divisor, thresholds, limits[7], 0, 0, 0)
            else:
                _encode_and_sign(
                    tag, address, out, divisor, thresholds, limits[7], signs[0], signs[1], signs[2]
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
