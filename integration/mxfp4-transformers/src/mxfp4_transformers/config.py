"""The configuration that ``from_pretrained`` takes: the core's, in the form that transformers expects."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from mxfp4_core.config import MACHINE
from mxfp4_core.config import Mxfp4Config as CoreConfig
from mxfp4_core.dialects import NATIVE
from mxfp4_core.errors import ConfigError
from mxfp4_core.loader import config_and_facts

if TYPE_CHECKING:
    from mxfp4_transformers.serialised import Serialised

METHOD = NATIVE.name
"""``quant_method`` of our checkpoints; transformers' own ``mxfp4`` means gpt-oss's experts."""


class Mxfp4CoreConfig(QuantizationConfigMixin):
    """What to quantise while a model loads, and how; every field of `mxfp4_core.config.Mxfp4Config` is a keyword.

    With a checkpoint that is quantised already, only what belongs to the machine (``backend``, ``fallback``,
    ``backend_options``, ``refused``) may differ from what it says.

    Args:
        core: a config of the core, instead of keywords.
        settings: fields of the core's config, for example ``rule="floor"`` or ``ignore=["layers.0"]``.

    Raises:
        ConfigError: an unknown key, with the near miss, or keys that contradict each other.
    """

    # Exported as Mxfp4Config. transformers compares class names to tell whether a config and a checkpoint belong
    # together, and its own Mxfp4Config, for gpt-oss checkpoints, must not pass for ours.

    def __init__(self, core: CoreConfig | None = None, **settings: Any) -> None:
        self.quant_method: Any = METHOD
        settings.pop("quant_method", None)
        self.core, self.facts = config_and_facts(core, settings, "Mxfp4Config")
        self.serialised: Serialised | None = None

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Read ``quantization_config`` of a ``config.json``, or a dictionary written by hand."""
        config = cls(**config_dict)
        return (config, kwargs) if return_unused_kwargs else config

    def to_dict(self) -> dict[str, Any]:
        """Return what is stored in ``config.json``: the choice of a backend belongs to the machine and is not.

        ``save_pretrained`` writes our own dialect, whichever one the config names for `mxfp4_transformers.save`.
        """
        settings = self.core.described()
        return {"quant_method": METHOD, **settings, "dialect": METHOD, **copy.deepcopy(self.facts)}

    def get_loading_attributes(self) -> dict[str, Any]:
        """Return what the config of a quantised checkpoint takes over from one given to ``from_pretrained``."""
        return {"requested": self.core}

    @property
    def requested(self) -> CoreConfig:
        """The config that counts; set it to take over the choice of a backend from another one.

        Raises:
            ConfigError: the other config asks for something that the checkpoint is not.
        """
        return self.core

    @requested.setter
    def requested(self, other: CoreConfig) -> None:
        arithmetic = {"profile", "rule", "ties"}
        plain = other.model_fields_set - {*MACHINE, *arithmetic}
        unsaid = {"activation"} & plain - self.core.model_fields_set
        plain -= unsaid
        pairs = {key: (getattr(other, key), getattr(self.core, key)) for key in sorted(plain)}
        if other.model_fields_set & arithmetic:
            pairs["profile"] = other.resolved_profile(), self.core.resolved_profile()
        if wrong := {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}:
            lines = (
                f"{key}: {asked!r} asked, {stored!r} in the file" for key, (asked, stored) in wrong.items()
            )
            raise ConfigError(
                "quantization_config contradicts the checkpoint, which is quantised already",
                seen="; ".join(lines),
                rule="only the backend can be chosen for a quantised checkpoint (backend, fallback, backend_options)",
                fix="drop these settings, or load the checkpoint in high precision",
            )
        self.core = self.core.model_copy(update={key: getattr(other, key) for key in (*MACHINE, *unsaid)})
