"""Layers of an engine that stay in high precision: because the config says so, or because nobody takes them."""

from __future__ import annotations

import functools
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.errors import ConfigError, Mxfp4Error
from mxfp4_core.loader.report import LoadReportBuilder
from mxfp4_core.modules.base import Mxfp4Module

T = TypeVar("T")
_LOG = logging.getLogger("mxfp4_core.loader")


class EngineRefusals(ABC):
    """What `EngineLoad` knows of layers that are not quantised.

    Args:
        config: how weights are quantised, and what becomes of what is refused.
        stored: the weights come quantised, part by part.
    """

    def __init__(self, config: Mxfp4Config, *, stored: bool) -> None:
        self.config, self.stored = config, stored
        self.report = LoadReportBuilder()
        self._refused: dict[str, Mxfp4Error] = {}
        self._lock = threading.Lock()

    @abstractmethod
    def quantises(self) -> bool:
        """Return whether any layer is quantised."""

    def kept(self, name: str, *, kind: str, reason: str, nbytes: int) -> None:
        """Count a layer that stays in high precision, so that the report says so and why."""
        self.report.kept(name, kind=kind, reason=reason, nbytes=nbytes)

    def refuse(self, name: str, method: T, *, kind: str, error: Mxfp4Error) -> T:
        """Keep a layer in high precision that cannot be MXFP4, aloud, where the config says so: ``refused="keep"``.

        Args:
            name: of the layer.
            method: what makes and computes it in the engine without quantisation.
            kind: type of the layer, for the report.
            error: why it cannot.

        Returns:
            The method. Once the engine says to it that the model is loaded, it asks whether anything is quantised.

        Raises:
            Mxfp4Error: the config does not, and it is the error that was given; or the weights come quantised, of which
                a layer that could be kept `widens <EngineLayer>`.
        """
        if self.config.refused != "keep":
            raise error
        if self.stored:
            raise type(error)(
                error.what,
                seen=error.seen,
                rule=f"{error.rule}; refused='keep' widens whole blocks, and no rank holds one here",
                fix=f"{error.fix}; or widen the folder first: mxfp4 dequantize",
            ) from error
        with self._lock:
            self._refused[name] = error
        self.say_refused(name, kind=kind, error=error)
        return self.preceded(method, lambda layer: self._check_some())

    @staticmethod
    def preceded(method: T, before: Callable[[Any], object]) -> T:
        """Do something once the engine says to a method that its layer is loaded, before the method hears it.

        Args:
            method: what makes and computes a layer in the engine; it is returned.
            before: gets the layer.
        """
        after: Callable[..., Any] = getattr(method, "process_weights_after_loading")  # noqa: B009

        @functools.wraps(after)
        def loaded(layer: Any, *args: Any, **kwargs: Any) -> Any:
            before(layer)
            return after(layer, *args, **kwargs)

        vars(method)["process_weights_after_loading"] = loaded
        return method

    def widens(self, module: Mxfp4Module) -> bool:
        """Return whether a layer that nobody takes is widened: the values of its codes are all that there is to it."""
        return self.stored and self.config.refused == "keep" and not module.format.scales_input

    def say_refused(self, name: str, *, kind: str, error: Mxfp4Error) -> None:
        """Say that a layer stays in high precision, in the log and in the report."""
        _LOG.warning("%s stays in high precision, refused: %s: %s", name, error.what, error.seen)
        self.report.kept(name, kind=kind, reason=f"refused: {error.what}", nbytes=0)

    def _check_some(self) -> None:
        if self.quantises():
            return
        first = next(iter(self._refused.values()))
        raise ConfigError(
            "nothing is left to quantise",
            seen=f"{len(self._refused)} layers, all refused; the first one: {first.what}: {first.seen}",
            rule="a config of quantisation quantises at least one weight",
            fix=f"{first.fix}; or serve without the method",
        )


__all__ = ["EngineRefusals"]
