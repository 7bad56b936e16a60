"""Who wrote what: the accounting of one parameter, by shard and expert, over any number of loads."""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mxfp4_core.errors import Mxfp4Error
from mxfp4_core.loader.keys import THE_WEIGHT, Key
from mxfp4_core.loader.regions import Range, Region

_MISSING, _VALID, _TORN = 0, 1, 2
_MOST_NAMES = 6
_EVERY = "*"  # the part of a write that stands for all parts of the weight and of the input


@dataclass(slots=True, eq=False)
class Write:
    """One region that a loader began to fill; until `done`, its bytes may be half old, half new.

    Args:
        key: what the engine calls the piece.
        region: where it goes.
        zeros: it is a background of zeros, which pieces of the same key may cover.
        done: its loader has returned.
        part: the one part of the weight that it brings; empty where it brings all of them.
    """

    key: Key
    region: Region
    zeros: bool = False
    done: bool = False
    part: str = ""


@dataclass
class Ledger:
    """Record the writes into one parameter and say what is missing, duplicate or overlapping.

    A write counts when the loader that made it returned. One that failed leaves its region torn: neither the old
    bytes nor the new ones may be trusted until a later write covers it.

    Args:
        shape: experts, rows, cols of the weight; experts is 1 for a linear layer.
        stacked: whether the weight has an expert axis to speak of.
        parts: names of the parts of the weight, each of which may come by itself.
        inputs: names of the parts of the input: one row for all. They come with parts of the weight, and need not come
            where the weight is quantised.
    """

    shape: tuple[int, int, int]
    stacked: bool
    parts: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _past: list[Write] = field(default_factory=list[Write], repr=False)
    _writes: list[Write] = field(default_factory=list[Write], repr=False)
    _failures: dict[Key, str] = field(default_factory=dict[Key, str], repr=False)
    _names: dict[tuple[Range, Range], str] = field(default_factory=dict[tuple[Range, Range], str], repr=False)

    def begin(self, key: Key, region: Region, *, zeros: bool = False, part: str = "") -> Write:
        """Note that `region` is about to be filled, with `zeros` as the background of other pieces or with values."""
        write = Write(key, region, zeros, part=part)
        with self._lock:
            self._writes.append(write)
        return write

    def commit(self, key: Key, writes: Iterable[Write]) -> None:
        """Count `writes`: the loader that made them for `key` has returned."""
        with self._lock:
            self._failures.pop(key, None)
            for write in writes:
                write.done = True
                if key.shard is not None and not write.zeros:
                    self._names[write.region.rows, write.region.cols] = str(key.shard)

    def fail(self, key: Key, error: BaseException) -> None:
        """Note why the loader of `key` did not return; its writes stay uncounted."""
        with self._lock:
            text = f"{error.what}: {error.seen}" if isinstance(error, Mxfp4Error) else str(error)
            self._failures[key] = f"{type(error).__name__}: {text}"

    @property
    def touched(self) -> bool:
        """Whether this load wrote anything."""
        with self._lock:
            return bool(self._writes)

    def next_load(self) -> None:
        """Begin another load into the same storage; what earlier loads left is remembered."""
        with self._lock:
            self._past += self._writes + self._halves()
            self._writes = []
            self._failures = {}

    def keep_old(self) -> None:
        """Forget this load and all before: what is stored is whole, since what was written never took its place."""
        with self._lock:
            self._past, self._writes, self._failures = [self._everything()], [], {}

    def complete(self) -> bool:
        """Return whether every element holds a value that some load finished writing."""
        with self._lock:
            views = self._views()
            return not any((one._paint(one._past + one._writes)[0] != _VALID).any() for one in views.values())

    def covered(self) -> bool:
        """Return whether this load alone wrote everything once, without an expensive look at a load that has not."""
        with self._lock:
            done = [write for write in self._writes if write.done]
            if not done or sum(math.prod(b - a for a, b in write.region.ranges) for write in done) < (
                math.prod(self.shape) * (1 if not done[0].part else len(self.parts))
            ):
                return False
            return not any(view._findings(False) for view in self._views().values())

    def findings(self, *, subset: bool) -> list[str]:
        """Return one sentence for each missing, duplicate or overlapping range, without the parameter's name.

        Args:
            subset: accept what an earlier load wrote where this one wrote nothing.
        """
        with self._lock:
            each = {part: view._findings(subset) for part, view in self._views().items()}
            found = next(iter(each.values()))
            if any(other != found for other in each.values()):
                found = [f"{part}: {one}" for part, several in each.items() for one in several]
            if not found:
                # All is well, so one write stands for the history: memory does not grow with the number of loads.
                self._past = [self._everything()]
            return found

    def _everything(self) -> Write:
        return Write(THE_WEIGHT, Region(*((0, size) for size in self.shape)), done=True, part=_EVERY)

    def _views(self) -> dict[str, Ledger]:
        """Return the account of each part where parts came by themselves, else the one account of the weight."""
        if not any(write.part in (*self.parts, *self.inputs) for write in self._past + self._writes):
            return {"": self}
        views: dict[str, Ledger] = {}
        halves = self._halves()
        for part in self.parts:
            view = views[part] = Ledger(self.shape, self.stacked)
            view._failures, view._names = self._failures, self._names
            view._past, view._writes = (
                [one for one in writes if one.part in ("", part, _EVERY)]
                for writes in (self._past + halves, self._writes)
            )
        for part in self.inputs:
            view = views[part] = Ledger((1, 1, self.shape[2]), False)
            view._failures = self._failures
            view._past, view._writes = (
                [
                    Write(one.key, Region((0, 1), (0, 1), one.region.cols), one.zeros, one.done)
                    for one in writes
                    if one.part in (part, _EVERY)
                ]
                for writes in (self._past, self._writes)
            )
        return views

    def _halves(self) -> list[Write]:
        """Return as torn what some parts of the weight cover in this load and others do not."""
        writes = [one for one in self._writes if one.part in ("", *self.parts)]
        if all(not one.part for one in writes):
            return []
        grid, edges = self._grid(writes)
        covered = [np.zeros_like(grid, dtype=bool) for _ in self.parts]
        for write in writes:
            for part, cells in zip(self.parts, covered, strict=True):
                if write.part in ("", part):
                    cells[self._cells(write.region, edges)] = True
        some, every = np.logical_or.reduce(covered), np.logical_and.reduce(covered)
        return [Write(THE_WEIGHT, region) for region in self._boxes(some & ~every, edges)]

    def _findings(self, subset: bool) -> list[str]:
        count, edges = self._count()
        found: list[str] = []
        if not (count == 1).all() or not all(write.done for write in self._writes):
            found = self._conflicts(count, edges)
            state, edges = self._paint(self._past + self._writes if subset else self._writes)
            if missing := self._boxes(state != _VALID, edges):
                found += self._absences(missing)
        return found

    def _paint(self, writes: Sequence[Write]) -> tuple[npt.NDArray[np.int8], list[list[int]]]:
        """Replay `writes` on the grid of all their borders."""
        grid, edges = self._grid(writes)
        for write in writes:
            grid[self._cells(write.region, edges)] = _VALID if write.done else _TORN
        return grid, edges

    def _count(self) -> tuple[npt.NDArray[np.int8], list[list[int]]]:
        """Count how often this load wrote each cell; 2 stands for more."""
        done = [write for write in self._writes if write.done]
        count, edges = self._grid(done)
        for write in done:
            cells = count[self._cells(write.region, edges)]
            cells[...] = np.minimum(cells + 1, 2)
        return count, edges

    def _conflicts(self, count: npt.NDArray[np.int8], edges: list[list[int]]) -> list[str]:
        if not (count > 1).any():
            return []
        found: list[str] = []
        suspects = [
            write
            for write in self._writes
            if write.done and (count[self._cells(write.region, edges)] > 1).any()
        ]
        for index, write in enumerate(suspects):
            for other in suspects[index + 1 :]:
                background = write.zeros and write.key == other.key
                if background or not write.region.overlaps(other.region):
                    continue
                where = other.region.describe(self.stacked)
                if write.key == other.key and write.region == other.region:
                    found.append(f"duplicate: {write.key} was loaded twice ({where})")
                else:
                    first = write.region.describe(self.stacked)
                    found.append(f"overlap: {other.key} ({where}) covers part of {write.key} ({first})")
        return found

    def _absences(self, missing: Sequence[Region]) -> list[str]:
        if not self._writes and not self._failures:
            return ["missing: nothing was loaded"]
        found: list[str] = []
        for region in missing:
            name = self._names.get((region.rows, region.cols))
            found.append(f"missing: {region.describe(self.stacked)}" + (f" (shard {name})" if name else ""))
        for key, error in self._failures.items():
            found.append(f"its loader for {key} raised {error}")
        done = {str(write.key): write for write in self._writes if write.done}
        if done and not self.stacked:
            pieces = [
                f"{key} rows {write.region.rows[0]}:{write.region.rows[1]}" for key, write in done.items()
            ]
            more = f" and {len(pieces) - _MOST_NAMES} more" if len(pieces) > _MOST_NAMES else ""
            found.append(f"loaded: {'; '.join(pieces[:_MOST_NAMES])}{more}")
        return found

    def _grid(self, writes: Sequence[Write]) -> tuple[npt.NDArray[np.int8], list[list[int]]]:
        edges: list[list[int]] = []
        for axis, size in enumerate(self.shape):
            borders = {border for write in writes for border in write.region.ranges[axis]}
            edges.append(sorted(borders | {0, size}))
        return np.zeros([len(borders) - 1 for borders in edges], dtype=np.int8), edges

    @staticmethod
    def _cells(region: Region, edges: list[list[int]]) -> tuple[slice, ...]:
        return tuple(
            slice(bisect_left(borders, start), bisect_left(borders, stop))
            for borders, (start, stop) in zip(edges, region.ranges, strict=True)
        )

    @staticmethod
    def _boxes(wanted: npt.NDArray[np.bool_], edges: list[list[int]]) -> list[Region]:
        """Cut the wanted cells into boxes, joining neighbours that look alike: first experts, then rows."""
        boxes: list[Region] = []
        for experts, plane in _runs(wanted, edges[0]):
            for rows, line in _runs(plane, edges[1]):
                boxes += [Region(experts, rows, cols) for cols, cell in _runs(line, edges[2]) if cell.any()]
        return boxes


def _runs(wanted: npt.NDArray[np.bool_], borders: list[int]) -> list[tuple[Range, npt.NDArray[np.bool_]]]:
    """Return ranges of the first axis along which the cells do not change, with those cells."""
    runs: list[tuple[Range, npt.NDArray[np.bool_]]] = []
    for index, cells in enumerate(wanted):
        start, stop = borders[index], borders[index + 1]
        if runs and np.array_equal(runs[-1][1], cells):
            runs[-1] = ((runs[-1][0][0], stop), cells)
        else:
            runs.append(((start, stop), cells))
    return runs


__all__ = ["Ledger", "Write"]
