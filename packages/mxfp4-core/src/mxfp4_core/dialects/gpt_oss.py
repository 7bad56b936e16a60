"""The gpt-oss dialects: as Hugging Face publishes it, and under the names of OpenAI's own files.

Tensors: ``X.experts.gate_up_proj_blocks`` U8 ``[E, 2I, H/32, 16]`` with ``.._scales`` U8 ``[E, 2I, H/32]``, rows of
gate and up in turn, and ``X.experts.down_proj_blocks`` with its scales; biases and everything else in high precision.
Element 2i is in the low nibble, so blocks are our codes in another shape. The model holds the weights as ``[E, K, N]``.

OpenAI's files have ``block.N.mlp.mlp1_weight.blocks`` and ``.scales`` of the same shapes, and no description at all.

Nothing but stacked experts of a gpt-oss model can be stored: transformers and vLLM build all other layers in BF16.
Sources: transformers 5.23, ``integrations/mxfp4.py`` and ``convert_gpt_oss_weights_to_hf.py``; openai/gpt-oss 7b58334.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mxfp4_core.arithmetic.format import BLOCK
from mxfp4_core.dialects.base import AUTO_CLASS, Contents, Description, Dialect, Entry, one_activation
from mxfp4_core.dialects.original import (
    NAME,
    config_of,
    name_of,
    original_config_of,
    original_of,
    originals_of,
    others_of,
)
from mxfp4_core.dialects.pairs import contradiction, name_list, nothing
from mxfp4_core.dialects.recipes import Recipe
from mxfp4_core.dialects.source import Source
from mxfp4_core.errors import DialectError

MODEL_TYPE = "gpt_oss"
_METHODS = ("mxfp4", "gpt_oss_mxfp4")
_HIGH = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
_ORIGINAL = re.compile(r"block\.\d+\.mlp\.mlp[12]_weight\.blocks")
_KEYS = (("_blocks", "_scales"), (".blocks", ".scales"))


class GptOssDialect(Dialect):
    """Read and write ``quant_method: mxfp4``."""

    name = "gpt-oss"
    linear_only = False
    readers = "transformers, vLLM, SGLang, llama.cpp's converter: gpt-oss models"

    def recognise(self, source: Source) -> str | None:
        """Recognise by ``quant_method``."""
        method = source.described.get("quant_method")
        return f"gpt-oss MXFP4: quant_method is {method}" if method in _METHODS else None

    def read(self, source: Source) -> Contents:
        """Find the pairs of blocks and scales."""
        entries, rest = self._read(source, original=False)
        return Contents(entries, rest, name_list(self.name, source.described, "modules_to_not_convert"))

    def _read(self, source: Source, *, original: bool) -> tuple[dict[str, Entry], dict[str, Recipe]]:
        ends = _KEYS[original]
        entries: dict[str, Entry] = {}
        for name in source.tensors:
            if name.endswith(ends[0]):
                entry = self._entry(source, name.removesuffix(ends[0]), ends, original)
                entries[entry.weight] = entry
        used = {name for entry in entries.values() for name in entry.names}
        for name in source.tensors:
            if name.endswith(ends[1]) and name not in used:
                contradiction(
                    self.name,
                    f"scales {name!r} without blocks",
                    "each tensor of scales belongs to one of blocks",
                )
        if not entries:
            nothing(self.name, source, "no gpt-oss MXFP4 weight: blocks with scales")
        return entries, source.rest(used)

    def check(self, entry: Entry) -> None:
        """Take stacked experts of gpt-oss in whole blocks, gate and up in turn; refuse everything else."""
        last = entry.weight.rsplit(".", 1)[-1]
        reasons = {
            f"format {entry.format}": entry.format != "mxfp4",
            f"K = {entry.shape[-1]}, padded": entry.shape[-1] % BLOCK != 0,
            f"shape {list(entry.shape)}": len(entry.shape) != 3,
            f"the name {last!r}": last not in ("gate_up_proj", "down_proj"),
            "a weight that the model holds with N before K": not entry.transposed,
            "gate above up": last == "gate_up_proj" and not entry.interleaved,
        }
        for seen, found in reasons.items():
            if found:
                raise DialectError(
                    f"tensor {entry.weight!r} cannot be written in the dialect {self.name}",
                    seen=seen,
                    rule="that dialect stores experts.gate_up_proj and experts.down_proj of gpt-oss, and nothing else",
                    fix="write the dialect mxfp4-core, or add the name to ignore",
                )

    def write(self, entry: Entry) -> dict[str, Recipe]:
        """Append ``_blocks`` and ``_scales``; blocks have an axis of their own."""
        scales = entry.parts["scales"]
        blocks = entry.parts["codes"].reshape(*scales.shape, BLOCK // 2)
        return {f"{entry.weight}_blocks": blocks, f"{entry.weight}_scales": scales}

    def how_to_load(self, path: str, model: str = AUTO_CLASS) -> str:
        """Load through transformers' own integration."""
        return f"import transformers; transformers.{model}.from_pretrained({path!r})  # or: vllm serve {path}"

    def describe(self, description: Description) -> dict[str, Any]:
        """Write ``modules_to_not_convert`` as published, with names that its patterns do not cover.

        Raises:
            DialectError: another model than gpt-oss, or activations that are quantised.
        """
        found = description.model.get("model_type")
        activation = one_activation(self.name, description)
        if found != MODEL_TYPE or activation not in ("none", "auto"):
            raise DialectError(
                f"these weights cannot be described in the dialect {self.name}",
                seen=f"model_type {found!r}, activation {activation!r}",
                rule=f"readers take it for model_type {MODEL_TYPE!r} alone, and it has no word for activations",
                fix="write the dialect mxfp4-core",
            )
        covered = re.compile(r"model\.layers\.\d+\.(self_attn\..+|mlp\.router)|lm_head")
        more = [name for name in description.kept if not covered.fullmatch(name)]
        return {"quant_method": "mxfp4", "modules_to_not_convert": [*_HIGH, *more]}

    def _entry(self, source: Source, base: str, ends: tuple[str, str], original: bool) -> Entry:
        blocks, scales = (f"{base}{end}" for end in ends)
        tensors: Mapping[str, tuple[str, tuple[int, ...]]] = source.tensors
        if scales not in tensors:
            layout = ", original layout" if original else ""
            seen = f"gpt-oss MXFP4{layout}: blocks {blocks!r} without {scales!r}"
            contradiction(self.name, seen, "each tensor of blocks has its scales")
        (codes_dtype, shape), (scales_dtype, grid) = tensors[blocks], tensors[scales]
        if (codes_dtype, scales_dtype) != ("U8", "U8") or len(shape) != 4 or shape != (*grid, BLOCK // 2):
            seen = f"{blocks!r} {codes_dtype} {list(shape)} with {scales!r} {scales_dtype} {list(grid)}"
            contradiction(self.name, seen, "blocks are U8 [E, N, K/32, 16] and scales U8 [E, N, K/32]")
        experts, n, count, _ = shape
        weight = name_of(base) if original else base
        parts = {
            "codes": source.tensor(blocks).reshape(experts, n, count * (BLOCK // 2)),
            "scales": source.tensor(scales),
        }
        fused = weight.endswith("gate_up_proj")
        return Entry(weight, (experts, n, count * BLOCK), parts, transposed=True, interleaved=fused)


class GptOssOriginalDialect(GptOssDialect):
    """Read and write the files that OpenAI publishes: other names, q, k and v as one tensor, no description."""

    name = NAME
    readers = "OpenAI's own gpt_oss.torch and gpt_oss.triton"

    def recognise(self, source: Source) -> str | None:
        """Recognise by the names of tensors."""
        if not source.config.get("quantization_config") and any(map(_ORIGINAL.fullmatch, source.tensors)):
            return "gpt-oss MXFP4 (original layout): tensor names block.N.mlp.mlp1_weight.blocks"
        return None

    def read(self, source: Source) -> Contents:
        """Find the pairs of blocks and scales; OpenAI's names become those of transformers."""
        entries, rest = self._read(source, original=True)
        return Contents(entries, others_of(rest, source.config), model=config_of(source.config))

    def check(self, entry: Entry) -> None:
        """Take what the names of OpenAI's files are for."""
        super().check(entry)
        original_of(entry.weight)

    def write(self, entry: Entry) -> dict[str, Recipe]:
        """Store blocks and scales under OpenAI's names."""
        blocks, scales = super().write(entry).values()
        base = original_of(entry.weight)
        return {f"{base}.blocks": blocks, f"{base}.scales": scales}

    def write_others(self, tensors: Mapping[str, Recipe], model: Mapping[str, Any]) -> dict[str, Recipe]:
        """Store everything else under OpenAI's names."""
        return originals_of(tensors)

    def documents(self, description: Description) -> dict[str, dict[str, Any]]:
        """Write OpenAI's ``config.json``, which says nothing of quantisation."""
        self.describe(description)  # refuses what cannot be said
        return {"config.json": original_config_of(description.model)}

    def how_to_load(self, path: str, model: str = AUTO_CLASS) -> str:
        """Load with OpenAI's own code."""
        return f"python -m gpt_oss.generate {path}"


GPT_OSS = GptOssDialect()
GPT_OSS_ORIGINAL = GptOssOriginalDialect()

__all__ = ["GPT_OSS", "GPT_OSS_ORIGINAL", "MODEL_TYPE", "GptOssDialect", "GptOssOriginalDialect"]
