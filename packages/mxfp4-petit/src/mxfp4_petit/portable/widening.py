"""From words of codes to operands of matrix units, with or without their scales. In Triton.

A tile of K holds 256 columns, eight blocks of 32, and word j of a row holds column j of each. Or it holds 128, and word
j of a row holds columns 2j and 2j + 1 of each of four blocks, so that two numbers that lie side by side come out of one
register: on NVIDIA's devices that is faster (``PAIRS``; ``layout.PortableLayout`` has both). Either way a shift and a
mask take the same codes out of all words, and what comes out are whole operands of matmuls. Codes of 8 bits (``WIDE``)
fill two such words: the first has the blocks 0 and 1, and the second 2 and 3, each with those that stand 4 behind.

As bfloat16 the bits of a code are its value times 2^-126, of E4M3 times 2^-120, so that one multiplication makes the
number: by that power, or by one that brings the scale of its block along (``FOLDED``). The latter is exact for the
scale bytes that ``sizes`` names, and saves a multiplication of the result for each block. Without it the sum of a block
is multiplied by its scale, in float32: exact for every byte, 0 is 2^-127 and 255 is NaN, on chips that flush subnormal
operands, too; and the codes of E4M3 that are NaN are looked for.
"""

import triton
import triton.language as tl

BLOCK = tl.constexpr(32)
_LIFT = tl.constexpr(2.0**126)
_LIFT_PAIR = tl.constexpr(0x7E807E80)
_LIFT_WIDE = tl.constexpr(2.0**120)
_LIFT_PAIR_WIDE = tl.constexpr(0x7B807B80)
_LARGEST_WIDE = tl.constexpr(448.0)
_MULTIPLY_PAIR = tl.constexpr("{ .reg .b32 zero; mov.b32 zero, 0x80008000; fma.rn.bf16x2 $0, $1, $2, zero; }")


@triton.jit
def _pair(words, i: tl.constexpr):
    """Take the codes of blocks i and i + 4: sign, exponent and mantissa bit at their places in two bfloat16."""
    if i < 3:
        return (words << (3 * i)) & -2118090304  # 0x81C081C0
    low = ((words >> 4) & 0x00C000C0) | ((words >> 5) & 0x01000100)
    return low | ((words << 1) & -2147450880)  # 0x80008000


@triton.jit
def _wide_pair(words, odd: tl.constexpr):
    """Take the codes in the even or the odd bytes: sign, exponent and mantissa at their places in two bfloat16."""
    if odd:
        return (words & -2147450880) | ((words >> 4) & 0x07F007F0)  # 0x80008000
    return ((words << 8) & -2147450880) | ((words << 4) & 0x07F007F0)


@triton.jit
def _factor(bytes4, i: tl.constexpr, PACKED: tl.constexpr, FOLDED: tl.constexpr, WIDE: tl.constexpr):
    """Return by what the bits of block i are multiplied, int32 [rows, 1] that holds it twice or float32 [rows, 1]."""
    power = ((bytes4 >> (8 * i)) & 0xFF) + (120 if WIDE else 126)
    if PACKED:
        lift = tl.zeros_like(bytes4) + (_LIFT_PAIR_WIDE if WIDE else _LIFT_PAIR)
        factor = (power << 7) * 65537 if FOLDED else lift
    else:
        lift = bytes4 * 0.0 + (_LIFT_WIDE if WIDE else _LIFT)
        factor = (power << 23).to(tl.float32, bitcast=True) if FOLDED else lift
    return factor[:, None]


