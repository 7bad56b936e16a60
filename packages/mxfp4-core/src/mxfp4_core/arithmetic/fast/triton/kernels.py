"""The Triton kernels of the quantizer. Importing this module needs Triton.

Both read a block of 32 values at once and look its scale up by the binade of its maximum; ``tables.py`` says
what the tables hold.
"""

# No annotations here: Triton reads them as its own.

import triton
import triton.language as tl

ROWS = tl.constexpr(279)


@triton.jit
def _state(largest, threshold, state, THREE: tl.constexpr):
    """Look up the states of blocks by the float32 bits of their maxima."""
    small = largest < 0x800000
    bits = tl.where(small, largest.to(tl.float32).to(tl.int32, bitcast=True), largest)
    binade = tl.where(small, tl.maximum((bits >> 23) - 126, 0), (bits >> 23) + 23)
    second = (bits & 0x7FFFFF) >= tl.load(threshold + binade)
    place = binade + tl.where(second, ROWS, 0)
    if THREE:
        third = (bits & 0x7FFFFF) >= tl.load(threshold + ROWS + binade)
        place += tl.where(third, ROWS, 0)
    return tl.load(state + place)


@triton.jit
def _max_pair(a, b):
    return tl.inline_asm_elementwise(
        "max.u16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def _twice(half, shape: tl.constexpr):
    return tl.broadcast_to((half | (half << 16))[:, None], shape)


@triton.jit
def packed_kernel(
    x,
    codes,
    scales,
    threshold,
    state,
    blocks,
    ENCODE: tl.constexpr,
    CONSTRAINTS: tl.constexpr,
    HALF: tl.constexpr,
    THREE: tl.constexpr,
    NB: tl.constexpr,
):
    """Quantize NB blocks of bfloat16 or (HALF) float16, read as pairs in int32 [blocks, 16], by PTX on pairs."""
    block = tl.program_id(0) * NB + tl.arange(0, NB)
    live = block < blocks
    place = block[:, None].to(tl.int64) * 16 + tl.arange(0, 16)[None, :]
    pair = tl.load(x + place, mask=live[:, None], other=0)
    both = tl.reduce(pair & 0x7FFF7FFF, 1, _max_pair)
    largest = tl.maximum(both & 0xFFFF, both >> 16)
    if HALF:
        largest = largest.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32).to(tl.int32, bitcast=True)
    else:
        largest = largest << 16
    found = _state(largest, threshold, state, THREE)
    # Not zero: where zeros are minus, the codes of blocks to be cleared are zero all the same.
    pair = tl.where((found & 0x100 != 0)[:, None], 0x00010001, pair)
    factor = (found >> 16) & 0xFFFF
    if HALF:
        # Two exponents that sum up to that of the factor, within those of float16.
        exponents = (factor >> 7) - 97
        first, second = (exponents >> 1) << 10, (exponents - (exponents >> 1)) << 10
        out = tl.inline_asm_elementwise(
            ENCODE,
            CONSTRAINTS,
            [pair, _twice(first, pair.shape), _twice(second, pair.shape)],
            dtype=tl.int8,
            is_pure=True,
            pack=4,
        )
    else:
        out = tl.inline_asm_elementwise(
            ENCODE, CONSTRAINTS, [pair, _twice(factor, pair.shape)], dtype=tl.int8, is_pure=True, pack=4
        )
    tl.store(codes + place, out, mask=live[:, None])
    tl.store(scales + block, found.to(tl.int8), mask=live)


@triton.jit
def _split(pair, FORMAT: tl.constexpr):
    """Return the float32 bits of the two values of a pair."""
    if FORMAT == "fp32":
        return pair.to(tl.int32), (pair >> 32).to(tl.int32)
    if FORMAT == "bf16":
        return pair << 16, pair & -65536
    low, high = pair.to(tl.int16), (pair >> 16).to(tl.int16)
    return (
        low.to(tl.float16, bitcast=True).to(tl.float32).to(tl.int32, bitcast=True),
        high.to(tl.float16, bitcast=True).to(tl.float32).to(tl.int32, bitcast=True),
    )


@triton.jit
def _encode(bits, factor, top, TIES: tl.constexpr, ZEROS: tl.constexpr, LIFT: tl.constexpr):
    """Do in float32 what ``ptx.py`` describes. ``top`` is the largest index, 0 in blocks to be cleared."""
    magnitude = bits & 0x7FFFFFFF
    q = magnitude.to(tl.float32, bitcast=True) * factor
    if TIES == "zero":
        q += 1.1754943508222875e-38  # leaves all that matters alone, and nothing at zero
    q = q.to(tl.int32, bitcast=True)
    s = tl.maximum(q & 0x7F800000, 0x3F800000)
    m = s + (22 << 23)
    if LIFT:
        q = tl.where(q == 0x3E7FFFFF, 0x3E800001, q)
    if TIES == "away":
        q = q | 1
    if TIES == "zero":
        q = (q - 1) | 1
    r = (q.to(tl.float32, bitcast=True) + m.to(tl.float32, bitcast=True)).to(tl.int32, bitcast=True)
    steps = r - m + (s >> 22) - 0xFE
    index = tl.minimum(steps.to(tl.uint32, bitcast=True), top.to(tl.uint32)).to(tl.int32, bitcast=True)
    minus = (top + 1) & 8
    sign = (bits >> 28) & minus
    if ZEROS == "plus":
        sign = tl.where(index == 0, 0, sign)
    if ZEROS == "plus-input":
        sign = tl.where(magnitude == 0, 0, sign)
    if ZEROS == "minus-input":
        sign = tl.where(magnitude == 0, minus, sign)
    return index | sign


@triton.jit
def portable_kernel(
    x,
    codes,
    scales,
    threshold,
    state,
    blocks,
    FORMAT: tl.constexpr,
    TIES: tl.constexpr,
    ZEROS: tl.constexpr,
    LIFT: tl.constexpr,
    RUN: tl.constexpr,
    THREE: tl.constexpr,
    NB: tl.constexpr,
):
    """Quantize NB blocks, read as pairs in int32 or int64 [blocks, 16], in float32; RUN pairs in a row a thread."""
    block = tl.program_id(0) * NB + tl.arange(0, NB)
    live = block < blocks
    place = block[:, None].to(tl.int64) * 16 + tl.arange(0, 16)[None, :]
    place = tl.max_contiguous(place, [1, RUN])
    even, odd = _split(tl.load(x + place, mask=live[:, None], other=0), FORMAT)
    largest = tl.max(tl.maximum(even & 0x7FFFFFFF, odd & 0x7FFFFFFF), 1)
    found = _state(largest, threshold, state, THREE)
    factor = (found & -65536).to(tl.float32, bitcast=True)[:, None]
    top = tl.where(found & 0x100 != 0, 0, 7)[:, None]
    low = _encode(even, factor, top, TIES, ZEROS, LIFT)
    high = _encode(odd, factor, top, TIES, ZEROS, LIFT)
    tl.store(codes + place, (low | (high << 4)).to(tl.int8), mask=live[:, None])
    tl.store(scales + block, found.to(tl.int8), mask=live)
