# mypy: ignore-errors
# numba and llvmlite carry no types; what is typed here is what Python code calls.
"""The CPU kernel of blocks whose elements or scales are subnormal, and of rules with more than one step in a binade.

A function of its own, which is called after that of ordinary blocks: in one loop its vectors would take registers from
theirs.
"""

from __future__ import annotations

from mxfp4_core.arithmetic.fast.cpu import _encoder
from mxfp4_core.arithmetic.fast.lanes import _amax, _clear, _jit, _peek, _poke, _seek
from mxfp4_core.arithmetic.fast.steps import SPECIAL
from mxfp4_core.arithmetic.format import BLOCK

_encode_any = _encoder(signs_kept=False, special=True)


@_jit
def quantize_special(
    tag, value_bytes, source, codes, scales, strides, row_blocks, start, stop, places, limits, signs
):
    """Quantize the blocks that ``cpu.quantize`` has left, by scale byte 255; ``places`` has the fields of `Places`.

    Returns:
        How many blocks are not finite; their scale byte is 255 and their codes are 0.
    """
    thresholds = (limits[0], limits[1], limits[2], limits[3], limits[4], limits[5], limits[6])
    block_bytes = BLOCK * value_bytes
    bad = 0
    row, column = start // row_blocks, start % row_blocks
    for _ in range(stop - start):
        place = scales + row * strides[2] + column
        address = source + row * strides[0] + column * block_bytes
        largest = _amax(tag, address)
        if largest != 0 and _peek(place) == 255:
            out = codes + row * strides[1] + column * (BLOCK // 2)
            scale, divisor, keep = _seek(largest, places)
            if divisor == SPECIAL:
                bad += 1
                _clear(out)
            else:
                _encode_any(
                    tag, address, out, divisor, thresholds, limits[7], signs[0], signs[1], signs[2], keep
                )
                _poke(place, scale)
        column += 1
        if column == row_blocks:
            row, column = row + 1, 0
    return bad


__all__ = ["quantize_special"]
