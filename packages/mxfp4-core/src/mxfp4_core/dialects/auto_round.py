"""The auto-round dialect in its own packing, as auto-round 0.16 writes it for MXFP4.

Tensors: ``X.weight_packed`` U8 ``[N, K/2]`` and ``X.weight_scale`` U8 ``[N, K/32]``. ``block_name_to_quantize`` names
the blocks whose linears are quantised, ``extra_config`` the linears that are not. The other packing of auto-round,
``llm_compressor``, is a checkpoint of compressed-tensors that names its provider: that dialect reads and writes it.

Weights are made by the rule ``floor`` whatever the scheme is called: ``MXFP4_RCEIL`` changes ``act_data_type`` alone.
Source: auto-round 0.16.1, ``inference/convert_model.py`` and its exporter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from mxfp4_core.dialects.base import AUTO_CLASS, Contents, Description, Dialect, Entry, one_activation
from mxfp4_core.dialects.pairs import contradiction, find_entries
from mxfp4_core.dialects.recipes import Recipe
from mxfp4_core.dialects.source import Source
from mxfp4_core.errors import DialectError

VERSION: Final = "0.16.1"
"""The release of auto-round whose description we write."""

PACKING: Final = "auto_round:llm_compressor"
DOCUMENT: Final = "quantization_config.json"
"""What it writes beside ``config.json``: the description once more."""

_METHODS: Final = ("auto-round", "intel/auto-round")
_WEIGHTS: Final = {"bits": 4, "group_size": 32, "data_type": "mx_fp"}
_HIGH: Final = {"bits": 16, "data_type": "float", "act_bits": 16, "act_data_type": "float"}
_NONE: Final = {"act_bits": 16, "act_data_type": "float"}
_MXFP4: Final = {
    "act_bits": 4,
    "act_data_type": "mx_fp",
    "act_dynamic": True,
    "act_group_size": 32,
    "act_sym": True,
}
_BLOCK: Final = re.compile(r"(.+?)\.\d+\.")


class AutoRoundDialect(Dialect):
    """Read and write ``quant_method: auto-round`` with MXFP4 weights."""

    name = "auto-round"
    readers = "vLLM; transformers with the package auto-round"

    def recognise(self, source: Source) -> str | None:
        """Recognise by ``quant_method`` and a data type of MX floats of 4 bits."""
        described = source.described
        if described.get("quant_method") not in _METHODS:
            return None
        found = {key: described.get(key) for key in ("bits", "data_type")}
        if found["bits"] == 4 and str(found["data_type"]).startswith("mx_fp"):
            return f"quant_method is {described['quant_method']} with data_type mx_fp of 4 bits"
        return None

    def read(self, source: Source) -> Contents:
        """Find the pairs; layers of a format of their own are refused."""
        described = source.described
        wanted = {**_WEIGHTS, "packing_format": PACKING}
        for key, value in wanted.items():
            found = described.get(key)
            if key != "data_type" and found != value:
                contradiction(self.name, f"{key} = {str(found)[:60]!r}", f"MXFP4 has {key} {value!r}")
        if described.get("rotation_config"):
            contradiction(self.name, "rotation_config", "codes stand for the weights themselves")
        entries = find_entries(self.name, source, {"codes": ".weight_packed", "scales": ".weight_scale"})
        kept = self._kept(described.get("extra_config"))
        rest = source.rest({name for entry in entries.values() for name in entry.names})
        profile = "auto-round" if described.get("autoround_version") else ""
        return Contents(entries, rest, kept, profile, self._activation(described))

    def _kept(self, extra: object) -> tuple[str, ...]:
        if extra is None:
            return ()
        rows = extra.items() if isinstance(extra, dict) else [(str(extra)[:60], None)]
        kept = []
        for name, row in rows:
            if not isinstance(row, dict):
                contradiction(self.name, f"extra_config: {name!r}", "it maps names of layers to settings")
            bits, kind = row.get("bits", 4), row.get("data_type", "mx_fp")
            if bits == 16:
                kept.append(str(name))
            elif bits != 4 or not str(kind).startswith("mx_fp") or row.get("group_size", 32) != 32:
                contradiction(
                    self.name, f"{name!r} has {bits!r} bits of {str(kind)[:40]!r}", "all weights are MXFP4"
                )
        return tuple(kept)

    def _activation(self, described: Mapping[str, Any]) -> str:
        bits, kind = described.get("act_bits"), str(described.get("act_data_type") or "")
        if bits is None or bits == 16:
            return "none"
        modes = {4: "mxfp4", 8: "mxfp8"}
        dynamic = described.get("act_dynamic", True) is True and described.get("act_group_size", 32) == 32
        if type(bits) is not int or bits not in modes or not kind.startswith("mx_fp") or not dynamic:
            contradiction(
                self.name,
                f"act_bits {bits!r}, act_data_type {kind[:40]!r}, act_dynamic {described.get('act_dynamic')!r}",
                "activations are not quantised, or in MX formats at run time",
            )
        return modes[bits]

    def write(self, entry: Entry) -> dict[str, Recipe]:
        """Append ``_packed`` and ``_scale``."""
        codes, scales = entry.parts["codes"], entry.parts["scales"]
        return {f"{entry.weight}_packed": codes, f"{entry.weight}_scale": scales}

    def describe(self, description: Description) -> dict[str, Any]:
        """Write the scheme MXFP4, or the same without quantised activations.

        Raises:
            DialectError: an activation mode for which auto-round has no scheme.
        """
        activation = one_activation(self.name, description)
        if activation not in ("none", "mxfp4", "mxfp8"):
            raise DialectError(
                f"these weights cannot be described in the dialect {self.name}",
                seen=f"activation {activation!r}",
                rule="its schemes with MXFP4 weights have activations none, mxfp4 or mxfp8",
                fix="use one of these, or write the dialect mxfp4-core",
            )
        modules = [entry.weight.removesuffix(".weight") for entry in description.entries]
        inputs = _NONE if activation == "none" else {**_MXFP4, "act_bits": 4 if activation == "mxfp4" else 8}
        blocks, single = _blocks(modules)
        found: dict[str, Any] = {
            "quant_method": self.name,
            "packing_format": PACKING,
            "sym": True,
            **_WEIGHTS,
            "iters": 0,
            "enable_quanted_input": False,
            **inputs,
        }
        if description.profile == "auto-round":  # what the version stands for on reading
            found["autoround_version"] = VERSION
        if blocks:
            found["block_name_to_quantize"] = ",".join(blocks)
        extra = {name: dict(_HIGH) for name in description.kept} | {
            name: {**_WEIGHTS, **inputs} for name in single
        }
        return {**found, "extra_config": extra}

    def documents(self, description: Description) -> dict[str, dict[str, Any]]:
        """Write the description into ``config.json`` and beside it."""
        documents = super().documents(description)
        return {**documents, DOCUMENT: documents["config.json"]["quantization_config"]}

    def how_to_load(self, path: str, model: str = AUTO_CLASS) -> str:
        """Load in an engine, or through transformers' own integration."""
        call = f"transformers.{model}.from_pretrained({path!r})"
        return f"import transformers; {call}  # with auto-round; or: vllm serve {path}"


def _blocks(modules: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the names of lists of layers, such as ``model.layers``, and the modules that are in none."""
    blocks: dict[str, None] = {}
    single = []
    for module in modules:
        if match := _BLOCK.match(module):
            blocks[match[1]] = None
        else:
            single.append(module)
    return list(blocks), single


AUTO_ROUND = AutoRoundDialect()

__all__ = ["AUTO_ROUND", "DOCUMENT", "AutoRoundDialect"]
