"""The plug-in mechanism of the released package: what is registered, and what the wrapped functions do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from sgl_layers import weights
from sglang.srt.layers.quantization import QUANTIZATION_METHODS, get_quantization_config
from sglang.srt.model_loader.loader import DefaultModelLoader
from sglang.srt.plugins.hook_registry import HookRegistry
from sglang.srt.server_args import QUANTIZATION_CHOICES

from mxfp4_core import quantize
from mxfp4_core.errors import ConfigError, DialectError
from mxfp4_sglang import compat, hooks, plugin
from mxfp4_sglang.config import Mxfp4QuantizationConfig, Mxfp8QuantizationConfig

NAME = "model.layers.0.self_attn.q_proj.weight"


def test_sglang_loaded_the_plug_in_by_its_entry_point() -> None:
    assert get_quantization_config("mxfp4-core") is Mxfp4QuantizationConfig
    assert get_quantization_config("mxfp8-core") is Mxfp8QuantizationConfig
    assert {compat.VERIFY, compat.CONFIGURED, compat.WEIGHTS} <= HookRegistry._patched


def test_once_more_changes_nothing() -> None:
    before = list(QUANTIZATION_CHOICES)
    plugin.register()
    assert before == QUANTIZATION_CHOICES
    assert before.count("mxfp4-core") == 1


def test_a_name_that_is_taken_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = type("Stranger", (), {"__module__": "elsewhere.plugin"})
    monkeypatch.setitem(QUANTIZATION_METHODS, "mxfp4-core", stranger)
    with pytest.raises(ConfigError, match=r"elsewhere.plugin.Stranger has that name"):
        plugin.register()
    assert QUANTIZATION_METHODS["mxfp4-core"] is stranger


def test_rocm_lets_our_methods_pass() -> None:
    def original(config: Any) -> None:
        raise ValueError(f"{config.quantization} quantization is currently not supported in ROCm.")

    assert hooks.verify(original, SimpleNamespace(quantization="mxfp4-core")) is None
    with pytest.raises(ValueError, match="ROCm"):
        hooks.verify(original, SimpleNamespace(quantization="gguf"))


def test_other_errors_of_the_check_stay() -> None:
    def original(config: Any) -> None:
        raise ValueError("Quantization method specified in the model config does not match")

    with pytest.raises(ValueError, match="does not match"):
        hooks.verify(original, SimpleNamespace(quantization="mxfp4-core"))


def folder(path: Path, described: dict[str, Any] | None, tensors: dict[str, torch.Tensor]) -> Any:
    import json

    path.mkdir()
    config = {"model_type": "qwen3", **({"quantization_config": described} if described else {})}
    (path / "config.json").write_text(json.dumps(config))
    save_file(tensors, path / "model.safetensors")
    model = SimpleNamespace(quantization="mxfp4-core")
    return SimpleNamespace(model_config=model, model_or_path=str(path), prefix="", revision=None)


def test_a_folder_of_another_dialect_comes_under_our_names(tmp_path: Path) -> None:
    made = quantize(weights(64, 64))
    described = {
        "quant_method": "compressed-tensors",
        "format": "mxfp4-pack-quantized",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "symmetric": True,
                    "dynamic": False, "scale_dtype": "torch.uint8",
                },
            }
        },
        "ignore": ["lm_head"],
    }  # fmt: skip
    stem = NAME.removesuffix("weight")
    tensors = {
        f"{stem}weight_packed": made.codes,
        f"{stem}weight_scale": made.scales,
        "model.norm.weight": weights(64),
    }
    source = folder(tmp_path / "a", described, tensors)
    found = dict(hooks.weights(lambda *_: iter(()), None, source))
    assert found.keys() == {NAME, f"{NAME}_scale", "model.norm.weight"}
    assert torch.equal(found[NAME], made.codes)


def test_codes_without_scales_are_refused_before_a_tensor_is_loaded(tmp_path: Path) -> None:
    source = folder(tmp_path / "a", {"quant_method": "mxfp4-core"}, {NAME: quantize(weights(64, 64)).codes})
    with pytest.raises(DialectError):
        hooks.weights(lambda *_: iter(()), None, source)


def test_a_folder_in_high_precision_is_read_by_sglang(tmp_path: Path) -> None:
    source = folder(tmp_path / "a", None, {NAME: weights(64, 64)})
    assert hooks.weights(lambda *_: "its own", None, source) == "its own"
    source.model_config.quantization = "fp8"
    assert hooks.weights(lambda *_: "its own", None, source) == "its own"


def test_the_hooked_functions_are_the_ones_that_sglang_calls() -> None:
    assert DefaultModelLoader._get_weights_iterator.__wrapped__ is not None  # type: ignore[attr-defined]


def test_another_checkpoint_is_taken_where_the_user_says_so() -> None:
    quark = {"quant_method": "quark"}
    assert Mxfp4QuantizationConfig.override_quantization_method(quark, "mxfp4-core") == "mxfp4-core"
    assert Mxfp4QuantizationConfig.override_quantization_method(quark, None) is None
    assert Mxfp4QuantizationConfig.override_quantization_method(quark, "quark") is None
