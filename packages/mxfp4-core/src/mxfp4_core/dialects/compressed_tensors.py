"""The compressed-tensors dialect, format ``mxfp4-pack-quantized``, as compressed-tensors 0.20 writes it.

Tensors: ``X.weight_packed`` U8 ``[N, K/2]`` and ``X.weight_scale`` U8 ``[N, K/32]``. The description carries no scale
rule, so the profile of a file that others wrote is unknown unless it names its provider (auto-round).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mxfp4_core.arithmetic.formats.mxfp8 import MXFP8
from mxfp4_core.dialects.base import AUTO_CLASS, Contents, Description, Dialect, Entry, one_activation
from mxfp4_core.dialects.beside import Beside, Narrow
from mxfp4_core.dialects.ct_schemes import (
    MIXED,
    activation_of,
    fp8_groups,
    groups_of,
    inputs_for,
    kind_of,
    mx_group,
)
from mxfp4_core.dialects.default import by_adapter
from mxfp4_core.dialects.fp8 import FP8, fp8_weights
from mxfp4_core.dialects.pairs import contradiction, find_entries, in_order, name_list, nothing
from mxfp4_core.dialects.recipes import Recipe
from mxfp4_core.dialects.source import Source
from mxfp4_core.errors import DialectError

VERSION = "0.20.0"
"""The release of compressed-tensors whose description we write."""


class CompressedTensorsDialect(Dialect):
    """Read and write ``quant_method: compressed-tensors`` with MXFP4 weights."""

    name = "compressed-tensors"
    formats = frozenset({"mxfp4", "mxfp8"})
    components = True
    readers = (
        "vLLM, and in transformers with the package compressed-tensors where no code of the model asks a linear for "
        "its weight, as that of T5 and Mamba does"
    )

    def recognise(self, source: Source) -> str | None:
        """Recognise by ``quant_method`` and a weight scheme of 4-bit floats in groups of 32."""
        if source.described.get("quant_method") != self.name:
            return None
        kinds = {kind_of(group) for group in groups_of(source.described)}
        if "mxfp4" in kinds:
            return f"quant_method is {self.name} with 4-bit floats in groups of 32"
        return (
            f"quant_method is {self.name} with 8-bit floats in groups of 32" if kinds == {"mxfp8"} else None
        )

    def write(self, entry: Entry) -> dict[str, Recipe]:
        """Append ``_packed`` and ``_scale``; MXFP8 keeps the name of the weight."""
        codes, scales = entry.parts["codes"], entry.parts["scales"]
        packed = "" if entry.format == "mxfp8" else "_packed"
        return {f"{entry.weight}{packed}": codes, f"{entry.weight}_scale": scales}

    def write_beside(self, beside: Narrow) -> dict[str, Recipe]:
        """Store FP8 with scales in floats, as the groups of its own have it.

        Raises:
            DialectError: another kind, scales in E8M0, or no linear.
        """
        if (
            not isinstance(beside, Beside)
            or beside.scales.dtype not in ("F32", "BF16", "F16")
            or len(beside.shape) > 2
        ):
            return super().write_beside(beside)
        one = beside.scales.shape == (1, 1) and beside.block == beside.shape
        return {
            beside.weight: beside.values,
            f"{beside.weight}_scale": beside.scales.reshape(1) if one else beside.scales,
        }

    def write_static(self, static: Mapping[str, Recipe]) -> dict[str, Recipe]:
        """Store static scales of the inputs of FP8 weights, which only this dialect reads, as they are."""
        return dict(static)

    def how_to_load(self, path: str, model: str = AUTO_CLASS) -> str:
        """Load through the adapter of this project, which works for every model.

        transformers' own integration, with the package compressed-tensors, has linears without a ``weight``: the code
        of T5, Mamba and others asks for it, and so does transformers itself where a linear is tied.
        """
        return by_adapter(path, model)

    def describe(self, description: Description) -> dict[str, Any]:
        """Write the scheme MXFP4A16, MXFP4 or MXFP4xFP8, by the activation mode.

        Raises:
            DialectError: an activation mode for which compressed-tensors has no word, or static scales of inputs of
                weights in blocks, whose inputs get theirs on the way.
        """
        beside = {each.weight.removesuffix(".weight") for each in description.beside}
        if left := [name for name in description.static if name.rpartition(".")[0] not in beside]:
            self.no_static(left)
        wide = [entry for entry in description.entries if entry.format == "mxfp8"]
        narrow = len(wide) < len(description.entries) or not wide
        activation = one_activation(self.name, description, "mxfp4" if narrow and wide else None)
        self._check_activation(activation, "mxfp4" if narrow else "mxfp8")
        for mode in {entry.activation for entry in wide} - {""}:
            self._check_activation(mode, "mxfp8")
        groups = [mx_group(4, activation, ["Linear"])] if narrow else []
        own = {
            e.weight: e.activation or (activation if activation in ("none", "mxfp8") else "mxfp8")
            for e in wide
        }
        for mode in sorted({*own.values()}):
            names = [weight.removesuffix(".weight") for weight, each in own.items() if each == mode]
            groups.append(mx_group(8, mode, names if narrow else ["Linear"]))
        groups += fp8_groups(description.beside)
        formats = {group["format"] for group in groups}
        provider = {"provider": "auto-round"} if description.profile == "auto-round" else {}
        return {
            **provider,
            "config_groups": {f"group_{number}": group for number, group in enumerate(groups)},
            "format": formats.pop() if len(formats) == 1 else MIXED,
            "global_compression_ratio": None,
            "ignore": [name for name in description.kept if name not in beside],
            "kv_cache_scheme": None,
            "moe_sparsity_config": None,
            "quant_method": self.name,
            "quantization_status": "compressed",
            "sparsity_config": {},
            "transform_config": {},
            "version": VERSION,
        }

    def _check_activation(self, activation: str, format: str) -> None:
        """Refuse a mode for weights of a format for which there is no scheme."""
        modes = ("none", "mxfp4", "fp8") if format == "mxfp4" else ("none", "mxfp8")
        if activation not in modes:
            raise DialectError(
                f"dialect {self.name!r} cannot say what the config asks for",
                seen=f"activation {activation!r} for weights in {format}",
                rule=f"its schemes for {format} have activations {', '.join(modes)}",
                fix="use one of these, for weights of a format of their own in their override, or write the dialect "
                "'mxfp4-core'",
            )

    def read(self, source: Source) -> Contents:
        """Find the pairs of MXFP4 and MXFP8, and FP8 beside them; refuse transforms and other schemes."""
        described = source.described
        groups = groups_of(described)
        if not all(map(kind_of, groups)):
            contradiction(self.name, "a group that is not MXFP4, MXFP8 or FP8", "no group has another scheme")
        transforms = described.get("transform_config") or {}
        if not isinstance(transforms, dict) or transforms.get("config_groups"):
            contradiction(
                self.name, "transform_config with transforms", "codes stand for the weights themselves"
            )
        kinds = {
            kind: [group for group in groups if kind_of(group) == kind] for kind in ("mxfp4", "mxfp8", "fp8")
        }
        wide, beside = self._eight_bits(source, groups, kinds["fp8"])
        used = {name for entry in wide.values() for name in entry.names}
        used |= {name for each in beside.values() for name in each.names}
        entries = dict(wide)
        if kinds["mxfp4"]:
            others = {name: row for name, row in source.tensors.items() if name not in used}
            names = {"codes": ".weight_packed", "scales": ".weight_scale"}
            entries = find_entries(self.name, replace(source, tensors=others), names) | entries
        elif not entries:
            nothing(self.name, source, "no weight in FP8 with scales in groups of 32")
        profile = "auto-round" if described.get("provider") == "auto-round" else ""
        mode, own = self._activations([*wide], groups, kinds["mxfp4"])
        for name, word in own.items():
            entries[name] = replace(entries[name], activation="" if word == mode else word)
        entries = in_order(entries, source)
        kept = name_list(self.name, described, "ignore")
        rest = source.rest({name for entry in entries.values() for name in entry.names} | used)
        modules = {name.removesuffix(".weight") for name in (*beside, *entries)}
        static = {
            n: rest.pop(n)
            for n in list(rest)
            if n.endswith(".input_scale") and n.rpartition(".")[0] in modules
        }
        return Contents(entries, rest, kept, profile, mode, static, beside)

    def _activations(
        self, wide: Sequence[str], groups: Sequence[Mapping[str, Any]], mxfp4: Sequence[Mapping[str, Any]]
    ) -> tuple[str, dict[str, str]]:
        """Return the activation mode of the checkpoint, which that of MXFP4 weights is, and those of MXFP8 weights."""
        inputs = inputs_for([name.removesuffix(".weight") for name in wide], groups, "mxfp8")
        own = {f"{stem}.weight": activation_of(json.loads(text)) for stem, text in inputs.items()}
        modes = {activation_of(group.get("input_activations")) for group in mxfp4} or {*own.values()}
        if mxfp4 and len(modes) > 1:
            contradiction(
                self.name, f"activation modes {sorted(modes)}", "all groups share one activation mode"
            )
        return min(modes), own

    def _eight_bits(
        self, source: Source, groups: Sequence[Mapping[str, Any]], fp8: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, Entry], dict[str, Narrow]]:
        """Return MXFP8 weights, and FP8 weights with other scales; the dtype of the scales tells them apart."""
        values = [n for n, (dtype, _) in source.tensors.items() if dtype == FP8 and n.endswith(".weight")]
        scaled = {name: source.tensors.get(f"{name}_scale", ("", ()))[0] for name in values}

        def part(names: Sequence[str]) -> Source:
            kept = {*names, *(f"{name}_scale" for name in names)}
            return replace(source, tensors={n: row for n, row in source.tensors.items() if n in kept})

        wide = [name for name, dtype in scaled.items() if dtype in ("U8", "F8_E8M0")]
        found: dict[str, Entry] = {}
        if wide:
            ends = {"codes": ".weight", "scales": ".weight_scale"}
            found = find_entries(self.name, part(wide), ends, form=MXFP8)
        others = [name for name in values if name not in wide]
        if others and not fp8:
            contradiction(
                self.name, f"FP8 weight {min(others)!r}", "a group says how such weights are scaled"
            )
        schemes = [group["weights"] for group in fp8]
        block = next((each["block_structure"] for each in schemes if each.get("block_structure")), None)
        beside = fp8_weights(self.name, part(others), block)
        inputs = inputs_for([name.removesuffix(".weight") for name in beside], groups)
        return found, {
            name: replace(each, inputs=inputs[name.removesuffix(".weight")])
            if isinstance(each, Beside)
            else each
            for name, each in beside.items()
        }


COMPRESSED_TENSORS = CompressedTensorsDialect()

__all__ = ["COMPRESSED_TENSORS", "CompressedTensorsDialect"]
