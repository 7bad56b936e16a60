"""Where in a parameter a view lies: the rectangle that a loader's copy fills.

An engine narrows, indexes, transposes or reshapes a parameter until the destination has the shape of what it loads.
All that is left in the end is an offset, sizes and strides, and they tell the rectangle exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Region:
    """A box of elements of a weight ``[E, N, K]`` (``E = 1`` for a linear layer); each range is start, stop."""

    experts: Range
    rows: Range
    cols: Range

    @property
    def empty(self) -> bool:
        """Whether the region has no element."""
        return any(start >= stop for start, stop in self.ranges)

    @property
    def ranges(self) -> tuple[Range, Range, Range]:
        """The three ranges in the order experts, rows, cols."""
        return self.experts, self.rows, self.cols

    def overlaps(self, other: Region) -> bool:
        """Return whether both regions share an element."""
        pairs = zip(self.ranges, other.ranges, strict=True)
        return all(max(a[0], b[0]) < min(a[1], b[1]) for a, b in pairs)

    def describe(self, stacked: bool) -> str:
        """Return the region in words; `stacked` says whether the weight has an expert axis."""
        first, stop = self.experts
        experts = f"expert {first}" if stop == first + 1 else f"experts {first}:{stop}"
        prefix = f"{experts}, " if stacked else ""
        return f"{prefix}rows {self.rows[0]}:{self.rows[1]}, k {self.cols[0]}:{self.cols[1]}"


class Place(NamedTuple):
    """The box that a view covers in its base, and the order of the view's axes in which the base runs."""

    ranges: tuple[Range, Range, Range]
    axes: tuple[int, ...]

    def arrange(self, source: torch.Tensor) -> torch.Tensor:
        """Return `source`, which has the view's shape, with three axes in the order of the base."""
        return source.permute(self.axes).reshape([stop - start for start, stop in self.ranges])


def locate(view: torch.Tensor, base: Sequence[int]) -> Place | None:
    """Find the box that `view` covers in a contiguous tensor of the three sizes `base`.

    Returns None when the elements are no box (every second row, a diagonal, part of a flattened row and the next).
    Works on meta tensors: nothing but offset, sizes and strides is read.
    """
    steps = [base[1] * base[2], base[2], 1]
    starts = [
        view.storage_offset() // step % size if size else 0 for step, size in zip(steps, base, strict=True)
    ]
    strides = list(view.stride())
    axes = sorted(range(view.dim()), key=lambda axis: -strides[axis])
    if view.numel() == 0:
        return Place(((0, 0), (0, 0), (0, 0)), tuple(axes))
    # Runs of equally spaced elements, smallest stride first; axes that continue each other are one run.
    runs: list[tuple[int, int]] = []
    for axis in reversed(axes):
        size, stride = view.size(axis), strides[axis]
        if runs and stride == runs[-1][0] * runs[-1][1]:
            runs[-1] = (runs[-1][0] * size, runs[-1][1])
        elif size > 1:
            runs.append((size, stride))
    # From the innermost axis of the base outwards, let the runs grow the box.
    counts = [1, 1, 1]
    for dim in (2, 1, 0):
        if not runs or runs[0][1] != steps[dim] or base[dim] == 1:
            continue
        size = runs.pop(0)[0]
        counts[dim] = min(size, base[dim])
        if starts[dim] + counts[dim] > base[dim]:
            return None
        # A flattened view runs through whole lines of this axis into the next one.
        lines, rest = divmod(size, counts[dim])
        if rest:
            return None
        if lines > 1:
            runs.insert(0, (lines, steps[dim] * base[dim]))
    if runs:
        return None
    first, second, third = ((start, start + count) for start, count in zip(starts, counts, strict=True))
    return Place((first, second, third), tuple(axes))


__all__ = ["Place", "Range", "Region", "locate"]
