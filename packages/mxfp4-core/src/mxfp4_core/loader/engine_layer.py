"""One layer of an engine: what its parameters look like, who follows its loaders, and the module that computes."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch.nn.functional import pad

from mxfp4_core.arithmetic.formats.base import Parts
from mxfp4_core.backend.problem import Matrix
from mxfp4_core.errors import ShapeError
from mxfp4_core.loader.regions import Region
from mxfp4_core.loader.session import LoadSession
from mxfp4_core.loader.target import QuantTarget
from mxfp4_core.modules.base import Mxfp4Module

_WIDENED = 1 << 24
"""Values that are widened at a time."""

_LOG = logging.getLogger("mxfp4_core.loader")


@dataclass(frozen=True)
class EnginePlace:
    """One parameter that the engine registers, without memory: what is loaded into it goes to the module.

    Attributes:
        matrix: which weight of the module.
        part: the part of the format that it brings; empty where it brings the weight in high precision.
        suffix: what follows the name of the weight in the name of the parameter, for example ``_scale``.
        shape: of the parameter; its last axis counts elements of the part.
        dtype: of the parameter.
    """

    matrix: Matrix
    part: str
    suffix: str
    shape: tuple[int, ...]
    dtype: torch.dtype


class Account(Protocol):
    """What a layer asks the load of its model."""

    stored: bool

    def check(self) -> None:
        """Check the first load of all layers."""

    def finished(self) -> object:
        """Hear that one more layer is loaded."""


class EngineLayer:
    """One layer: the module that computes, and how an engine fills it, again and again. `EngineLoad.layer` makes it.

    Attributes:
        module: the MXFP4 module; it computes after `finish`.
        name: of the layer, for messages.
        widens: nobody computes with the module, and the engine does so by itself, with what `widen` gives it.
    """

    def __init__(
        self,
        account: Account,
        module: Mxfp4Module,
        name: str,
        session: LoadSession,
        targets: Mapping[Matrix, QuantTarget],
        suffixes: Mapping[str, str],
        widens: bool = False,
    ) -> None:
        self.module, self.name, self.widens = module, name, widens
        self._account, self._session, self._targets, self._suffixes = account, session, targets, suffixes
        self._lock = threading.RLock()
        self._open, self._widened = True, False
        self._calls: dict[str, int] = {}  # of the loaders of biases, in the load that is under way
        self._usual: dict[str, int] = {}  # and in the first one

    @property
    def touched(self) -> bool:
        """Whether the load that is under way has brought anything."""
        return self._open and any(target.ledger.touched for target in self._targets.values())

    def places(self) -> list[EnginePlace]:
        """Return the parameters that the engine registers for the weights of this layer."""
        found: list[EnginePlace] = []
        for matrix, target in self._targets.items():
            if not self._account.stored:
                found.append(EnginePlace(matrix, "", "", tuple(target.shape), target.dtype))
                continue
            shapes = target.format.shapes(tuple(target.shape))
            for part in target.format.parts:
                dtype: torch.dtype = getattr(torch, part.dtype)
                suffix = self._suffixes.get(part.name, part.suffix)
                found.append(EnginePlace(matrix, part.name, suffix, shapes[part.name], dtype))
        return found

    def loader(self, place: EnginePlace, weight_loader: Callable[..., Any]) -> Callable[..., Any]:
        """Return a loader for the parameter of a place, which follows the engine's own; see `LoadSession.wrap`.

        The first piece after `finish` begins another load. Its last piece ends it: the new weights then take the
        memory of the old ones.

        Args:
            place: of `places`.
            weight_loader: the engine's.
        """
        name = self._targets[place.matrix].name
        follow = self._session.wrap(name, weight_loader, part=place.part)

        @functools.wraps(weight_loader)
        def load(param: torch.Tensor, loaded_weight: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self._begin()
            result = follow(param, loaded_weight, *args, **kwargs)
            self._settle()
            return result

        return load

    def bias_loader(self, name: str, weight_loader: Callable[..., Any]) -> Callable[..., Any]:
        """Return a loader for a bias of the module, which the engine's own writes in place.

        A later load ends when the weights are there and each bias has come in as many calls as at the first time.
        Without this loader only `finish` ends a later load of a module that has biases.

        Args:
            name: of the buffer in the module.
            weight_loader: the engine's.
        """
        self._calls[name] = 0

        @functools.wraps(weight_loader)
        def load(*args: Any, **kwargs: Any) -> Any:
            self._begin()
            result = weight_loader(*args, **kwargs)
            with self._lock:
                self._calls[name] += 1
            self._settle()
            return result

        return load

    def put(self, matrix: Matrix, given: Parts) -> None:
        """Take a whole weight of this rank, for engines that hand it over.

        Args:
            matrix: which weight.
            given: its parts by name; or the weight in high precision under the empty name.

        Raises:
            ShapeError, FormatError, NonFiniteError: as `QuantTarget.quantize` and `QuantTarget.put`.
        """
        self._begin()
        target = self._targets[matrix]
        if "" in given:
            target.quantize(given[""])
        else:
            target.put(given)
        self._settle()

    def make_up(self) -> None:
        """Fill the layer with weights that nobody chose, for engines that try a model without its checkpoint."""
        for target in self._targets.values():
            *lead, n, k = target.shape
            made = torch.Generator("cpu").manual_seed(len(self.name))
            rows = torch.randn(n, k, generator=made, device="cpu").mul_(k**-0.5).to(target.dtype)
            rows = pad(rows, (0, target.k_physical - k))
            parts = target.format.empty((n, k), "cpu")
            target.format.quantize_into(rows, parts, profile=target.format.resolve(None).name)
            for expert in range(lead[0] if lead else 1):
                target.put(parts, Region((expert, expert + 1), (0, n), (0, k)))
        self._settle()

    def finish(self) -> None:
        """Make what was loaded the module's own; nothing happens where nothing came since the last time.

        At the first load, all layers of the model are checked, so that one error names all that is missing.

        Raises:
            LoadError: ranges are missing, duplicate or overlapping.
            BackendError, FormatError: the backend cannot take the weights.
        """
        with self._lock:
            first = not self.module.computes
            if not self._open or not (first or self.touched):
                return
            if first:
                self._account.check()
                self._usual = dict(self._calls)
            self._close()
        if first:
            self._account.finished()

    def widen(
        self,
        layer: torch.nn.Module,
        make: Callable[[], object],
        names: Mapping[Matrix, str],
        biases: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Give the engine's layer what it computes with by itself, once this one is loaded; the codes are let go of.

        Values are rounded to the dtype of its parameters: as bfloat16 they are exact, but for the smallest scales.

        Args:
            layer: of the engine, with the parameters of `places`.
            make: makes the engine's own parameters for it, instead of those, in high precision.
            names: what the engine calls each weight, by name of the matrix.
            biases: what it calls each bias, by its name in the module.

        Raises:
            ShapeError: the engine wants another shape of a weight.
        """
        held = {own: bias.detach().clone() for own, bias in self.module.named_biases.items()}
        for place in self.places():
            layer._parameters.pop(f"{names[place.matrix]}{place.suffix}", None)
        for name in biases.values():
            layer._parameters.pop(name, None)
        with self.module.where:
            make()
        for matrix in self._targets:
            self._write(matrix, getattr(layer, names[matrix]).data)
        for own, name in biases.items():
            getattr(layer, name).data.copy_(held[own])
        self.module.to_empty(device="meta")
        self._widened = True

    def _write(self, matrix: Matrix, out: torch.Tensor) -> None:
        """Write the values of a weight in the dtype of ``out``, as `widen` says."""
        weight = self.module.canonical(matrix)
        if out.shape != weight.shape:
            raise ShapeError(
                f"{self._targets[matrix].name} cannot be widened",
                seen=f"room for {tuple(out.shape)}",
                rule=f"it is {tuple(weight.shape)}",
                fix="widen the folder first: mxfp4 dequantize",
            )
        parts, k = {name: part.flatten(0, -2) for name, part in weight.parts.items()}, weight.shape[-1]
        rows = out.view(-1, k)
        for start in range(0, len(rows), step := max(1, _WIDENED // k)):
            piece = {name: part[start : start + step] for name, part in parts.items()}
            rows[start : start + step] = weight.format.dequantize(piece, out.dtype)[:, :k]

    def problems(self) -> list[QuantTarget]:
        """Return the targets of a first load that is not finished."""
        return [] if self.module.computes or self._widened else list(self._targets.values())

    def _begin(self) -> None:
        with self._lock:
            if not self._open:
                self._session.begin()
                self._open = True

    def _settle(self) -> None:
        """End a later load with its last piece: nobody else may say when it is over."""
        with self._lock:
            if self._open and self.module.computes and self._whole():
                self._close()
                _LOG.debug("%s has new weights", self.name)

    def _close(self) -> None:
        self._session.finish()
        self._open, self._calls = False, dict.fromkeys(self._calls, 0)

    def _whole(self) -> bool:
        if any(
            self._calls.get(name, 0) < max(self._usual.get(name, 0), 1) for name in self.module.named_biases
        ):
            return False
        return all(target.ledger.covered() for target in self._targets.values())


__all__ = ["EngineLayer", "EnginePlace"]
