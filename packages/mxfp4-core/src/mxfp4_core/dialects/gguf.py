"""The GGUF dialect: MXFP4 blocks of 17 bytes in one file, as llama.cpp and ollama run them.

Names, axes and experts become those of transformers, and back: experts are stacked, gate and up apart, rows of q and k
of a Llama in ggml's order of rotary embeddings. Where the architecture is not known here, names stay as they are, and
nothing is written. Vectors become F32, as ggml computes with them; matrices in BF16 and F16 stay. The vocabulary is
made of the ``tokenizer.json`` beside the weights. Sources: see `gguf_names`, `gguf_blocks` and `gguf_vocabulary`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mxfp4_core.arithmetic.format import BLOCK
from mxfp4_core.checkpoint.gguf import MXFP4_TYPE, Q8_0_TYPE
from mxfp4_core.dialects.base import AUTO_CLASS, Contents, Description, Dialect, Entry, one_activation
from mxfp4_core.dialects.beside import Narrow
from mxfp4_core.dialects.gguf_blocks import Q80, as_float32, blocks_of, parts_of
from mxfp4_core.dialects.gguf_experts import (
    ATTENTION,
    apart,
    entry_of,
    others_of,
    stacked,
    turned,
    turned_rows,
    unstacked,
)
from mxfp4_core.dialects.gguf_names import ARCHITECTURES, Architecture, architecture_for
from mxfp4_core.dialects.gguf_rope import FACTORS, explains, factors_in, rope_factors
from mxfp4_core.dialects.gguf_vocabulary import vocabulary_of
from mxfp4_core.dialects.pairs import contradiction, nothing
from mxfp4_core.dialects.recipes import Recipe
from mxfp4_core.dialects.source import Source
from mxfp4_core.errors import DialectError

_FLOATS = ("F32", "F16", "BF16", "F64")
_EXPERT = re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.(\d+)\.(gate|up|down)_proj\.weight")
_FUSED = re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.(gate_up|down)_proj(_bias)?")


class GgufDialect(Dialect):
    """Read and write GGUF files with tensors of the type MXFP4."""

    name = "gguf"
    linear_only = False
    readers = "llama.cpp and what is built on it; transformers with the package gguf"
    file = "model.gguf"

    def recognise(self, source: Source) -> str | None:
        """Recognise by the type of a tensor."""
        for header in source.gguf():
            for name, kind in header.types.items():
                if kind == MXFP4_TYPE:
                    return f"a GGUF file, {name!r} is of type MXFP4"
        return None

    def read(self, source: Source) -> Contents:
        """Find the tensors of type MXFP4; names become those of transformers where the architecture is known."""
        types: dict[str, int] = {}
        settings: dict[str, Any] = {}
        for header in reversed(source.gguf()):
            types |= header.types
            settings |= header.settings
        known = ARCHITECTURES.get(str(settings.get("general.architecture")))
        blocks: dict[str, Recipe] = {}
        rest: dict[str, Recipe] = {}
        beside: dict[str, Narrow] = {}
        for name, recipe in ((name, source.tensor(name)) for name in source.tensors):
            if types.get(name) == MXFP4_TYPE:
                if len(recipe.shape) < 3:
                    contradiction(
                        self.name, f"{name!r} {list(recipe.shape)}", "a weight has two axes or more"
                    )
                blocks[name] = recipe
            elif types.get(name) == Q8_0_TYPE and len(recipe.shape) > 2:
                beside[name] = Q80(name, recipe)
            elif recipe.dtype in _FLOATS:
                rest[name] = recipe
            else:
                seen = f"{name!r} of type {types.get(name)}"
                contradiction(self.name, seen, "beside MXFP4 tensors are Q8_0, or floats of 16 or 32 bits")
        if not blocks:
            nothing(self.name, source, "no tensor of type MXFP4")
        if known is None:
            entries = {name: entry_of(name, parts_of(recipe)) for name, recipe in blocks.items()}
            return Contents(entries, rest, beside=beside)
        return self._known(known, settings, source, blocks, rest, beside)

    def _known(
        self,
        known: Architecture,
        settings: Mapping[str, Any],
        source: Source,
        blocks: Mapping[str, Recipe],
        rest: Mapping[str, Recipe],
        beside: Mapping[str, Narrow],
    ) -> Contents:
        factors = factors_in(source.gguf()) if FACTORS in rest else ()
        if source.config.get("model_type"):
            config = dict(source.config)
            if factors and not explains(config, factors):
                seen = f"{FACTORS}, and a config.json that says nothing of such positions"
                contradiction(self.name, seen, "config.json is that of the model in the file")
        else:
            config = known.config(settings, factors)
        entries: dict[str, Entry] = {}
        for name, recipe in blocks.items():
            for entry in unstacked(known, name, parts_of(recipe), blocks):
                entries[entry.weight] = turned(known, entry, config, back=True)
        high: dict[str, Recipe] = {}
        for name, recipe in rest.items():
            if name == FACTORS:  # config.json says it, and `write_others` makes it of that
                continue
            for key, value in others_of(known, name, recipe, rest):
                high[key] = turned_rows(known, key, value, config, back=True)
        others: dict[str, Narrow] = {}
        for name, each in beside.items():
            key = known.hugging_face(name) or name
            if known.turned and ATTENTION.fullmatch(key) and isinstance(each, Q80):
                each = Q80(key, turned_rows(known, key, each.blocks, config, back=True))
            others[key] = replace(each, weight=key)
        return Contents(entries, high, beside=others, model=config)

    def arrange(self, entries: Sequence[Entry], model: Mapping[str, Any]) -> list[Entry]:
        """Stack experts, take gate and up apart, and bring rows of q and k into ggml's order."""
        known = architecture_for(model)
        made: list[Entry] = []
        single: dict[tuple[str, str], dict[int, Entry]] = {}
        for entry in entries:
            self.check(entry)
            if match := _EXPERT.fullmatch(entry.weight):
                single.setdefault((match[1], match[3]), {})[int(match[2])] = entry
            elif match := _FUSED.fullmatch(entry.weight):
                made += apart(entry, match[1], match[2])
            else:
                made_rows = turned(known, entry, model, back=False)
                made.append(replace(made_rows, weight=known.gguf(entry.weight)))
        for (layer, part), experts in single.items():
            made.append(stacked(f"blk.{layer}.ffn_{part}_exps.weight", experts))
        return made

    def check(self, entry: Entry) -> None:
        """Take MXFP4 in whole blocks; experts of gpt-oss as that model has them."""
        fused = _FUSED.fullmatch(entry.weight)
        unusual = {
            f"format {entry.format}": entry.format != "mxfp4",
            f"K = {entry.shape[-1]}, padded": entry.shape[-1] % BLOCK != 0,
            "a weight with K before N": entry.transposed and not fused,
            "rows of gate and up one above the other": bool(
                fused and fused[2] == "gate_up" and not entry.interleaved
            ),
        }
        for seen, found in unusual.items():
            if found:
                raise DialectError(
                    f"tensor {entry.weight!r} cannot be written in the dialect {self.name}",
                    seen=f"{seen}, shape {list(entry.shape)}",
                    rule="GGUF stores MXFP4 [N, K] or [E, N, K] in whole blocks, of models that it knows",
                    fix="write the dialect mxfp4-core, or add the name to ignore",
                )

    def write(self, entry: Entry) -> dict[str, Recipe]:
        """Make blocks of 17 bytes."""
        return {entry.weight: blocks_of(entry.parts["codes"], entry.parts["scales"])}

    def write_others(self, tensors: Mapping[str, Recipe], model: Mapping[str, Any]) -> dict[str, Recipe]:
        """Rename; vectors become F32."""
        known, found = architecture_for(model), dict[str, Recipe]()
        for name, recipe in tensors.items():
            rows = turned_rows(known, name, recipe, model, back=False)
            match = _FUSED.fullmatch(name)
            if match and match[3]:
                biases = {"down": rows} if match[2] == "down" else {
                    "gate": rows.take(step=2, axis=1), "up": rows.take(1, step=2, axis=1)
                }  # fmt: skip
                found |= {f"blk.{match[1]}.ffn_{part}_exps.bias": as_float32(r) for part, r in biases.items()}
            else:
                found[known.gguf(name)] = as_float32(rows) if len(rows.shape) < 2 else rows
        return found | rope_factors(model)

    def metadata(self, description: Description) -> dict[str, Any]:
        """Return the settings of the file, and its vocabulary."""
        settings = architecture_for(description.model).settings(description.model)
        return settings | dict(vocabulary_of(description.source, description.model).settings)

    def notes(self, description: Description) -> list[str]:
        """Say why there is no vocabulary, where there is none, and where llama.cpp computes something else."""
        model, found = description.model, []
        if reason := vocabulary_of(description.source, model).reason:
            found.append(f"the file has no vocabulary, which llama.cpp needs: {reason}")
        if architecture_for(model).stacked and model.get("norm_topk_prob") is not True:
            found.append(
                "llama.cpp scales the chosen experts to add up to one, where norm_topk_prob says not to"
            )
        return found

    def documents(self, description: Description) -> dict[str, dict[str, Any]]:
        """Write ``config.json`` without a word of quantisation: ours read there what the settings leave out."""
        self.describe(description)
        return {
            "config.json": {key: v for key, v in description.model.items() if key != "quantization_config"}
        }

    def describe(self, description: Description) -> dict[str, Any]:
        """Return nothing: the types of the tensors say it.

        Raises:
            DialectError: another model, or activations of different kinds.
        """
        architecture_for(description.model)
        one_activation(self.name, description)  # GGUF says nothing of activations: ggml chooses
        return {}

    def how_to_load(self, path: str, model: str = AUTO_CLASS) -> str:
        """Load with transformers, which needs no vocabulary in the file."""
        return f"import transformers; transformers.{model}.from_pretrained({path!r}, gguf_file={self.file!r})"


GGUF = GgufDialect()

__all__ = ["GGUF", "GgufDialect"]
