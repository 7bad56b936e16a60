"""One call of an engine's loader for one piece of one parameter."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from mxfp4_core.errors import LoadError
from mxfp4_core.loader.keys import Key, key_reader
from mxfp4_core.loader.ledger import Write
from mxfp4_core.loader.regions import Region, locate
from mxfp4_core.loader.report import LoadReportBuilder
from mxfp4_core.loader.target import QuantTarget
from mxfp4_core.loader.twin import is_twin, make_twin, return_attributes

Loader = Callable[..., Any]
"""An engine's loader: ``(param, loaded_weight, ...)``."""

_FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


class LoaderCall:
    """Follow one call: what it copies is quantised at once, and counts when the loader has returned.

    Args:
        target: the parameter that the loader fills.
        key: what the engine calls this piece.
        loaded_weight: what it loads from, before any narrowing.
        report: collects the time and the memory.
    """

    def __init__(
        self, target: QuantTarget, key: Key, loaded_weight: torch.Tensor, report: LoadReportBuilder
    ) -> None:
        self._target, self._key, self._source, self._report = target, key, loaded_weight, report
        self._writes: list[Write] = []
        self._zeros: list[Region] = []

    def run(self, param: torch.Tensor, loader: Callable[[torch.Tensor], Any]) -> Any:
        """Call `loader` with a stand-in of `param`, and return what it returns.

        Raises:
            LoadError: the source is quantised already, or the loader does what cannot be followed.
            ShapeError: it cuts a block.
        """
        target = self._target
        try:
            self._check_source()
            self._check_param(param)
            twin = make_twin(param, self._shape, self._dtype, target.device, self)
            result = loader(twin)
        except BaseException as error:
            target.ledger.fail(self._key, error)
            raise
        target.ledger.commit(self._key, self._writes)
        return_attributes(twin, param)
        return result

    def copied(self, view: torch.Tensor, source: torch.Tensor) -> None:
        """Quantise `source` into the place of `view`."""
        if source.shape != view.shape and source.numel() == view.numel():
            source = source.expand(view.shape)
        if source.shape != view.shape:
            raise self.refuse(
                f"a source of shape {tuple(source.shape)} for a place of shape {tuple(view.shape)}",
                "a weight is copied element by element, never repeated to fill a place",
            )
        if source.dtype not in _FLOATS:
            raise self.refuse(f"a source of {source.dtype}", "only high-precision numbers can be quantised")
        region, piece = self._region(view, source)
        if region.empty:
            return
        ends_in_zeros = any(self._continues(region, zeros) for zeros in self._zeros)
        with self._report.timing("quantising"):
            write = self._target.ledger.begin(self._key, region)
            self._target.store(piece, region, zero_tail=ends_in_zeros, loaded_k=self._loaded_k())
            self._writes.append(write)
        self._report.sample()

    def zeroed(self, view: torch.Tensor) -> None:
        """Put zeros into the place of `view`."""
        zeros = torch.zeros((), dtype=self._target.dtype, device=self._target.device).expand(view.shape)
        region, piece = self._region(view, zeros)
        if region.empty:
            return
        # Zeros may begin inside a block when the engine pads a shard: the copy that ends there brings the block.
        start, stop = region.cols
        begin = self._target.format.physical_k(start)
        whole = Region(region.experts, region.rows, (min(stop, begin), stop))
        write = self._target.ledger.begin(self._key, region, zeros=True)
        if not whole.empty:
            self._target.store(piece[..., whole.cols[0] - start :], whole)
        self._writes.append(write)
        self._zeros.append(region)

    def _continues(self, region: Region, zeros: Region) -> bool:
        """Whether `zeros` fill the block in which `region` ends."""
        stop = region.cols[1]
        end = self._target.format.physical_k(stop)
        return (
            zeros.experts[0] <= region.experts[0] and region.experts[1] <= zeros.experts[1]
            and zeros.rows[0] <= region.rows[0] and region.rows[1] <= zeros.rows[1]
            and zeros.cols[0] <= stop and zeros.cols[1] >= end
        )  # fmt: skip

    def _region(self, view: torch.Tensor, source: torch.Tensor) -> tuple[Region, torch.Tensor]:
        """Return where `view` lies in the target, and `source` as ``[experts, rows, cols]``."""
        experts, n, k = self._target.box
        place = locate(view, (experts, k, n) if self._target.transposed else (experts, n, k))
        if place is None:
            raise self.refuse(
                f"a copy into strides {tuple(view.stride())} of shape {tuple(view.shape)}",
                "a piece is a box: whole ranges of experts, rows and columns",
            )
        first, second, third = place.ranges
        piece = place.arrange(source)
        if self._target.transposed:
            return Region(first, third, second), piece.transpose(-1, -2)
        return Region(first, second, third), piece

    def _loaded_k(self) -> int:
        """Return the k of the whole source, from which the TP size can be told, or 0."""
        if self._source.dim() < 2:
            return 0
        return self._source.shape[-2 if self._target.transposed else -1]

    @property
    def _shape(self) -> torch.Size:
        """The shape that the loader believes its parameter to have."""
        return self._target.engine_shape

    @property
    def _dtype(self) -> torch.dtype:
        """The dtype that the loader believes its parameter to have."""
        return self._target.dtype

    def _check_source(self) -> None:
        if self._source.dtype in _FLOATS:
            return
        raise LoadError(
            f"{self._target.name} cannot be quantised from {self._key.source or self._key}",
            seen=f"a source of {self._source.dtype}, shape {tuple(self._source.shape)}",
            rule=f"{self._target.name} is quantised while it loads, from {', '.join(map(str, _FLOATS))}",
            fix="the checkpoint is quantised already: load it as such, without a quantising loader",
        )

    def _check_param(self, param: torch.Tensor) -> None:
        if param.is_meta or self._target.storage.holds(param):
            return
        first = self._target.format.parts[0].name
        raise self.refuse(
            f"a parameter of {param.dtype} {tuple(param.shape)} that does not share the memory of the target's {first}",
            f"the parameter is the target's {first}, or a placeholder on the meta device",
        )

    def refuse(self, seen: str, rule: str) -> LoadError:
        """Return the error for a loader that does what cannot be followed."""
        return LoadError(
            f"the loader of {self._target.name} cannot be followed for {self._key}",
            seen=seen,
            rule=rule,
            fix="keep this parameter in high precision, or give it a loader that copies its pieces in place",
        )


def following(weight_loader: Loader, begin: Callable[[Key, torch.Tensor], LoaderCall]) -> Loader:
    """Return a loader with the same arguments, each call of which is followed.

    Args:
        weight_loader: the engine's; see `LoadSession.wrap`.
        begin: makes what follows a call, of what the engine calls the piece and of what it loads from.
    """
    key_of = key_reader(weight_loader)

    @functools.wraps(weight_loader)
    def load(param: torch.Tensor, loaded_weight: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if is_twin(param):
            # A loader that calls itself through param.weight_loader: what it copies is being followed already.
            return weight_loader(param, loaded_weight, *args, **kwargs)
        call = begin(key_of(args, kwargs), loaded_weight)
        return call.run(param, lambda twin: weight_loader(twin, loaded_weight, *args, **kwargs))

    return load


__all__ = ["Loader", "LoaderCall", "following"]
