"""What both servers of SGLang ask a quantization method alike: its config, of a model in high precision or a folder."""

from __future__ import annotations

from typing import Any, Self

from mxfp4_core.config import Mxfp4Config
from mxfp4_core.loader import EngineMethod
from mxfp4_sglang.model import Model

ADDED = ("packed_modules_mapping", "hf_config")
"""What SGLang writes into ``quantization_config`` of a checkpoint before it hands it over."""


class ModelMethod(EngineMethod):
    """The method of one model; the classes below it are what the two servers take for a config.

    Args:
        core: the config; that of ``MXFP4_CONFIG`` if None.
        stored: the weights are quantised in the checkpoint.
    """

    def __init__(self, core: Mxfp4Config | None = None, *, stored: bool = False) -> None:
        super().__init__()
        self.model = Model(core or self.asked(), stored)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Read ``quantization_config`` of a saved folder."""
        said = {key: value for key, value in config.items() if key not in ADDED}
        return cls(cls.read(said), stored=True)


__all__ = ["ModelMethod"]
