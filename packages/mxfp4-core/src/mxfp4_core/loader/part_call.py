"""One call of an engine's loader for a piece of one part of a weight that is quantised already: its bytes are kept."""

from __future__ import annotations

import torch

from mxfp4_core.arithmetic.formats.base import Part
from mxfp4_core.errors import LoadError
from mxfp4_core.loader.call import LoaderCall
from mxfp4_core.loader.keys import Key
from mxfp4_core.loader.regions import Place, Region, locate
from mxfp4_core.loader.report import LoadReportBuilder
from mxfp4_core.loader.target import QuantTarget


class PartCall(LoaderCall):
    """Follow one call: the bytes that it copies are put where the view of the part lies.

    Args:
        target: the weight.
        part: which one; the engine's parameter has its shape, ``[.., N, K / values]``.
        key: what the engine calls this piece.
        loaded: what it loads from, before any narrowing.
        report: collects the time and the memory.
    """

    def __init__(
        self, target: QuantTarget, part: Part, key: Key, loaded: torch.Tensor, report: LoadReportBuilder
    ) -> None:
        super().__init__(target, key, loaded, report)
        self._part = part

    @property
    def _shape(self) -> torch.Size:
        return torch.Size(self._target.format.shapes(self._target.shape)[self._part.name])

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self._part.dtype)
        return dtype

    def copied(self, view: torch.Tensor, source: torch.Tensor) -> None:
        """Put `source` into the place of `view`, byte for byte."""
        source = self._part.raw(source)
        if source.shape != view.shape:
            raise self.refuse(
                f"{self._part.name} of shape {tuple(source.shape)} for a place of shape {tuple(view.shape)}",
                "a part is copied byte by byte, never repeated to fill a place",
            )
        place = self._place(view)
        with self._report.timing("copying"):
            self._target.put({self._part.name: place.arrange(source)}, self._of(place), key=self._key)
        self._report.sample()

    def zeroed(self, view: torch.Tensor) -> None:
        """Refuse zeros that are no part of the checkpoint; an empty place needs none."""
        if view.numel():
            raise self.refuse(
                f"{view.numel()} zeros to fill up {self._part.name}",
                "what is quantised already comes from the checkpoint, all of it",
            )

    def _place(self, view: torch.Tensor) -> Place:
        shape = self._shape
        place = locate(view, (*[1] * (3 - len(shape)), *shape))
        if place is None:
            raise self.refuse(
                f"a copy into strides {tuple(view.stride())} of shape {tuple(view.shape)}",
                "a piece is a box: whole ranges of experts, rows and columns",
            )
        return place

    def _of(self, place: Place) -> Region:
        """Return the elements of the weight that a place of the part stands for."""
        experts, rows, (start, stop) = place.ranges
        return Region(
            experts, rows, (start * self._part.values, min(stop * self._part.values, self._target.box[2]))
        )

    def _check_source(self) -> None:
        found = self._part.raw(self._source).dtype
        if found == self._dtype:
            return
        raise LoadError(
            f"{self._part.name} of {self._target.name} cannot be loaded from {self._key.source or self._key}",
            seen=f"a source of {self._source.dtype}, shape {tuple(self._source.shape)}",
            rule=f"{self._part.name} of {self._target.format.name} are {self._part.dtype}, and are never converted",
            fix="the checkpoint holds this weight in high precision: quantise it while it loads, or name it in ignore",
        )


__all__ = ["PartCall"]
