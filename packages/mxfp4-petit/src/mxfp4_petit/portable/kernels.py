"""W4A16 matmuls in Triton for any GPU: weights are widened in registers, matrix cores multiply, sums are float32.

A tile of K holds 256 columns, eight blocks of 32, and word j of a row holds column j of each. Or it holds 128, and word
j of a row holds columns 2j and 2j + 1 of each of four blocks, so that two numbers that lie side by side come out of one
register: on NVIDIA's devices that is faster (``PAIRS``; ``layout.PortableLayout`` has both). Either way a shift and a
mask take the same codes out of all words, and what comes out are whole operands of matmuls.

Codes become numbers without their scale, and the sum of each block is multiplied by it, in float32. So every product is
exact in every dtype of x, on chips that flush subnormal operands, too, and each scale byte means what the format says:
0 is 2^-127 and 255 is NaN.

The weight is the left operand, which matrix units read from registers; the result is a tile of rows of the weight by
tokens.
"""

import triton
import triton.language as tl

BLOCK = tl.constexpr(32)
_LIFT = tl.constexpr(2.0**126)
_LIFT_PAIR = tl.constexpr(
    "{ .reg .b32 lift, zero; mov.b32 lift, 0x7e807e80; mov.b32 zero, 0x80008000; fma.rn.bf16x2 $0, $1, lift, zero; }"
)


@triton.jit
def _pair(words, i: tl.constexpr):
    """Take the codes of blocks i and i + 4: sign, exponent and mantissa bit at their places in two bfloat16."""
    if i < 3:
        return (words << (3 * i)) & -2118090304  # 0x81C081C0
    low = ((words >> 4) & 0x00C000C0) | ((words >> 5) & 0x01000100)
    return low | ((words << 1) & -2147450880)  # 0x80008000


