"""How the positions of a model turn its queries and keys, in GGUF: settings, and for Llama 3.1 a tensor of factors.

Sources: llama.cpp, ``conversion/base.py`` and ``conversion/llama.py``; transformers, ``modeling_rope_utils.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

from mxfp4_core.dialects.raw import Bytes
from mxfp4_core.dialects.recipes import Recipe
from mxfp4_core.errors import DialectError

if TYPE_CHECKING:
    import torch

FACTORS: Final = "rope_freqs.weight"
"""The tensor by which ggml divides the frequencies."""

_YARN: Final = {
    "attention_factor": "yarn_attn_factor",
    "beta_fast": "yarn_beta_fast",
    "beta_slow": "yarn_beta_slow",
}
_MOST: Final = 1 << 16
_LARGEST: Final = 3e38


@dataclass(frozen=True)
class Factors(Recipe):
    """Numbers that come from the settings of a model, and from no stored tensor: F32 ``[n]``.

    Args:
        values: the numbers.
    """

    values: tuple[float, ...]

    @property
    def source_bytes(self) -> int:
        """Nothing is read."""
        return 0

    def rows(self, source: Bytes, start: int, stop: int) -> torch.Tensor:
        """Make them."""
        import torch

        return torch.tensor(self.values[start:stop], dtype=torch.float32).view(torch.int32)


def rope_settings(name: str, model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a file.

    Args:
        name: of the architecture in GGUF.
        model: ``config.json``.

    Raises:
        DialectError: a way to scale that ggml does not have, or numbers that are missing.
    """
    rope, kind = _rope(model)
    found: dict[str, Any] = {}
    if (theta := rope.get("rope_theta", model.get("rope_theta"))) is not None:
        found[f"{name}.rope.freq_base"] = _number({"rope_theta": theta}, "rope_theta")
    width = _width(model)
    if width is not None:
        found[f"{name}.rope.dimension_count"] = width
    if kind in ("yarn", "linear"):
        found[f"{name}.rope.scaling.type"] = kind
        found[f"{name}.rope.scaling.factor"] = _number(rope, "factor")
    if kind == "yarn":
        length = _number(rope, "original_max_position_embeddings", model.get("max_position_embeddings"))
        found[f"{name}.rope.scaling.original_context_length"] = int(length)
        for key, word in _YARN.items():
            if rope.get(key) is not None:
                found[f"{name}.rope.scaling.{word}"] = _number(rope, key)
    elif kind not in ("", "default", "linear", "llama3"):
        _refuse(f"rope_type {kind!r}", "positions are scaled as linear, yarn or llama3")
    return found


def rope_factors(model: Mapping[str, Any]) -> dict[str, Recipe]:
    """Return the tensor of factors that Llama 3.1 needs, by its name; nothing for others.

    Raises:
        DialectError: numbers that are missing.
    """
    rope, kind = _rope(model)
    if kind != "llama3":
        return {}
    width = _width(model)
    if width is None or not 0 < width <= _MOST:
        _refuse(f"head_dim {width}", f"a head has 1 to {_MOST} values")
    theta = _number(rope, "rope_theta", model.get("rope_theta", 10000.0))
    factor, low, high = (_number(rope, key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    length = _number(rope, "original_max_position_embeddings")
    if min(theta, factor, low, length) <= 0 or high <= low:
        _refuse(
            f"rope_theta {theta}, {rope}", "numbers are positive, and high_freq_factor above low_freq_factor"
        )
    values = []
    for at in range(0, width, 2):
        waves = length * theta ** (-at / width) / (2 * math.pi)  # of this frequency in the first context
        smooth = min(max((waves - low) / (high - low), 0.0), 1.0)
        values.append(1 / ((1 - smooth) / factor + smooth))
    return {FACTORS: Factors("F32", (len(values),), tuple(values))}


def _rope(model: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """Return what config.json says of positions, and the way they are scaled, "" where it says none."""
    rope = model.get("rope_parameters") or model.get("rope_scaling")
    rope = rope if isinstance(rope, dict) else {}
    kind = rope.get("rope_type", rope.get("type"))
    return rope, "" if kind is None else str(kind)


def _width(model: Mapping[str, Any]) -> int | None:
    width = model.get("head_dim")
    if width is None:
        size, heads = model.get("hidden_size"), model.get("num_attention_heads")
        return size // heads if type(size) is int and type(heads) is int and heads > 0 else None
    return width if type(width) is int else None


def _number(rope: Mapping[str, Any], key: str, otherwise: object = None) -> float:
    value = rope.get(key, otherwise)
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _LARGEST:
        _refuse(f"{key} = {str(value)[:80]} in {str(dict(rope))[:200]}", "it is a number of 32 bits")
    return float(value)


def _refuse(seen: str, rule: str) -> NoReturn:
    raise DialectError(
        "the positions of this model cannot be written in the dialect gguf",
        seen=seen,
        rule=rule,
        fix="write another dialect, or convert the model in BF16 with llama.cpp and quantise it there",
    )


__all__ = ["FACTORS", "rope_factors", "rope_settings"]
