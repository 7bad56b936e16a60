"""The Quark dialect with MXFP4 weights, as amd-quark 0.13 writes it.

Tensors: ``X.weight`` U8 ``[N, K/2]`` and ``X.weight_scale`` U8 ``[N, K/32]``; a static FP8 activation adds
``X.input_scale``, which needs calibration data: it is read, and written where it was read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mxfp4_core.dialects.base import AUTO_CLASS, Contents, Description, Dialect, Entry, one_activation
from mxfp4_core.dialects.pairs import contradiction, find_entries, name_list
from mxfp4_core.dialects.recipes import Recipe
from mxfp4_core.dialects.source import Source
from mxfp4_core.errors import ConfigError, DialectError

VERSION = "0.13"
"""The release of amd-quark whose description we write."""

_EXPORT = {
    "kv_cache_group": [],
    "min_kv_scale": 0.0,
    "pack_method": "reorder",
    "weight_format": "real_quantized",
    "weight_merge_groups": None,
}

_FP8: dict[str, Any] = {
    "block_size": None,
    "ch_axis": None,
    "dtype": "fp8_e4m3",
    "enable_buffer_reuse": False,
    "group_size": None,
    "is_dynamic": False,
    "is_scale_quant": False,
    "max_input_numel": 4194304,
    "mx_element_dtype": None,
    "observer_cls": "PerTensorMinMaxObserver",
    "qscheme": "per_tensor",
    "round_method": "half_even",
    "scale_calculation_mode": None,
    "scale_format": None,
    "scale_type": None,
    "symmetric": True,
    "zero_point_type": "int32",
}


class QuarkDialect(Dialect):
    """Read and write ``quant_method: quark`` with MXFP4 weights."""

    name = "quark"
    readers = "vLLM, SGLang; transformers with the package amd-quark"
    components = True

    def recognise(self, source: Source) -> str | None:
        """Recognise by ``quant_method`` and a weight scheme fp4, group 32, e8m0."""
        weight = _spec(source.described, "weight")
        wanted = {"dtype": "fp4", "group_size": 32, "scale_format": "e8m0"}
        if source.described.get("quant_method") != self.name or weight is None:
            return None
        if all(weight.get(key) == value for key, value in wanted.items()):
            return "quant_method is quark with fp4 weights, groups of 32 and e8m0 scales"
        return None

    def write(self, entry: Entry) -> dict[str, Recipe]:
        """Keep the name for codes and append ``_scale`` for scales."""
        return {entry.weight: entry.parts["codes"], f"{entry.weight}_scale": entry.parts["scales"]}

    def write_static(self, static: Mapping[str, Recipe]) -> dict[str, Recipe]:
        """Store them as they are."""
        return dict(static)

    def how_to_load(self, path: str, model: str = AUTO_CLASS) -> str:
        """Load in an engine that reads Quark checkpoints."""
        return f"vllm serve {path}  # or transformers with the package amd-quark"

    def can_say(self, profile: str) -> bool:
        """Return whether Quark has a word for the scale rule."""
        try:
            _scale_mode(profile)
        except (ConfigError, DialectError):  # of another format, or a rule of another name
            return False
        return True

    def describe(self, description: Description) -> dict[str, Any]:
        """Write the scheme mxfp4 or mxfp4_weight_only, by the activation mode.

        Raises:
            DialectError: a scale rule or an activation mode for which Quark has no word.
        """
        activation, profile = one_activation(self.name, description), description.profile
        if activation == "fp8" and not description.static:
            raise _unsaid("activation 'fp8'", "FP8 activations have static scales from calibration")
        if activation not in ("none", "mxfp4", "fp8"):
            raise _unsaid(f"activation {activation!r}", "its schemes are mxfp4 and mxfp4_weight_only")
        mode = _scale_mode(profile)
        weight = {**_mx(mode, dynamic=False), **({} if profile else {"scale_calculation_mode": None})}
        return {
            "algo_config": None,
            "exclude": list(description.kept),
            "export": dict(_EXPORT),
            "global_quant_config": {
                "bias": None,
                "input_tensors": {"none": None, "mxfp4": _mx(mode, dynamic=True), "fp8": dict(_FP8)}[
                    activation
                ],
                "output_tensors": None,
                "target_device": None,
                "weight": weight,
            },
            "kv_cache_post_rope": False,
            "kv_cache_quant_config": {},
            "layer_quant_config": {},
            "layer_type_quant_config": {},
            "quant_method": self.name,
            "quant_mode": "eager_mode",
            "softmax_quant_spec": None,
            "version": VERSION,
        }

    def read(self, source: Source) -> Contents:
        """Find the pairs; the scheme names its scale rule. Static scales of activations are reported as such."""
        described = source.described
        for name in ("layer_quant_config", "layer_type_quant_config"):
            if described.get(name):
                contradiction(self.name, f"{name} with entries", "all quantised layers share one scheme")
        weight = _spec(described, "weight") or {}
        entries = find_entries(self.name, source, {"codes": ".weight", "scales": ".weight_scale"})
        even = (weight.get("scale_calculation_mode"), weight.get("round_method")) == ("even", "half_even")
        inputs = _spec(described, "input_tensors")
        activation = "none" if inputs is None else "mxfp4" if inputs.get("dtype") == "fp4" else "fp8"
        rest = source.rest({name for entry in entries.values() for name in entry.names})
        static = {name: rest.pop(name) for name in list(rest) if name.endswith(".input_scale")}
        exclude = name_list(self.name, described, "exclude")
        return Contents(entries, rest, exclude, "quark" if even else "", activation, static)


def _spec(quantization_config: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    scheme = quantization_config.get("global_quant_config")
    spec = scheme.get(name) if isinstance(scheme, dict) else None
    return spec if isinstance(spec, dict) else None


def _scale_mode(profile: str) -> str:
    """Return Quark's word for the rule of a profile; for an unknown one its default, which activations then have."""
    if not profile:
        return "even"
    from mxfp4_core.arithmetic.profiles import resolve

    resolved = resolve(profile=profile)
    if resolved.rule.name not in ("floor", "even", "ceil") or resolved.ties.value != "even":
        raise _unsaid(f"profile {profile!r}", "the scale rule is floor, even or ceil, and ties go to even")
    return resolved.rule.name


def _unsaid(seen: str, rule: str) -> DialectError:
    return DialectError(
        "cannot describe these weights in the quark dialect",
        seen=seen,
        rule=f"in quark, {rule}",
        fix="choose another value, or write the dialect mxfp4-core",
    )


def _mx(mode: str, *, dynamic: bool) -> dict[str, Any]:
    return {
        "block_size": None,
        "ch_axis": -1,
        "dtype": "fp4",
        "enable_buffer_reuse": False,
        "group_size": 32,
        "is_dynamic": dynamic,
        "is_scale_quant": False,
        "max_input_numel": 4194304,
        "mx_element_dtype": None,
        "observer_cls": "PerBlockMXObserver",
        "qscheme": "per_group",
        "round_method": "half_even",
        "scale_calculation_mode": mode,
        "scale_format": "e8m0",
        "scale_type": "float",
        "symmetric": None,
        "zero_point_type": "int32",
    }


QUARK = QuarkDialect()

__all__ = ["QUARK", "QuarkDialect"]