@triton.jit
def _numbers(pair, high: tl.constexpr, dtype: tl.constexpr, PACKED: tl.constexpr):
    """Return the values, without scale, of the lower or the higher codes of a pair.

    As bfloat16 the bits of a code are its value times 2^-126. The product with 2^126 is exact, in bfloat16 where the
    device multiplies two at a time, else in float32, whose lower half is then zero.
    """
    if PACKED:
        pair = tl.inline_asm_elementwise(_LIFT_PAIR, "=r,r", [pair], dtype=tl.int32, is_pure=True, pack=1)
        half = pair >> 16 if high else pair
        return half.to(tl.int16).to(tl.bfloat16, bitcast=True)
    bits = pair & -65536 if high else pair << 16
    value = bits.to(tl.float32, bitcast=True) * _LIFT
    if dtype == tl.bfloat16:
        return (value.to(tl.int32, bitcast=True) >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        return value.to(dtype)


@triton.jit
def _scale(bytes4, i: tl.constexpr):
    """Turn byte i of int32 words into 2^(byte - 127); 0 is a subnormal number, 255 is NaN."""
    byte = (bytes4 >> (8 * i)) & 0xFF
    bits = tl.maximum(byte << 23, 0x00400000) + ((byte + 1) >> 8)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _row(words, i: tl.constexpr, dtype: tl.constexpr, PACKED: tl.constexpr):
    """Return the numbers [rows, 32] of block i of words [rows, 16] that hold two columns each."""
    pair = _pair(words, i)
    both = tl.join(_numbers(pair, False, dtype, PACKED), _numbers(pair, True, dtype, PACKED))
    return tl.reshape(both, (words.shape[0], 2 * words.shape[1]))


@triton.jit
def _load(codes, scales, tile, valid, PAIRS: tl.constexpr):
    """Load a tile of rows: int32 words [rows, 32 or 16], and scale bytes of blocks 0 to 3 and 4 to 7, int32 [rows]."""
    if PAIRS:
        words = tl.load(codes + tile * 16 + tl.arange(0, 16)[None, :], mask=valid[:, None], other=0)
        low = tl.load(scales + tile, mask=valid, other=0)
        return words, low, low
    else:
        words = tl.load(codes + tile * 32 + tl.arange(0, 32)[None, :], mask=valid[:, None], other=0)
        low = tl.load(scales + tile * 2, mask=valid, other=0)
        return words, low, tl.load(scales + tile * 2 + 1, mask=valid, other=0)


@triton.jit
def _blocks(acc, words, i: tl.constexpr, low, high, lower, upper, PAIRS: tl.constexpr, PACKED: tl.constexpr):
    """Add block i of a tile to acc [rows, tokens], and without PAIRS block i + 4.

    words, low, high: of ``_load``. lower, upper: x [32, tokens] of the two blocks.
    """
    if PAIRS:
        acc += tl.dot(_row(words, i, lower.dtype, PACKED), lower) * _scale(low, i)[:, None]
    else:
        pair = _pair(words, i)
        acc += tl.dot(_numbers(pair, False, lower.dtype, PACKED), lower) * _scale(low, i)[:, None]
        acc += tl.dot(_numbers(pair, True, upper.dtype, PACKED), upper) * _scale(high, i)[:, None]
    return acc


@triton.jit
def _sum(
    codes, scales, k, rows, valid, x, inside, start, stop,
    BN: tl.constexpr, BM: tl.constexpr, PAIRS: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Return float32 [BN, BM]: rows of a weight times tokens, over tiles start to stop of K."""
    TILE: tl.constexpr = 128 if PAIRS else 256
    codes += rows[:, None] * (k // 8)
    scales += rows * (k // 128)
    acc = tl.zeros((BN, BM), dtype=tl.float32)
    for tile in range(start, stop):
        words, low, high = _load(codes, scales, tile, valid, PAIRS)
        for i in tl.static_range(4):
            lower = tl.load(x + tile * TILE + i * BLOCK, mask=inside, other=0.0)
            upper = lower
            if not PAIRS:
                upper = tl.load(x + tile * TILE + (i + 4) * BLOCK, mask=inside, other=0.0)
            acc = _blocks(acc, words, i, low, high, lower, upper, PAIRS, PACKED)
    return acc


@triton.jit(do_not_specialize=["m", "tiles_per_split"])
def linear_kernel(
    x, codes, scales, bias, out, m, n, k, tiles_per_split,
    BM: tl.constexpr, BN: tl.constexpr, SPLIT: tl.constexpr, BIASED: tl.constexpr,
    PAIRS: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Compute x [m, k] @ weight.T [k, n]; with SPLIT > 1 partial sums in float32 [SPLIT, m, n], without bias."""
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    tokens = tl.program_id(1) * BM + tl.arange(0, BM)
    valid, inside = rows < n, tokens < m
    start = tl.program_id(2) * tiles_per_split
    stop = tl.minimum(start + tiles_per_split, k // (128 if PAIRS else 256))
    at = x + tokens.to(tl.int64)[None, :] * k + tl.arange(0, BLOCK)[:, None]
    acc = _sum(
        codes, scales, k, rows.to(tl.int64), valid, at, inside[None, :], start, stop, BN, BM, PAIRS, PACKED
    )
    if BIASED and SPLIT == 1:
        acc += tl.load(bias + rows, mask=valid, other=0.0).to(tl.float32)[:, None]
    place = tokens.to(tl.int64)[:, None] * n + rows[None, :]
    if SPLIT > 1:
        place += tl.program_id(2).to(tl.int64) * m * n
    tl.store(out + place, tl.trans(acc).to(out.dtype.element_ty), mask=inside[:, None] & valid[None, :])


@triton.jit(do_not_specialize=["total"])
def sum_splits_kernel(
    parts, bias, out, n, total, SPLIT: tl.constexpr, BIASED: tl.constexpr, SIZE: tl.constexpr
):
    """Add partial sums [SPLIT, total], in order, and the bias [n]; total is m * n."""
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = at < total
    acc = tl.load(parts + at, mask=inside, other=0.0)
    for split in tl.static_range(1, SPLIT):
        acc += tl.load(parts + at + total.to(tl.int64) * split, mask=inside, other=0.0)
    if BIASED:
        acc += tl.load(bias + at % n, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, acc.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gated(gate, up, alpha, limit, up_offset, LIMITED: tl.constexpr):
    if LIMITED:  # comparisons with NaN are false, so that it passes
        gate = tl.where(gate > limit, limit, gate)
        up = tl.where(up > limit, limit, tl.where(up < -limit, -limit, up))
    return (up + up_offset) * gate / (1.0 + tl.exp(-alpha * gate))


@triton.jit(do_not_specialize=["top_k"])
def gate_up_kernel(
    x, codes, scales, bias, hidden, block_expert, block_pairs, n, k, top_k, alpha, limit, up_offset,
    BM: tl.constexpr, BN: tl.constexpr, INTERLEAVED: tl.constexpr, LIMITED: tl.constexpr, BIASED: tl.constexpr,
    PAIRS: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Compute the gated activation [pairs, n] of each chosen expert; the weight is [experts, 2n, k]."""
    TILE: tl.constexpr = 128 if PAIRS else 256
    expert = tl.load(block_expert + tl.program_id(1)).to(tl.int64)
    if expert >= 0:
        column = tl.program_id(0) * BN + tl.arange(0, BN)
        valid = column < n
        gate_rows = column * 2 if INTERLEAVED else column
        up_rows = column * 2 + 1 if INTERLEAVED else column + n
        pairs = tl.load(block_pairs + tl.program_id(1) * BM + tl.arange(0, BM)).to(tl.int64)
        inside = pairs >= 0
        at = x + (pairs // top_k)[None, :] * k + tl.arange(0, BLOCK)[:, None]
        codes += expert * 2 * n * (k // 8)
        scales += expert * 2 * n * (k // 128)
        gate_codes = codes + gate_rows.to(tl.int64)[:, None] * (k // 8)
        up_codes = codes + up_rows.to(tl.int64)[:, None] * (k // 8)
        gate_scales = scales + gate_rows.to(tl.int64) * (k // 128)
        up_scales = scales + up_rows.to(tl.int64) * (k // 128)
        gate = tl.zeros((BN, BM), dtype=tl.float32)
        up = tl.zeros((BN, BM), dtype=tl.float32)
        for tile in range(0, k // TILE):
            words, low, high = _load(gate_codes, gate_scales, tile, valid, PAIRS)
            words2, low2, high2 = _load(up_codes, up_scales, tile, valid, PAIRS)
            for i in tl.static_range(4):
                lower = tl.load(at + tile * TILE + i * BLOCK, mask=inside[None, :], other=0.0)
                upper = lower
                if not PAIRS:
                    upper = tl.load(at + tile * TILE + (i + 4) * BLOCK, mask=inside[None, :], other=0.0)
                gate = _blocks(gate, words, i, low, high, lower, upper, PAIRS, PACKED)
                up = _blocks(up, words2, i, low2, high2, lower, upper, PAIRS, PACKED)
        if BIASED:
            gate += tl.load(bias + expert * 2 * n + gate_rows, mask=valid, other=0.0).to(tl.float32)[:, None]
            up += tl.load(bias + expert * 2 * n + up_rows, mask=valid, other=0.0).to(tl.float32)[:, None]
        result = tl.trans(_gated(gate, up, alpha, limit, up_offset, LIMITED)).to(hidden.dtype.element_ty)
        tl.store(hidden + pairs[:, None] * n + column[None, :], result, mask=inside[:, None] & valid[None, :])


@triton.jit
def down_kernel(
    hidden, codes, scales, bias, out, block_expert, block_pairs, n, k,
    BM: tl.constexpr, BN: tl.constexpr, BIASED: tl.constexpr, PAIRS: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Compute the result [pairs, n] of each chosen expert from hidden [pairs, k]; the weight is [experts, n, k]."""
    expert = tl.load(block_expert + tl.program_id(1)).to(tl.int64)
    if expert >= 0:
        rows = tl.program_id(0) * BN + tl.arange(0, BN)
        valid = rows < n
        pairs = tl.load(block_pairs + tl.program_id(1) * BM + tl.arange(0, BM)).to(tl.int64)
        inside = pairs >= 0
        at = hidden + pairs[None, :] * k + tl.arange(0, BLOCK)[:, None]
        codes += expert * n * (k // 8)
        scales += expert * n * (k // 128)
        acc = _sum(
            codes,
            scales,
            k,
            rows.to(tl.int64),
            valid,
            at,
            inside[None, :],
            0,
            k // (128 if PAIRS else 256),
            BN,
            BM,
            PAIRS,
            PACKED,
        )
        if BIASED:
            acc += tl.load(bias + expert * n + rows, mask=valid, other=0.0).to(tl.float32)[:, None]
        result = tl.trans(acc).to(out.dtype.element_ty)
        tl.store(out + pairs[:, None] * n + rows[None, :], result, mask=inside[:, None] & valid[None, :])
