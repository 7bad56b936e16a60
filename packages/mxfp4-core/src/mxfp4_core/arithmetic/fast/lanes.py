# mypy: ignore-errors
# numba and llvmlite carry no types; what is typed here is what Python code calls.
"""What the CPU kernels are made of: 32 values as one LLVM vector, loaded, measured and stored.

Plain loops are several times slower, since the compiler widens 16-bit integers to 64; so the body of a block is
written as vector instructions (LLVM IR through numba's ``intrinsic``), which LLVM maps onto whatever the processor has.
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

from mxfp4_core.arithmetic.format import BLOCK
from mxfp4_core.arithmetic.profile import FLUSH

_LOG = logging.getLogger(__name__)
_I8, _I16, _I32, _F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()

TAGS: dict[torch.dtype, Any] = {
    torch.bfloat16: np.uint16(0),
    torch.float16: np.int16(0),
    torch.float32: np.uint32(0),
}
_KINDS = {types.uint16: "bfloat16", types.int16: "float16", types.uint32: "float32"}
# Less than any float32 with a wider exponent field, by more than any exponent moves it: 2**-149 has the field -22.
NOTHING = -60 << 23


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


def _extended(build: Any, lane: Any, magnitude: Any, sign: Any, keep: Any) -> tuple[Any, Any]:
    """Return magnitudes and signs of `_weights` as 32 bits each, with exponents below the smallest of float32.

    The bits of a subnormal number become those that it would have with a wider exponent field, which may be negative;
    so they compare as integers. Zeros, and all where ``keep``, -1 or 0, is 0, become ``NOTHING``.
    """
    wide = ir.VectorType(_I32, BLOCK)
    if lane is _I16:
        magnitude = build.shl(build.zext(magnitude, wide), _fill(_I32, 16))
        sign = build.zext(sign, wide)
    counted = build.bitcast(build.uitofp(magnitude, ir.VectorType(_F32, BLOCK)), wide)  # exact below 2**23
    counted = build.sub(counted, _fill(_I32, 149 << 23))
    below = build.icmp_signed("<", magnitude, _fill(_I32, 1 << 23))
    present = build.icmp_signed("!=", build.and_(magnitude, _splat(build, keep)), _fill(_I32, 0))
    magnitude = build.select(below, counted, magnitude)
    return build.select(present, magnitude, _fill(_I32, NOTHING)), sign


@intrinsic
def _place(typing_context, largest):
    """Return the row of a maximum in `Places`, above its 23 bits of mantissa."""

    def emit(context, build, signature, arguments):
        (bits,) = arguments
        below = build.icmp_signed("<", bits, ir.Constant(_I32, 1 << 23))
        small = build.bitcast(
            build.uitofp(bits, _F32), _I32
        )  # exact: its exponent is the place of the first bit
        small = build.sub(small, ir.Constant(_I32, 126 << 23))
        wide = ir.IntType(64)
        normal = build.add(build.zext(bits, wide), ir.Constant(wide, 23 << 23))
        return build.select(below, build.zext(small, wide), normal)

    return types.int64(types.int32), emit


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


@intrinsic
def _clear(typing_context, address):
    """Store 16 zero bytes at an address."""

    def emit(context, build, signature, arguments):
        _store(build, _fill(_I8, 0, 16), arguments[0])
        return context.get_dummy_value()

    return types.void(types.uintp), emit


def _jit(function: Any) -> Any:
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError as error:  # numba found no folder that it may write its cache to
        _LOG.info("CPU kernels are compiled anew in every process: %s", error)
        return numba.njit(nogil=True)(function)


@_jit
def _seek(largest, places):
    """Return scale byte, exponent and `_extended`'s mask of a block by its maximum, float32 bits, which is not 0."""
    second, third, byte, exponent = places
    place = _place(largest)
    row, mantissa = place >> 23, place & 0x7FFFFF
    state = (1 if mantissa >= second[row] else 0) + (1 if mantissa >= third[row] else 0)
    divisor = exponent[state, row]
    if divisor == FLUSH:
        return byte[state, row], np.int32(0), np.int32(0)
    return byte[state, row], divisor, np.int32(-1)
