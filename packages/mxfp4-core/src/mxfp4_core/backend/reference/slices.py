"""How much of a weight is widened at a time: what a verdict says of it, and what the operators do."""

from __future__ import annotations

_SLICE_ELEMS = 1 << 22  # 16 MiB of float32: large enough for a fast matmul, small beside any model


def slice_rows(k: int) -> int:
    """Return how many rows of k values are widened at a time."""
    return max(1, _SLICE_ELEMS // k)


def widened_bytes(rows: int, k: int) -> int:
    """Return the bytes of the float32 slice that one call holds at a time, for a weight of [rows, k]."""
    return 4 * k * min(rows, slice_rows(k))


__all__ = ["slice_rows", "widened_bytes"]
