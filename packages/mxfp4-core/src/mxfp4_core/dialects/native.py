"""The native dialect ``mxfp4-core``: it stores every format, stacked experts, padding and the exact rule.

Tensors: each part under the name of the weight and the suffix that its format gives it. For ``mxfp4`` that is
``X.weight`` codes U8 ``[N, K/2]`` with ``X.weight_scale`` U8 ``[N, K/32]``, and for stacked experts ``X.gate_up_proj``
U8 ``[E, N, K/2]`` with ``X.gate_up_proj_scale``. K is always the last axis, also where the model holds ``[E, K, N]``.

``quantization_config``: ``quant_method``, the fields of `Mxfp4Config` that are about weights (``activation`` only where
somebody said it), and facts about the tensors: ``weights_profile`` (the resolved profile that made the codes, empty
when unknown), ``shapes`` (logical shapes of padded weights), ``transposed`` (weights that the model holds with K before
N), ``weights_format`` where it is not ``mxfp4``, ``formats`` where some weights have another one (see `formats_of`),
and where the model type does not tell ``interleaved`` (fused weights of experts whose rows of gate and up alternate).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mxfp4_core.arithmetic.formats import registry as formats
from mxfp4_core.config.known import NATIVE_NAME
from mxfp4_core.dialects.agreement import check_names
from mxfp4_core.dialects.base import AUTO_CLASS, Contents, Description, Dialect, Entry, alternates
from mxfp4_core.dialects.mixed import (
    by_format,
    check_parts_beside,
    common,
    formats_of,
    groups_by_format,
    named_format,
    told,
)
from mxfp4_core.dialects.pairs import contradiction, find_entries, name_list, shape_table
from mxfp4_core.dialects.recipes import Recipe
from mxfp4_core.dialects.source import Source
from mxfp4_core.errors import DialectError
from mxfp4_core.naming.facts import ModelFacts

_FACTS = ("weights_profile", "weights_format", "formats", "shapes", "transposed", "interleaved")


class NativeDialect(Dialect):
    """Read and write ``quant_method: mxfp4-core``."""

    name = NATIVE_NAME
    linear_only = False
    readers = "transformers with mxfp4_transformers"
    components = True

    def recognise(self, source: Source) -> str | None:
        """Recognise by ``quant_method``."""
        return "quant_method is mxfp4-core" if source.described.get("quant_method") == self.name else None

    def check(self, entry: Entry) -> None:
        """Take every format that is installed.

        Raises:
            DialectError: the format is not; it names the weight.
        """
        if entry.format not in formats.formats():
            raise DialectError(
                f"tensor {entry.weight!r} cannot be written in the dialect {self.name}",
                seen=f"format {entry.format!r}",
                rule=f"the installed formats are {', '.join(formats.formats())}",
                fix="use one of these, or install the package that provides it",
            )

    def write(self, entry: Entry) -> dict[str, Recipe]:
        """Append the suffix of each part."""
        parts = formats.get(entry.format).parts
        return {f"{entry.weight}{part.suffix}": entry.parts[part.name] for part in parts}

    def how_to_load(self, path: str, model: str = AUTO_CLASS) -> str:
        """Load through the transformers adapter of this project."""
        return f"import mxfp4_transformers, transformers; transformers.{model}.from_pretrained({path!r})"

    def describe(self, description: Description) -> dict[str, Any]:
        """Write the `Mxfp4Config` and the facts about the tensors."""
        entries = description.entries
        form, profile = common(description)
        padded = {e.weight: list(e.shape) for e in entries if e.shape[-1] % formats.get(e.format).block}
        facts: dict[str, Any] = {
            "shapes": padded,
            "transposed": sorted(e.weight for e in entries if e.transposed),
        }
        if form != "mxfp4":
            facts["weights_format"] = form
        if others := groups_by_format(description, form):
            facts["formats"] = others
        model_type = ModelFacts.read(description.model).model_type
        told = {e.weight for e in entries if alternates(e.weight, model_type)}
        if alternating := sorted(e.weight for e in entries if e.interleaved and e.weight not in told):
            facts["interleaved"] = alternating
        return {
            "quant_method": self.name,
            **description.config.described(),
            "weights_profile": profile,
            **facts,
        }

    def read(self, source: Source) -> Contents:
        """Find the parts and check them against the description, and what it says to keep against them."""
        described = source.described
        shapes = shape_table(self.name, described, "shapes")
        transposed = frozenset(name_list(self.name, described, "transposed"))
        alternating = frozenset(name_list(self.name, described, "interleaved"))
        others = formats_of(self.name, described)
        form = named_format(self.name, described.get("weights_format") or "mxfp4")
        entries: dict[str, Entry] = {}
        for kind, tensors in by_format(source, form, others):
            suffixes = {part.name: part.suffix for part in kind.parts}
            entries |= find_entries(
                self.name,
                tensors,
                {part: f".weight{suffix}" for part, suffix in suffixes.items()},
                stacked=suffixes,
                form=kind,
                shapes=shapes,
                transposed=transposed,
            )
        if others:
            entries = told(entries, others, source)
        check_parts_beside(self.name, entries, source)
        for weight in (*shapes, *transposed, *alternating, *others):
            if weight not in entries:
                contradiction(
                    self.name, f"a description of {weight!r}, which is not quantised", "facts match tensors"
                )
        model_type = ModelFacts.read(source.config).model_type
        for weight, entry in entries.items():
            if weight in alternating or alternates(weight, model_type):
                entries[weight] = replace(entry, interleaved=True)
        activation = str(described.get("activation") or "none")
        rest = source.rest({name for entry in entries.values() for name in entry.names})
        check_names(self.name, self.settings(described), source.config, entries)
        profile = str(described.get("weights_profile") or "")
        said = "activation" in described
        return Contents(entries, rest, (), profile, activation, says_activation=said)

    def settings(self, quantization_config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the part of ``quantization_config`` that `Mxfp4Config.from_dict` takes."""
        return {
            key: value for key, value in quantization_config.items() if key not in ("quant_method", *_FACTS)
        }


NATIVE = NativeDialect()

__all__ = ["NATIVE", "NativeDialect"]
