"""The Triton kernel that moves canonical bytes into tiles. Importing this module needs Triton."""

# No annotations here: Triton reads them as its own.

import triton
import triton.language as tl


@triton.jit
def _source_row(packed, n, ROWS: tl.constexpr):
    """Return the canonical row that stands at a packed row, as ``layout.row_order`` does."""
    feature = packed // 16 * 8 + packed % 8
    up = packed % 16 // 8
    if ROWS == "gate-up":
        return feature + up * (n // 2)
    if ROWS == "gate-up-interleaved":
        return 2 * feature + up
    return packed


@triton.jit
def pack_kernel(codes, scales, table, tiles_out, scales_out, n, strips, across, ROWS: tl.constexpr):
    """Fill one tile of 64 by 64: 512 words of codes and 128 scales; see ``layout`` for their order."""
    tile = tl.program_id(0).to(tl.int64)
    column, strip, expert = tile % across, tile // across % strips, tile // across // strips
    at = tl.arange(0, 512)
    step, pair, row, warp = at % 4, at // 4 % 4, at // 16 % 8, at // 128
    word = tl.zeros((512,), dtype=tl.int32)
    for lower in tl.static_range(2):
        source = _source_row(strip * 64 + warp * 16 + lower * 8 + row, n, ROWS)
        first = codes + (expert * n + source) * (across * 32) + column * 32 + step * 8 + pair
        for right in tl.static_range(2):
            byte = tl.load(first + 4 * right).to(tl.int32)
            word |= tl.load(table + (2 * right + lower) * 256 + byte)
    tl.store(tiles_out + tile * 512 + at, word)

    at = tl.arange(0, 128)
    packed = strip * 64 + at // 32 * 16 + at // 2 % 2 * 8 + at // 4 % 8
    source = expert * n + _source_row(packed, n, ROWS)
    tl.store(scales_out + tile * 128 + at, tl.load(scales + source * (across * 2) + column * 2 + at % 2))


__all__ = ["pack_kernel"]
