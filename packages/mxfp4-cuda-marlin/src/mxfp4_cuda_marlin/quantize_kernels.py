"""The Triton kernels of the quantizer. Importing this module needs Triton.

Both read a block of 32 values at once and look the scale up by the exponent field of the block's maximum. Blocks that
the tables leave to the reference get byte 255 and raise the flag ``special``.
"""

# No annotations here: Triton reads them as its own.

import triton
import triton.language as tl

# Two bfloat16 values at a time. q = |x| * 2^-E is exact. s is the power of two at or below q, at least 1. Adding 64 s
# rounds q to nearest even at the step of E2M1 there; the low bits of the sum count the steps from zero, and the
# exponent of s adds two codes a binade. What exceeds 6 saturates.
_PAIR = """and.b32 a, $%d, 0x7fff7fff;
mul.rn.bf16x2 q, a, $%d;
and.b32 s, q, 0x7f807f80;
max.u16x2 s, s, one;
add.u32 m, s, 0x03000300;
add.rn.bf16x2 r, q, m;
sub.u32 r, r, m;
shr.u32 s, s, 6;
add.u32 r, r, s;
sub.u32 r, r, 0x00fe00fe;
min.u16x2 r, r, seven;
shr.u32 t, $%d, 12;
and.b32 t, t, 0x00080008;
or.b32 r, r, t;
shr.u32 t, r, 12;
or.b32 p%d, r, t;"""

_ENCODE = tl.constexpr(
    """{
.reg .b32 a, q, s, m, r, t, p0, p1, p2, p3, d0, d1, one, seven;
mov.b32 one, 0x3f803f80;
mov.b32 seven, 0x00070007;
"""
    + "\n".join(_PAIR % (1 + i, 5 + i, 1 + i, i) for i in range(4))
    + """
prmt.b32 d0, p0, p1, 0x0040;
prmt.b32 d1, p2, p3, 0x0040;
prmt.b32 $0, d0, d1, 0x5410;
}"""
)


@triton.jit
def _max_pair(a, b):
    return tl.inline_asm_elementwise(
        "max.u16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def bfloat16_kernel(
    x, codes, scales, threshold, state, special, blocks, MARK: tl.constexpr, NB: tl.constexpr
):
    """Quantize NB blocks of bfloat16, read as pairs in int32 [blocks, 16]; MARK says that some may be special."""
    block = tl.program_id(0) * NB + tl.arange(0, NB)
    live = block < blocks
    place = block[:, None].to(tl.int64) * 16 + tl.arange(0, 16)[None, :]
    pair = tl.load(x + place, mask=live[:, None], other=0)
    both = tl.reduce(pair & 0x7FFF7FFF, 1, _max_pair)
    largest = tl.maximum(both & 0xFFFF, both >> 16)
    row = largest >> 7
    second = ((largest & 0x7F) << 16) >= tl.load(threshold + row)
    found = tl.load(state + row + tl.where(second, 256, 0))
    byte = found & 0xFF
    factor = (found >> 16) & 0xFFFF
    pair = tl.where((byte == 255)[:, None], 0, pair)
    twice = tl.broadcast_to((factor | (factor << 16))[:, None], (NB, 16))
    out = tl.inline_asm_elementwise(
        _ENCODE, "=r,r,r,r,r,r,r,r,r", [pair, twice], dtype=tl.int8, is_pure=True, pack=4
    )
    tl.store(codes + place, out, mask=live[:, None])
    tl.store(scales + block, byte.to(tl.int8), mask=live)
    if MARK:
        tl.atomic_max(special + tl.zeros_like(block), 1, mask=live & (byte == 255), sem="relaxed")


@triton.jit
def _bits(x):
    """Return float32 bits. bfloat16 comes as int16, so that no unit flushes its subnormals; float32 as int32."""
    if x.dtype == tl.int16:
        return x.to(tl.int32) << 16
    if x.dtype == tl.int32:
        return x
    return x.to(tl.float32).to(tl.int32, bitcast=True)


@triton.jit
def _encode(bits, exponent, limits, PLUS: tl.constexpr, EXACT: tl.constexpr, MINUS: tl.constexpr):
    magnitude = bits & 0x7FFFFFFF
    quotient = magnitude - (exponent << 23)[:, None]
    index = (quotient >= tl.load(limits)).to(tl.int32)
    for i in tl.static_range(1, 7):
        index += (quotient >= tl.load(limits + i)).to(tl.int32)
    index += (quotient == tl.load(limits + 7)).to(tl.int32)
    sign = (bits >> 28) & 8
    if PLUS:
        sign = tl.where(index == 0, 0, sign)
    if EXACT:
        sign = tl.where(magnitude == 0, 0, sign)
    if MINUS:
        sign = tl.where(magnitude == 0, 8, sign)
    return index | sign


@triton.jit
def portable_kernel(
    x,
    codes,
    scales,
    mantissa,
    state,
    limits,
    special,
    blocks,
    ZERO: tl.constexpr,
    PLUS: tl.constexpr,
    EXACT: tl.constexpr,
    MINUS: tl.constexpr,
    NB: tl.constexpr,
):
    """Quantize NB blocks of any float dtype [blocks, 32] by integer compares in float32."""
    block = tl.program_id(0) * NB + tl.arange(0, NB)
    live = block < blocks
    place = block[:, None].to(tl.int64) * 16 + tl.arange(0, 16)[None, :]
    even = _bits(tl.load(x + place * 2, mask=live[:, None], other=0))
    odd = _bits(tl.load(x + place * 2 + 1, mask=live[:, None], other=0))
    largest = tl.maximum(tl.max(even & 0x7FFFFFFF, 1), tl.max(odd & 0x7FFFFFFF, 1))
    row = largest >> 23
    second = (largest & 0x7FFFFF) >= tl.load(mantissa + row)
    found = tl.load(state + row + tl.where(second, 256, 0))
    byte = tl.where(largest == 0, ZERO, found & 0xFF)
    exponent = tl.where(largest == 0, 0, found >> 8)
    out = _encode(even, exponent, limits, PLUS, EXACT, MINUS)
    out |= _encode(odd, exponent, limits, PLUS, EXACT, MINUS) << 4
    tl.store(codes + place, out.to(tl.uint8), mask=live[:, None])
    tl.store(scales + block, byte.to(tl.uint8), mask=live)
    left = live & (byte == 255) & (largest != 0)
    tl.atomic_max(special + tl.zeros_like(block), 1, mask=left, sem="relaxed")
