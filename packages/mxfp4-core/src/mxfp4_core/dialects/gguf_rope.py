"""How the positions of a model turn its queries and keys, in GGUF: settings, and for Llama 3.1 a tensor of factors.

Sources: llama.cpp, ``conversion/base.py`` and ``conversion/llama.py``; transformers, ``modeling_rope_utils.py``.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

from mxfp4_core.checkpoint.gguf import GgufHeader
from mxfp4_core.checkpoint.header import read_bytes
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
_ROUNDED: Final = 1e-5  # llama.cpp computes frequencies in F32


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
    for waves in _waves(theta, width, length):
        smooth = min(max((waves - low) / (high - low), 0.0), 1.0)
        values.append(1 / ((1 - smooth) / factor + smooth))
    return {FACTORS: Factors("F32", (len(values),), tuple(values))}


def factors_in(headers: Sequence[GgufHeader]) -> tuple[float, ...]:
    """Return the values of the tensor of factors in the files; none where there is no such tensor.

    Raises:
        DialectError: it is no vector of F32, one for each two values of a head.
        CheckpointError: it cannot be read.
    """
    for header in headers:
        if (info := header.tensors.get(FACTORS)) is not None:
            if info.dtype != "F32" or len(info.shape) != 1 or not 0 < info.nbytes <= 2 * _MOST:
                _unread(
                    f"{FACTORS} {info.dtype} {list(info.shape)}",
                    f"it is F32 [n], n no more than {_MOST // 2}",
                )
            raw = bytearray(info.nbytes)
            read_bytes(info, 0, memoryview(raw))
            return struct.unpack(f"<{info.nbytes // 4}f", raw)
    return ()


def explains(model: Mapping[str, Any], factors: Sequence[float]) -> bool:
    """Return whether config.json says what the tensor of factors does, up to the rounding of who wrote it.

    Raises:
        DialectError: as `rope_factors`.
    """
    made = rope_factors(model).get(FACTORS)
    wanted = made.values if isinstance(made, Factors) else (1.0,) * len(factors)
    return len(wanted) == len(factors) and all(
        abs(a - b) <= _ROUNDED * b for a, b in zip(factors, wanted, strict=True)
    )


def rope_config(
    name: str, settings: Mapping[str, Any], model: Mapping[str, Any], factors: Sequence[float]
) -> dict[str, Any]:
    """Return what config.json has to say of positions, as far as it is not in there.

    Args:
        name: of the architecture in GGUF.
        settings: of the file.
        model: what is known of config.json.
        factors: the values of the tensor of factors; none where the file has none.

    Raises:
        DialectError: positions that are scaled in a way for which no words are known here.
    """
    said = {
        key.removeprefix(f"{name}.rope."): value
        for key, value in settings.items()
        if key.startswith(f"{name}.rope.")
    }
    width = _width(model)
    if width is not None and said.get("dimension_count", width) != width:
        turned = f"{name}.rope.dimension_count = {said['dimension_count']!r}"
        _unread(f"{turned}, where a head has {width} values", "whole heads are turned")
    kind = said.get("scaling.type", "linear" if said.get("scale_linear", 1.0) != 1.0 else "none")
    factor = said.get("scaling.factor", said.get("scale_linear"))
    length = said.get("scaling.original_context_length")
    if factors:
        if kind != "none":
            _unread(f"{name}.rope.scaling.type = {kind} and {FACTORS}", "positions are scaled in one way")
        return _of_factors(
            {**model, "head_dim": 2 * len(factors) if width is None else width},
            factors,
            length if type(length) is int and 0 < length < _LARGEST else 8192,
        )
    if kind == "none":
        return {}
    if kind not in ("linear", "yarn") or type(factor) not in (int, float):
        _unread(
            f"{name}.rope.scaling.type = {kind!r}, factor = {factor!r}",
            "positions are scaled as linear or yarn, by a number",
        )
    made: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        if type(length) is not int:
            _unread(f"{name}.rope.scaling.original_context_length = {length!r}", "yarn has a first context")
        made["original_max_position_embeddings"] = length
        for key, word in _YARN.items():
            value = said.get(f"scaling.{word}")
            if type(value) in (int, float):
                made[key] = value
    return {"rope_scaling": made}


def _of_factors(model: Mapping[str, Any], factors: Sequence[float], length: int) -> dict[str, Any]:
    """Find the words of Llama 3.1 for a tensor of factors: the usual bounds, else those that the factors show.

    Only the first context divided by each bound has a meaning, so any length gives the same model.
    """
    if explains(model, factors):  # all of them are 1
        return {}
    factor, bounds, theta = max(factors), [(1.0, 4.0)], model.get("rope_theta", 10000.0)
    if 1 < factor < _LARGEST and 1 < theta < _LARGEST:
        waves = _waves(theta, 2 * len(factors), float(length))
        between = [(w, v) for w, v in zip(waves, factors, strict=True) if 1.001 < v < 0.999 * factor]
        if len(between) > 1:  # 1 / factor to 1 is a straight line in the waves
            (w1, s1), (w2, s2) = (
                (w, (1 / v - 1 / factor) / (1 - 1 / factor)) for w, v in (between[0], between[-1])
            )
            slope = (s1 - s2) / (w1 - w2)
            low = w1 - s1 / slope if slope > 0 else 0.0
            bounds += [(round(low, 4), round(low + 1 / slope, 4))] if low > 0 else []
    for low, high in bounds:
        rope = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": length,
        }
        if (
            high > low > 0
            and 0 < factor < _LARGEST
            and 0 < theta < _LARGEST
            and explains({**model, "rope_scaling": rope}, factors)
        ):
            return {"rope_scaling": rope}
    _unread(
        f"{len(factors)} numbers from {min(factors)} to {factor} in {FACTORS}",
        "they are those of Llama 3.1 for some factor and bounds",
    )


def _waves(theta: float, width: int, length: float) -> list[float]:
    """Return how often each frequency turns in the first context."""
    return [length * theta ** (-at / width) / (2 * math.pi) for at in range(0, width, 2)]


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


def _unread(seen: str, rule: str) -> NoReturn:
    raise DialectError(
        "the positions of this model cannot be read from a file of the dialect gguf",
        seen=seen,
        rule=rule,
        fix="put the config.json of the model beside the file",
    )


__all__ = ["FACTORS", "explains", "factors_in", "rope_config", "rope_factors", "rope_settings"]
