# mypy: ignore-errors
# numba and llvmlite carry no types; what is typed here is what Python code calls.
"""The CPU kernels of ``mxfp4-dual`` and ``mxfp8``, made of the parts of :mod:`mxfp4_core.arithmetic.fast.lanes`.

Two levels: a group of 512 is divided by its outer scale, block by block, into 128 bytes that stay in the cache, and the
kernel of one level quantises those. E4M3: the magnitudes are rounded as integers where they are normal, and by one
float32 addition below.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from mxfp4_core.arithmetic.fast.cpu import _ALL, _encode, _encode_and_sign
from mxfp4_core.arithmetic.fast.cpu_special import _encode_any
from mxfp4_core.arithmetic.fast.lanes import (
    _F32,
    _I8,
    _I16,
    _I32,
    _KINDS,
    _amax,
    _clear,
    _extended,
    _fill,
    _jit,
    _load,
    _poke,
    _seek,
    _splat,
    _store,
    _weights,
)
from mxfp4_core.arithmetic.fast.steps import SPECIAL
from mxfp4_core.arithmetic.format import BLOCK, GROUP

_BLOCKS = GROUP // BLOCK
_INFINITE = np.float32(np.inf)
_INT, _FLOAT = ir.VectorType(_I32, BLOCK), ir.VectorType(_F32, BLOCK)


@intrinsic
def _finite_amax(typing_context, tag, address):
    """Return the largest finite magnitude of 32 weights as float32."""

    def emit(context, build, signature, arguments):
        kind = _KINDS[signature.args[0]]
        lane, magnitude, _ = _weights(build, arguments[1], kind)
        first = {"bfloat16": 0x7F80, "float16": 0x47800000, "float32": 0x7F800000}[
            kind
        ]  # past the finite ones
        finite = build.icmp_signed("<", magnitude, _fill(lane, first))
        magnitude = build.select(finite, magnitude, _fill(lane, 0))
        reduction = ir.FunctionType(lane, [magnitude.type])
        name = f"llvm.vector.reduce.umax.v{BLOCK}i{lane.width}"
        largest = build.call(cgutils.get_or_insert_function(build.module, reduction, name), [magnitude])
        if lane is _I16:
            largest = build.shl(build.zext(largest, _I32), ir.Constant(_I32, 16))
        return build.bitcast(largest, _F32)

    return types.float32(tag, types.uintp), emit


def _floats(build, address, kind):
    """Load 32 weights as float32; float16 that is not finite becomes NaN."""
    if kind == "float32":
        return _load(build, address, _F32)
    raw = build.zext(_load(build, address, _I16), _INT)
    if kind == "bfloat16":
        return build.bitcast(build.shl(raw, _fill(_I32, 16)), _FLOAT)
    magnitude = build.and_(raw, _fill(_I32, 0x7FFF))
    value = build.bitcast(build.shl(magnitude, _fill(_I32, 13)), _FLOAT)
    value = build.bitcast(build.fmul(value, _fill(_F32, 2.0**112)), _INT)
    finite = build.icmp_signed("<", magnitude, _fill(_I32, 0x7C00))
    value = build.select(finite, value, _fill(_I32, 0x7FC00000))
    sign = build.shl(build.and_(raw, _fill(_I32, 0x8000)), _fill(_I32, 16))
    return build.bitcast(build.or_(value, sign), _FLOAT)


def _half_up(build, bits, spare):
    """Add what makes dropping so many bits round to nearest, ties to even."""
    odd = build.and_(build.lshr(bits, _fill(_I32, spare)), _fill(_I32, 1))
    return build.add(build.add(bits, odd), _fill(_I32, (1 << (spare - 1)) - 1))


@intrinsic
def _divide(typing_context, tag, narrow, address, out, scale):
    """Divide 32 weights and store them as bfloat16 (``narrow`` and bfloat16) or float32, on the grid of float16 if so.

    ``narrow`` is a type, not a value: numba's boolean to round to the dtype of the weights, anything else not to.
    """

    def emit(context, build, signature, arguments):
        _, _, address, out, scale = arguments
        kind, rounds = _KINDS[signature.args[0]], isinstance(signature.args[1], types.Boolean)
        quotient = build.fdiv(_floats(build, address, kind), _splat(build, scale))
        bits = build.bitcast(quotient, _INT)
        if rounds and kind == "bfloat16":
            high = build.lshr(_half_up(build, bits, 16), _fill(_I32, 16))
            _store(build, build.trunc(high, ir.VectorType(_I16, BLOCK)), out)
            return context.get_dummy_value()
        if rounds and kind == "float16":
            magnitude = build.and_(bits, _fill(_I32, 0x7FFFFFFF))
            sign = build.and_(bits, _fill(_I32, -(1 << 31)))
            normal = build.and_(_half_up(build, magnitude, 13), _fill(_I32, -(1 << 13)))
            # Below 2**-14 the steps are 2**-24, which is the last bit of 0.5.
            half = _fill(_F32, 0.5)
            small = build.fsub(build.fadd(build.bitcast(magnitude, _FLOAT), half), half)
            above = build.icmp_signed(">=", magnitude, _fill(_I32, 113 << 23))
            bits = build.or_(sign, build.select(above, normal, build.bitcast(small, _INT)))
        _store(build, bits, out)
        return context.get_dummy_value()

    return types.void(tag, narrow, types.uintp, types.uintp, types.float32), emit


def _e4m3_encoder(special):
    """Make the intrinsic, with or without what special blocks need."""

    @intrinsic
    def encode(typing_context, tag, address, out, exponent, keep):
        """Divide 32 weights by 2**exponent and store their 32 E4M3 codes; ``keep`` as in `_extended`."""

        def emit(context, build, signature, arguments):
            _, address, out, exponent, keep = arguments
            lane, magnitude, sign = _weights(build, address, _KINDS[signature.args[0]])
            if special:
                magnitude, sign = _extended(build, lane, magnitude, sign, keep)
            elif lane is _I16:
                magnitude = build.shl(build.zext(magnitude, _INT), _fill(_I32, 16))
                sign = build.zext(sign, _INT)
            quotient = build.sub(magnitude, _splat(build, build.shl(exponent, ir.Constant(_I32, 23))))
            normal = build.ashr(_half_up(build, quotient, 20), _fill(_I32, 20))
            normal = build.sub(normal, _fill(_I32, 120 << 3))
            positive = build.icmp_signed(">", quotient, _fill(_I32, 0))
            small = build.bitcast(build.select(positive, quotient, _fill(_I32, 0)), _FLOAT)
            small = build.bitcast(build.fadd(small, _fill(_F32, 2.0**14)), _INT)
            small = build.sub(small, _fill(_I32, 141 << 23))
            above = build.icmp_signed(">=", quotient, _fill(_I32, 121 << 23))
            index = build.select(above, normal, small)
            index = build.select(build.icmp_signed("<", index, _fill(_I32, 0x7E)), index, _fill(_I32, 0x7E))
            code = build.or_(index, build.shl(sign, _fill(_I32, 4)))
            _store(build, build.trunc(code, ir.VectorType(_I8, BLOCK)), out)
            return context.get_dummy_value()

        return types.void(tag, types.uintp, types.uintp, types.int32, types.int32), emit

    return encode


_encode_e4m3, _encode_e4m3_any = _e4m3_encoder(special=False), _e4m3_encoder(special=True)


@intrinsic
def _poke_float(typing_context, address, value):
    """Store one float32 at an address."""

    def emit(context, build, signature, arguments):
        _store(build, arguments[1], arguments[0])
        return context.get_dummy_value()

    return types.void(types.uintp, types.float32), emit


@_jit
def quantize_dual(
    tag,
    narrow,
    inner_tag,
    value_bytes,
    source,
    outputs,
    strides,
    row_groups,
    start,
    stop,
    tables,
    places,
    limits,
    signs,
    how,
    scratch,
):
    """Quantize groups ``start`` to ``stop``, counted along rows; what is not said here is as in ``cpu.quantize``.

    ``narrow`` is True to round quotients to the dtype of the weights, 0 to leave them float32; ``inner_tag`` stands for
    the dtype of what the inner level sees: float32, unless they are rounded to bfloat16. ``outputs`` are the addresses
    of codes, scales and outer scales, ``strides`` the bytes between the rows of the weights and of these three.
    ``how`` is float32: what the largest magnitude is multiplied by, what it is divided by, and the smallest outer scale
    that is not flushed to zero. ``scratch`` is the address of 128 bytes of this thread's own.
    """
    mantissa, byte, exponent = tables
    thresholds = (limits[0], limits[1], limits[2], limits[3], limits[4], limits[5], limits[6])
    block_bytes = BLOCK * value_bytes
    signs_kept = signs[0] == 0 and signs[1] == 0 and signs[2] == 0
    bad = 0
    row, column = start // row_groups, start % row_groups
    for _ in range(stop - start):
        address = source + row * strides[0] + column * (_BLOCKS * block_bytes)
        amax = np.float32(0)
        for block in range(_BLOCKS):
            amax = max(amax, _finite_amax(tag, address + block * block_bytes))
        outer = amax * how[0] / how[1]
        if outer < how[2]:
            outer = np.float32(0)
        _poke_float(outputs[2] + row * strides[3] + column * 4, outer)
        divisor = outer if outer > 0 else _INFINITE  # x / inf is a zero of the sign of x
        for block in range(_BLOCKS):
            _divide(tag, narrow, address + block * block_bytes, scratch, divisor)
            largest = _amax(inner_tag, scratch)
            binade = largest >> 23
            side = 1 if (largest & 0x7FFFFF) >= mantissa[binade] else 0
            scale, shift = byte[side, binade], exponent[side, binade]
            if largest == 0:
                scale, shift = np.uint8(signs[3]), np.int32(0)
            out = outputs[0] + row * strides[1] + (column * _BLOCKS + block) * (BLOCK // 2)
            if shift == SPECIAL:
                scale, shift, keep = _seek(largest, places)
                if shift == SPECIAL:
                    bad += 1
                    _clear(out)
                else:
                    _encode_any(
                        inner_tag,
                        scratch,
                        out,
                        shift,
                        thresholds,
                        limits[7],
                        signs[0],
                        signs[1],
                        signs[2],
                        keep,
                    )
            elif signs_kept:
                _encode(inner_tag, scratch, out, shift, thresholds, limits[7], 0, 0, 0, _ALL)
            else:
                _encode_and_sign(
                    inner_tag, scratch, out, shift, thresholds, limits[7], signs[0], signs[1], signs[2], _ALL
                )
            _poke(outputs[1] + row * strides[2] + column * _BLOCKS + block, scale)
        column += 1
        if column == row_groups:
            row, column = row + 1, 0
    return bad


@_jit
def quantize_e4m3(
    tag, value_bytes, source, codes, scales, strides, row_blocks, start, stop, tables, places, zero_byte
):
    """Quantize blocks ``start`` to ``stop`` to E4M3; arguments as for ``cpu.quantize``."""
    mantissa, byte, exponent = tables
    block_bytes = BLOCK * value_bytes
    bad = 0
    row, column = start // row_blocks, start % row_blocks
    for _ in range(stop - start):
        address = source + row * strides[0] + column * block_bytes
        largest = _amax(tag, address)
        binade = largest >> 23
        side = 1 if (largest & 0x7FFFFF) >= mantissa[binade] else 0
        scale, divisor = byte[side, binade], exponent[side, binade]
        if largest == 0:
            scale, divisor = np.uint8(zero_byte), np.int32(0)
        out = codes + row * strides[1] + column * BLOCK
        if divisor != SPECIAL:
            _encode_e4m3(tag, address, out, divisor, _ALL)
        else:
            scale, divisor, keep = _seek(largest, places)
            if divisor == SPECIAL:
                bad += 1
                _clear(out)
                _clear(out + BLOCK // 2)
            else:
                _encode_e4m3_any(tag, address, out, divisor, keep)
        _poke(scales + row * strides[2] + column, scale)
        column += 1
        if column == row_blocks:
            row, column = row + 1, 0
    return bad


__all__ = ["quantize_dual", "quantize_e4m3"]