@triton.jit
def _numbers(
    pair, factor, high: tl.constexpr, dtype: tl.constexpr,
    PACKED: tl.constexpr, FOLDED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Return the numbers of the lower or the higher codes of a pair; with PACKED they are multiplied already.

    The product in float32 has no bits below those of bfloat16.
    """
    if PACKED:
        half = pair >> 16 if high else pair
        value = half.to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        bits = pair & -65536 if high else pair << 16
        value = bits.to(tl.float32, bitcast=True) * factor
    if WIDE and not FOLDED:  # the bits of a NaN are those of 480
        value = tl.where(tl.abs(value) > _LARGEST_WIDE, float("nan"), value)
    if PACKED:
        return value
    elif dtype == tl.bfloat16:
        return (value.to(tl.int32, bitcast=True) >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        return value.to(dtype)


@triton.jit
def _multiplied(pair, factor, PACKED: tl.constexpr):
    """Multiply two bfloat16 at a time, where the device can."""
    if PACKED:
        pair, factor = tl.broadcast(pair, factor)
        return tl.inline_asm_elementwise(
            _MULTIPLY_PAIR, "=r,r,r", [pair, factor], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        return pair


@triton.jit
def _scale(bytes4, i: tl.constexpr):
    """Turn byte i of int32 words into 2^(byte - 127); 0 is a subnormal number, 255 is NaN."""
    byte = (bytes4 >> (8 * i)) & 0xFF
    bits = tl.maximum(byte << 23, 0x00400000) + ((byte + 1) >> 8)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _added(acc, a, b, bytes4, i: tl.constexpr, FOLDED: tl.constexpr):
    """Add a [rows, 32] times b [32, tokens], times the scales of block i where a does not have them."""
    if FOLDED:
        return tl.dot(a, b, acc)
    else:
        return acc + tl.dot(a, b) * _scale(bytes4, i)[:, None]


@triton.jit
def load_tile(codes, scales, tile, valid, PAIRS: tl.constexpr, WIDE: tl.constexpr):
    """Load a tile of rows: int32 words [rows, 32 or 16], and scale bytes of blocks 0 to 3 and 4 to 7, int32 [rows].

    Words come twice: with WIDE the first and the second ones, else the same ones.
    """
    COUNT: tl.constexpr = 16 if PAIRS else 32
    at = codes + tile * (COUNT * 2 if WIDE else COUNT) + tl.arange(0, COUNT)[None, :]
    words = tl.load(at, mask=valid[:, None], other=0)
    more = tl.load(at + COUNT, mask=valid[:, None], other=0) if WIDE else words
    if PAIRS:
        low = tl.load(scales + tile, mask=valid, other=0)
        return words, more, low, low
    else:
        low = tl.load(scales + tile * 2, mask=valid, other=0)
        return words, more, low, tl.load(scales + tile * 2 + 1, mask=valid, other=0)


@triton.jit
def numbers_of(
    words, more, i: tl.constexpr, bytes4, upper: tl.constexpr, dtype: tl.constexpr,
    PAIRS: tl.constexpr, PACKED: tl.constexpr, FOLDED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Return block i of a tile, or with ``upper``, without PAIRS, block i + 4: dtype [rows, 32].

    words, more, bytes4: of ``load_tile``; the scales of the four blocks to which i belongs.
    """
    pair = _wide_pair(words if i < 2 else more, i % 2 == 1) if WIDE else _pair(words, i)
    factor = _factor(bytes4, i, PACKED, FOLDED, WIDE)
    pair = _multiplied(pair, factor, PACKED)
    if PAIRS:
        both = tl.join(
            _numbers(pair, factor, False, dtype, PACKED, FOLDED, WIDE),
            _numbers(pair, factor, True, dtype, PACKED, FOLDED, WIDE),
        )
        return tl.reshape(both, (words.shape[0], 2 * words.shape[1]))
    else:
        return _numbers(pair, factor, upper, dtype, PACKED, FOLDED, WIDE)


@triton.jit
def add_blocks(
    acc, words, more, i: tl.constexpr, low, high, lower, upper,
    PAIRS: tl.constexpr, PACKED: tl.constexpr, FOLDED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Add block i of a tile to acc [rows, tokens], and without PAIRS block i + 4.

    words, more, low, high: of ``load_tile``. lower, upper: x [32, tokens] of the two blocks.
    """
    dtype: tl.constexpr = lower.dtype
    a = numbers_of(words, more, i, low, False, dtype, PAIRS, PACKED, FOLDED, WIDE)
    acc = _added(acc, a, lower, low, i, FOLDED)
    if not PAIRS:
        a = numbers_of(words, more, i, high, True, dtype, PAIRS, PACKED, FOLDED, WIDE)
        acc = _added(acc, a, upper, high, i, FOLDED)
    return acc
