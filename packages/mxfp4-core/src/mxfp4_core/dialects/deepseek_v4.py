"""The DeepSeek-V4 dialect: experts in MXFP4 inside a ``quant_method: fp8`` checkpoint, FP8 blocks beside them.

Tensors: ``X.experts.E.w1.weight`` I8 ``[N, K/2]`` with ``X.experts.E.w1.scale`` F8_E8M0 ``[N, K/32]``. transformers
saves the same with ``X.weight_scale_inv``, and merged experts as ``X.experts.gate_up_proj`` I8 ``[E, 2I, H/2]`` with
``.._scale_inv``. Other layers are F8_E4M3 with one scale for each block of ``weight_block_size``. Dtypes tell which is
which. ``expert_dtype: fp4`` stands at the top of config.json, in V4.1 inside ``quantization_config``.

Sources: DeepSeek-V4 ``config.json``; transformers 5.23, ``integrations/finegrained_fp8.py``; vLLM 0.33.
"""

from __future__ import annotations

from typing import Any

from mxfp4_core.arithmetic.format import BLOCK
from mxfp4_core.arithmetic.formats.mxfp4 import MXFP4
from mxfp4_core.dialects.base import AUTO_CLASS, Contents, Description, Dialect, Entry, one_activation
from mxfp4_core.dialects.beside import Beside, Narrow
from mxfp4_core.dialects.pairs import contradiction, match_parts, nothing
from mxfp4_core.dialects.recipes import Recipe
from mxfp4_core.dialects.source import Source
from mxfp4_core.errors import DialectError

_CODES = ("I8", "U8", "F4")
_FP8 = "F8_E4M3"
_SCALES = ("F8_E8M0", "U8", "F32")
_INSIDE = ("deepseek_v41",)
"""Model types whose ``expert_dtype`` stands inside ``quantization_config``."""


