"""The configuration that ``from_pretrained`` takes: the core's, in the form that diffusers expects."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from diffusers.quantizers.quantization_config import QuantizationConfigMixin

from mxfp4_core.config import Mxfp4Config as CoreConfig
from mxfp4_core.dialects import NATIVE
from mxfp4_core.loader import config_and_facts
from mxfp4_diffusers.compat import Method

METHOD: Final = NATIVE.name
"""``quant_method`` of our checkpoints."""

_machine: ContextVar[Mapping[str, Any] | None] = ContextVar("mxfp4_diffusers_machine", default=None)


class Mxfp4CoreConfig(QuantizationConfigMixin):
    """What to quantise while a model loads, and how; every field of `mxfp4_core.config.Mxfp4Config` is a keyword.

    A checkpoint that is quantised already says all of that itself; `machine` says which backend computes then.

    Args:
        core: a config of the core, instead of keywords.
        settings: fields of the core's config, for example ``rule="floor"`` or ``ignore=["blocks.0"]``.

    Raises:
        ConfigError: an unknown key, with the near miss, or keys that contradict each other.
    """

    # The names of the parameters are those of mxfp4_transformers: only then does quant_backend= of a
    # PipelineQuantizationConfig reach transformers' components and diffusers' alike.

    def __init__(self, core: CoreConfig | None = None, **settings: Any) -> None:
        self.quant_method: Any = Method(settings.pop("quant_method", METHOD))
        if self.quant_method == METHOD:
            self.core, self.facts = config_and_facts(core, settings, "Mxfp4Config")
        else:  # a dialect of others says all in its own words
            self.core, self.facts = core or CoreConfig(), settings

    @property
    def stored(self) -> bool:
        """Say whether this was read from a checkpoint that is quantised already."""
        return self.quant_method != METHOD or "weights_profile" in self.facts

    def to_dict(self) -> dict[str, Any]:
        """Return what is stored in ``config.json``: the choice of a backend belongs to the machine and is not."""
        described = {**self.core.described(), "dialect": METHOD} if self.quant_method == METHOD else {}
        return {"quant_method": str(self.quant_method), **described, **copy.deepcopy(self.facts)}

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the same: diffusers prints a config with it."""
        return self.to_dict()


@contextmanager
def machine(
    *,
    backend: str | None = None,
    fallback: str | None = None,
    backend_options: Mapping[str, Mapping[str, Any]] | None = None,
    refused: str | None = None,
) -> Iterator[None]:
    """Choose the backend of models that are loaded inside of a ``with``, for checkpoints that are quantised already.

    diffusers drops a config that is given beside such a checkpoint. Pipelines and single models take it alike.

    Args:
        backend: as the field of the config of this name, like all that follow.
        fallback: see there.
        backend_options: see there.
        refused: see there.

    Raises:
        ConfigError: no such backend, or settings that contradict each other.
    """
    given = {
        "backend": backend,
        "fallback": fallback,
        "backend_options": backend_options,
        "refused": refused,
    }
    asked = {key: value for key, value in given.items() if value is not None}
    CoreConfig.from_dict(asked)
    token = _machine.set(asked)
    try:
        yield
    finally:
        _machine.reset(token)


def on_this_machine(core: CoreConfig) -> CoreConfig:
    """Return a config with what `machine` says in place of its own."""
    asked = _machine.get()
    return (
        CoreConfig.from_dict({**core.model_dump(mode="json", exclude_unset=True), **asked}) if asked else core
    )


__all__ = ["METHOD", "Mxfp4CoreConfig", "machine", "on_this_machine"]
