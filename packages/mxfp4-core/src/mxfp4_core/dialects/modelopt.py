"""The ModelOpt dialect with MXFP4 weights, as nvidia-modelopt 0.47 exports it for Hugging Face.

Tensors: ``X.weight`` U8 ``[N, K/2]`` and ``X.weight_scale`` U8 ``[N, K/32]``. ``quant_algo`` is ``mxfp4`` or
``W4A8_MXFP4_FP8``, in ``config.json`` and in ``hf_quant_config.json``; either is enough. NVFP4, whose codes look alike,
has another word there, blocks of 16, and a ``weight_scale_2``.

``mxfp4`` is ModelOpt's word for MXFP4 weights with MXFP4 activations and for MXFP4 weights alone: it is read as the
former, which is its default, and the latter is not written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mxfp4_core.dialects.base import AUTO_CLASS, Contents, Description, Dialect, Entry, one_activation
from mxfp4_core.dialects.default import by_adapter
from mxfp4_core.dialects.pairs import contradiction, find_entries, name_list
from mxfp4_core.dialects.recipes import Recipe
from mxfp4_core.dialects.source import Source
from mxfp4_core.errors import DialectError

VERSION: Final = "0.47.0"
"""The release of nvidia-modelopt whose description we write."""

DOCUMENT: Final = "hf_quant_config.json"
_ALGORITHMS: Final = {"mxfp4": "mxfp4", "w4a8_mxfp4_fp8": "fp8"}
"""Activation modes by the word for the algorithm in lower case."""

_WORDS: Final = {"mxfp4": "mxfp4", "fp8": "W4A8_MXFP4_FP8"}


class ModelOptDialect(Dialect):
    """Read and write ``quant_method: modelopt`` with MXFP4 weights."""

    name = "modelopt"
    readers = "NVIDIA's own tools; no open engine loads it yet"

    def recognise(self, source: Source) -> str | None:
        """Recognise by ``quant_algo``, in ``config.json`` or in the document beside it."""
        described = source.described
        if described.get("quant_method") == self.name:
            algorithm = described.get("quant_algo")
            if str(algorithm).lower() in _ALGORITHMS:
                return f"quant_method is modelopt, quant_algo is {algorithm}"
        if source.config.get("quantization_config") or DOCUMENT not in source.files:
            return None
        algorithm = _beside(source).get("quant_algo")
        return f"{DOCUMENT}: quant_algo is {algorithm}" if str(algorithm).lower() in _ALGORITHMS else None

    def read(self, source: Source) -> Contents:
        """Find the pairs, and check that both descriptions say the same."""
        described, beside = source.described, _beside(source)
        algorithm = str(described.get("quant_algo") or beside.get("quant_algo")).lower()
        told = beside.get("quant_algo")
        if told is not None and str(told).lower() != algorithm:
            seen = f"quant_algo {algorithm!r} in config.json, {str(told)[:60]!r} in {DOCUMENT}"
            contradiction(self.name, seen, "both say the same")
        group = beside.get("group_size", 32)
        if group != 32:
            contradiction(self.name, f"group_size = {str(group)[:60]}", "MXFP4 has groups of 32")
        entries = find_entries(self.name, source, {"codes": ".weight", "scales": ".weight_scale"})
        kept = name_list(self.name, described, "ignore") or name_list(self.name, beside, "exclude_modules")
        rest = source.rest({name for entry in entries.values() for name in entry.names})
        if second := [name for name in rest if name.endswith(".weight_scale_2")]:
            contradiction(self.name, f"{second[0]!r}", "MXFP4 has one level of scales; that is NVFP4")
        static = {name: rest.pop(name) for name in list(rest) if name.endswith(".input_scale")}
        producer = described.get("producer") or (source.document(DOCUMENT) or {}).get("producer")
        profile = "modelopt" if isinstance(producer, dict) and producer.get("version") else ""
        return Contents(entries, rest, kept, profile, _ALGORITHMS[algorithm], static)

    def write(self, entry: Entry) -> dict[str, Recipe]:
        """Keep the name for codes and append ``_scale`` for scales."""
        return {entry.weight: entry.parts["codes"], f"{entry.weight}_scale": entry.parts["scales"]}

    def describe(self, description: Description) -> dict[str, Any]:
        """Write ``quant_algo`` by the activation mode.

        Raises:
            DialectError: an activation mode for which ModelOpt has no word.
        """
        algorithm = self._algorithm(description)
        producer = {
            "name": "modelopt"
        }  # engines ask for the name; the version stands for its codes on reading
        if description.profile == "modelopt":
            producer["version"] = VERSION
        return {
            "ignore": list(description.kept),
            "quant_algo": algorithm,
            "producer": producer,
            "quant_method": self.name,
        }

    def documents(self, description: Description) -> dict[str, dict[str, Any]]:
        """Write ``config.json`` and ``hf_quant_config.json``."""
        documents = super().documents(description)
        described = documents["config.json"]["quantization_config"]
        group = {"group_size": 32} if described["quant_algo"] != "mxfp4" else {}
        quantization = {
            "quant_algo": described["quant_algo"],
            "kv_cache_quant_algo": None,
            **group,
            "exclude_modules": list(described["ignore"]),
        }
        return {**documents, DOCUMENT: {"producer": described["producer"], "quantization": quantization}}

    def how_to_load(self, path: str, model: str = AUTO_CLASS) -> str:
        """Load through the adapter of this project: no engine of others does."""
        return by_adapter(path, model)

    def _algorithm(self, description: Description) -> str:
        activation = one_activation(self.name, description)
        if activation not in _WORDS:
            raise DialectError(
                f"these weights cannot be described in the dialect {self.name}",
                seen=f"activation {activation!r}",
                rule=f"its words with MXFP4 weights are for activations {', '.join(_WORDS)}",
                fix="use one of these, or write the dialect mxfp4-core",
            )
        return _WORDS[activation]


def _beside(source: Source) -> Mapping[str, Any]:
    """Return what the document beside ``config.json`` says about quantisation; empty where there is none."""
    found = (source.document(DOCUMENT) or {}).get("quantization")
    return found if isinstance(found, dict) else {}


MODELOPT = ModelOptDialect()

__all__ = ["MODELOPT", "ModelOptDialect"]