class DeepSeekV4Dialect(Dialect):
    """Read and write ``quant_method: fp8`` with ``expert_dtype: fp4``."""

    name = "deepseek-v4"
    linear_only = False
    readers = "transformers, vLLM, SGLang: DeepSeek-V4 models"

    def recognise(self, source: Source) -> str | None:
        """Recognise by ``quant_method`` fp8 with ``expert_dtype`` fp4, or with packed codes beside E8M0 scales."""
        if source.described.get("quant_method") != "fp8":
            return None
        for where, described in (("config.json", source.config), ("quantization_config", source.described)):
            if described.get("expert_dtype") == "fp4":
                return f"quant_method is fp8, expert_dtype is fp4 in {where}"
        for name, (dtype, _) in source.tensors.items():
            scales = _scales_of(source, name) if dtype in _CODES else None
            if scales and source.tensors[scales][0] == "F8_E8M0":
                return f"quant_method is fp8, {name!r} holds packed codes with scales {scales!r}"
        return None

    def read(self, source: Source) -> Contents:
        """Find MXFP4 weights and FP8 blocks by dtype, each with its scales."""
        entries: dict[str, Entry] = {}
        beside: dict[str, Narrow] = {}
        used: set[str] = set()
        for name, (dtype, shape) in source.tensors.items():
            scales = _scales_of(source, name)
            if dtype not in (*_CODES, _FP8) or (scales is None and len(shape) < 2):
                continue
            if scales is None:
                # Byte tensors that are no weights, such as masks, have other names.
                if name.endswith((".weight", "_proj")):
                    seen = f"codes {name!r} of dtype {dtype} without scales"
                    contradiction(self.name, seen, "each weight in I8 or FP8 has its scales")
                continue
            if dtype == _FP8:
                beside[name] = Beside(name, source.tensor(name), source.tensor(scales), _block(source))
            else:
                names = {"codes": name, "scales": scales}
                logical, parts = match_parts(self.name, source, MXFP4, names, None)
                entries[name] = Entry(name, logical, parts)
            used |= {name, scales}
        for name, (dtype, _) in source.tensors.items():
            orphan = name.endswith("_scale_inv") or (name.endswith(".scale") and dtype in _SCALES[:2])
            if orphan and name not in used:
                contradiction(
                    self.name,
                    f"scales {name!r} without codes",
                    "each tensor of scales belongs to one of codes",
                )
        if not entries:
            nothing(self.name, source, "no weight in I8 with scales")
        model = {key: value for key, value in source.config.items() if key != "expert_dtype"}
        return Contents(entries, source.rest(used), (), "", "fp8", beside=beside, model=model)

    def check(self, entry: Entry) -> None:
        """Take weights in whole blocks, N before K, gate above up where they are fused."""
        reasons = {
            f"format {entry.format}": entry.format != "mxfp4",
            f"K = {entry.shape[-1]}, padded": entry.shape[-1] % BLOCK != 0,
            "a weight with K before N": entry.transposed,
            "rows of gate and up in turn": entry.interleaved,
        }
        for seen, found in reasons.items():
            if found:
                raise DialectError(
                    f"tensor {entry.weight!r} cannot be written in the dialect {self.name}",
                    seen=f"{seen}, shape {list(entry.shape)}",
                    rule="that dialect stores MXFP4 weights [N, K] or [E, N, K] in whole blocks",
                    fix="write the dialect mxfp4-core, or add the name to ignore",
                )

    def write(self, entry: Entry) -> dict[str, Recipe]:
        """Store codes as I8 and scales as F8_E8M0."""
        codes, scales = entry.parts["codes"].reinterpret("I8"), entry.parts["scales"].reinterpret("F8_E8M0")
        return {entry.weight: codes, _stored_scales(entry.weight): scales}

    def write_beside(self, beside: Narrow) -> dict[str, Recipe]:
        """Store values and scales of FP8 as they are.

        Raises:
            DialectError: weights of another kind, or scales in a dtype that its readers do not take.
        """
        if not isinstance(beside, Beside) or beside.scales.dtype not in ("F8_E8M0", "F32"):
            return super().write_beside(beside)
        return {beside.weight: beside.values, _stored_scales(beside.weight): beside.scales}

    def how_to_load(self, path: str, model: str = AUTO_CLASS) -> str:
        """Load in an engine that runs DeepSeek-V4."""
        return f"vllm serve {path}"

    def describe(self, description: Description) -> dict[str, Any]:
        """Write the FP8 description that readers know DeepSeek-V4 by.

        Raises:
            DialectError: another model, or activations other than FP8 or none.
        """
        found, activation = description.model.get("model_type"), one_activation(self.name, description)
        if not str(found).startswith("deepseek_v4") or activation not in ("none", "fp8", "auto"):
            raise DialectError(
                f"these weights cannot be described in the dialect {self.name}",
                seen=f"model_type {found!r}, activation {activation!r}",
                rule="readers take it for DeepSeek-V4 alone, whose activations are FP8",
                fix="write the dialect mxfp4-core",
            )
        blocks = {each.block for each in description.beside if isinstance(each, Beside)} or {(128, 128)}
        inside = {"expert_dtype": "fp4"} if found in _INSIDE else {}
        return {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "scale_fmt": "ue8m0",
            "weight_block_size": list(max(blocks)),
            **inside,
        }

    def documents(self, description: Description) -> dict[str, dict[str, Any]]:
        """Write ``expert_dtype`` where this model type has it."""
        made = super().documents(description)["config.json"]
        described = made.pop("quantization_config")
        outside = {} if "expert_dtype" in described else {"expert_dtype": "fp4"}
        return {"config.json": {**made, **outside, "quantization_config": described}}


def _scales_of(source: Source, name: str) -> str | None:
    module = name.removesuffix(".weight")
    ends = (".scale", ".weight_scale_inv") if module != name else ("_scale_inv",)
    return next((f"{module}{end}" for end in ends if f"{module}{end}" in source.tensors), None)


def _stored_scales(weight: str) -> str:
    module = weight.removesuffix(".weight")
    return f"{module}.scale" if module != weight else f"{weight}_scale_inv"


def _block(source: Source) -> tuple[int, int]:
    found = source.described.get("weight_block_size")
    if not isinstance(found, list) or len(found) != 2 or not all(type(s) is int and s > 0 for s in found):
        seen = f"weight_block_size = {str(found)[:80]}"
        contradiction("deepseek-v4", seen, "it is the rows and columns that share a scale of an FP8 weight")
    return found[0], found[1]


DEEPSEEK_V4 = DeepSeekV4Dialect()

__all__ = ["DEEPSEEK_V4", "DeepSeekV4Dialect"]
