"""W4A16 matmuls in Triton for any GPU: weights are widened in registers, matrix cores multiply, sums are float32.

How codes become operands, and where their scales are multiplied in, is in ``widening``. The weight is the left operand,
which matrix units read from registers; the result is a tile of rows of the weight by tokens.
"""

import triton
import triton.language as tl

from mxfp4_petit.portable.widening import BLOCK, add_blocks, load_tile, numbers_of


@triton.jit
def _sum(
    codes, scales, k, rows, valid, x, inside, start, stop,
    BN: tl.constexpr, BM: tl.constexpr, PAIRS: tl.constexpr, PACKED: tl.constexpr, FOLDED: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Return float32 [BN, BM]: rows of a weight times tokens, over tiles start to stop of K."""
    TILE: tl.constexpr = 128 if PAIRS else 256
    PER_WORD: tl.constexpr = 4 if WIDE else 8
    codes += rows[:, None] * (k // PER_WORD)
    scales += rows * (k // 128)
    acc = tl.zeros((BN, BM), dtype=tl.float32)
    for tile in range(start, stop):
        words, more, low, high = load_tile(codes, scales, tile, valid, PAIRS, WIDE)
        for i in tl.static_range(4):
            lower = tl.load(x + tile * TILE + i * BLOCK, mask=inside, other=0.0)
            upper = lower
            if not PAIRS:
                upper = tl.load(x + tile * TILE + (i + 4) * BLOCK, mask=inside, other=0.0)
            acc = add_blocks(acc, words, more, i, low, high, lower, upper, PAIRS, PACKED, FOLDED, WIDE)
    return acc


@triton.jit(do_not_specialize=["m", "tiles_per_split"])
def linear_kernel(
    x, codes, scales, bias, out, m, n, k, tiles_per_split,
    BM: tl.constexpr, BN: tl.constexpr, PARTIAL: tl.constexpr, BIASED: tl.constexpr,
    PAIRS: tl.constexpr, PACKED: tl.constexpr, FOLDED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Compute x [m, k] @ weight.T [k, n]; PARTIAL sums are float32 [splits, m, n], without bias."""
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    tokens = tl.program_id(1) * BM + tl.arange(0, BM)
    valid, inside = rows < n, tokens < m
    start = tl.program_id(2) * tiles_per_split
    stop = tl.minimum(start + tiles_per_split, k // (128 if PAIRS else 256))
    at = x + tokens.to(tl.int64)[None, :] * k + tl.arange(0, BLOCK)[:, None]
    acc = _sum(
        codes, scales, k, rows.to(tl.int64), valid, at, inside[None, :], start, stop, BN, BM, PAIRS, PACKED, FOLDED,
        WIDE,
    )  # fmt: skip
    if BIASED and not PARTIAL:
        acc += tl.load(bias + rows, mask=valid, other=0.0).to(tl.float32)[:, None]
    place = tokens.to(tl.int64)[:, None] * n + rows[None, :]
    if PARTIAL:
        place += tl.program_id(2).to(tl.int64) * m * n
    tl.store(out + place, tl.trans(acc).to(out.dtype.element_ty), mask=inside[:, None] & valid[None, :])


@triton.jit
def widen_kernel(
    codes, scales, out, n, k, BN: tl.constexpr,
    PAIRS: tl.constexpr, PACKED: tl.constexpr, FOLDED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Write a weight [n, k] with its scales, in the order of its columns; one program for each tile of BN rows."""
    TILE: tl.constexpr = 128 if PAIRS else 256
    PER_WORD: tl.constexpr = 4 if WIDE else 8
    rows = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    valid, tile = rows < n, tl.program_id(1)
    codes += rows[:, None] * (k // PER_WORD)
    words, more, low, high = load_tile(codes, scales + rows * (k // 128), tile, valid, PAIRS, WIDE)
    at = out + rows[:, None] * k + tile * TILE + tl.arange(0, BLOCK)[None, :]
    dtype: tl.constexpr = out.dtype.element_ty
    for i in tl.static_range(4):
        a = numbers_of(words, more, i, low, False, dtype, PAIRS, PACKED, FOLDED, WIDE)
        tl.store(at + i * BLOCK, a, mask=valid[:, None])
        if not PAIRS:
            a = numbers_of(words, more, i, high, True, dtype, PAIRS, PACKED, FOLDED, WIDE)
            tl.store(at + (i + 4) * BLOCK, a, mask=valid[:, None])


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
def _function(x, FUNCTION: tl.constexpr):
    """Return the function of an activation that is not SiLU; comparisons with NaN are false, so that it passes."""
    if FUNCTION == "gelu":
        made = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif FUNCTION == "gelu_tanh":
        # x / 2 * (1 + tanh(y)) is x * sigmoid(2y), which loses nothing where tanh is near -1
        made = x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    elif FUNCTION == "relu":
        made = tl.where(x < 0.0, 0.0, x)
    else:
        tl.static_assert(FUNCTION == "relu2")
        positive = tl.where(x < 0.0, 0.0, x)
        made = positive * positive
    return made


@triton.jit
def _alone(x, alpha, FUNCTION: tl.constexpr):
    return x / (1.0 + tl.exp(-alpha * x)) if FUNCTION == "silu" else _function(x, FUNCTION)


@triton.jit
def _gated(gate, up, alpha, limit, up_offset, LIMITED: tl.constexpr, FUNCTION: tl.constexpr):
    if LIMITED:  # comparisons with NaN are false, so that it passes
        gate = tl.where(gate > limit, limit, gate)
        up = tl.where(up > limit, limit, tl.where(up < -limit, -limit, up))
    if FUNCTION == "silu":
        made = (up + up_offset) * gate / (1.0 + tl.exp(-alpha * gate))
    else:
        made = (up + up_offset) * _function(gate, FUNCTION)
    return made


@triton.jit(do_not_specialize=["top_k"])
def gate_up_kernel(
    x, codes, scales, bias, hidden, block_expert, block_pairs, n, k, top_k, alpha, limit, up_offset,
    BM: tl.constexpr, BN: tl.constexpr, INTERLEAVED: tl.constexpr, LIMITED: tl.constexpr, FUNCTION: tl.constexpr,
    BIASED: tl.constexpr, PAIRS: tl.constexpr, PACKED: tl.constexpr, FOLDED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Compute the gated activation [pairs, n] of each chosen expert; the weight is [experts, 2n, k]."""
    TILE: tl.constexpr = 128 if PAIRS else 256
    PER_WORD: tl.constexpr = 4 if WIDE else 8
    expert = tl.load(block_expert + tl.program_id(1)).to(tl.int64)
    if expert >= 0:
        column = tl.program_id(0) * BN + tl.arange(0, BN)
        valid = column < n
        gate_rows = column * 2 if INTERLEAVED else column
        up_rows = column * 2 + 1 if INTERLEAVED else column + n
        pairs = tl.load(block_pairs + tl.program_id(1) * BM + tl.arange(0, BM)).to(tl.int64)
        inside = pairs >= 0
        at = x + (pairs // top_k)[None, :] * k + tl.arange(0, BLOCK)[:, None]
        codes += expert * 2 * n * (k // PER_WORD)
        scales += expert * 2 * n * (k // 128)
        gate_codes = codes + gate_rows.to(tl.int64)[:, None] * (k // PER_WORD)
        up_codes = codes + up_rows.to(tl.int64)[:, None] * (k // PER_WORD)
        gate_scales = scales + gate_rows.to(tl.int64) * (k // 128)
        up_scales = scales + up_rows.to(tl.int64) * (k // 128)
        gate = tl.zeros((BN, BM), dtype=tl.float32)
        up = tl.zeros((BN, BM), dtype=tl.float32)
        for tile in range(0, k // TILE):
            words, more, low, high = load_tile(gate_codes, gate_scales, tile, valid, PAIRS, WIDE)
            words2, more2, low2, high2 = load_tile(up_codes, up_scales, tile, valid, PAIRS, WIDE)
            for i in tl.static_range(4):
                lower = tl.load(at + tile * TILE + i * BLOCK, mask=inside[None, :], other=0.0)
                upper = lower
                if not PAIRS:
                    upper = tl.load(at + tile * TILE + (i + 4) * BLOCK, mask=inside[None, :], other=0.0)
                gate = add_blocks(gate, words, more, i, low, high, lower, upper, PAIRS, PACKED, FOLDED, WIDE)
                up = add_blocks(up, words2, more2, i, low2, high2, lower, upper, PAIRS, PACKED, FOLDED, WIDE)
        if BIASED:
            gate += tl.load(bias + expert * 2 * n + gate_rows, mask=valid, other=0.0).to(tl.float32)[:, None]
            up += tl.load(bias + expert * 2 * n + up_rows, mask=valid, other=0.0).to(tl.float32)[:, None]
        made = _gated(gate, up, alpha, limit, up_offset, LIMITED, FUNCTION)
        result = tl.trans(made).to(hidden.dtype.element_ty)
        tl.store(hidden + pairs[:, None] * n + column[None, :], result, mask=inside[:, None] & valid[None, :])


@triton.jit(do_not_specialize=["top_k"])
def up_kernel(
    x, codes, scales, bias, hidden, block_expert, block_pairs, n, k, top_k, alpha,
    BM: tl.constexpr, BN: tl.constexpr, FUNCTION: tl.constexpr, BIASED: tl.constexpr, PAIRS: tl.constexpr,
    PACKED: tl.constexpr, FOLDED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Compute the activation without a gate [pairs, n] of each chosen expert; the weight is [experts, n, k]."""
    PER_WORD: tl.constexpr = 4 if WIDE else 8
    expert = tl.load(block_expert + tl.program_id(1)).to(tl.int64)
    if expert >= 0:
        rows = tl.program_id(0) * BN + tl.arange(0, BN)
        valid = rows < n
        pairs = tl.load(block_pairs + tl.program_id(1) * BM + tl.arange(0, BM)).to(tl.int64)
        inside = pairs >= 0
        at = x + (pairs // top_k)[None, :] * k + tl.arange(0, BLOCK)[:, None]
        codes += expert * n * (k // PER_WORD)
        scales += expert * n * (k // 128)
        stop = k // (128 if PAIRS else 256)
        acc = _sum(
            codes, scales, k, rows.to(tl.int64), valid, at, inside[None, :], 0, stop, BN, BM, PAIRS, PACKED, FOLDED,
            WIDE,
        )  # fmt: skip
        if BIASED:
            acc += tl.load(bias + expert * n + rows, mask=valid, other=0.0).to(tl.float32)[:, None]
        result = tl.trans(_alone(acc, alpha, FUNCTION)).to(hidden.dtype.element_ty)
        tl.store(hidden + pairs[:, None] * n + rows[None, :], result, mask=inside[:, None] & valid[None, :])


@triton.jit
def down_kernel(
    hidden, codes, scales, bias, out, block_expert, block_pairs, n, k,
    BM: tl.constexpr, BN: tl.constexpr, BIASED: tl.constexpr, PAIRS: tl.constexpr, PACKED: tl.constexpr,
    FOLDED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Compute the result [pairs, n] of each chosen expert from hidden [pairs, k]; the weight is [experts, n, k]."""
    PER_WORD: tl.constexpr = 4 if WIDE else 8
    expert = tl.load(block_expert + tl.program_id(1)).to(tl.int64)
    if expert >= 0:
        rows = tl.program_id(0) * BN + tl.arange(0, BN)
        valid = rows < n
        pairs = tl.load(block_pairs + tl.program_id(1) * BM + tl.arange(0, BM)).to(tl.int64)
        inside = pairs >= 0
        at = hidden + pairs[None, :] * k + tl.arange(0, BLOCK)[:, None]
        codes += expert * n * (k // PER_WORD)
        scales += expert * n * (k // 128)
        stop = k // (128 if PAIRS else 256)
        acc = _sum(
            codes, scales, k, rows.to(tl.int64), valid, at, inside[None, :], 0, stop, BN, BM, PAIRS, PACKED, FOLDED,
            WIDE,
        )  # fmt: skip
        if BIASED:
            acc += tl.load(bias + expert * n + rows, mask=valid, other=0.0).to(tl.float32)[:, None]
        result = tl.trans(acc).to(out.dtype.element_ty)
        tl.store(out + pairs[:, None] * n + rows[None, :], result, mask=inside[:, None] & valid[None, :])
