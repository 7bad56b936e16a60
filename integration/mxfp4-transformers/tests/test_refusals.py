"""What bad input gets: our own error, out of ``from_pretrained``, before it costs anything."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import load, logits, reload, settings, tensors
from torch import nn
from transformers import AutoModelForCausalLM
from transformers import Mxfp4Config as GptOssConfig

from mxfp4_core import quantize
from mxfp4_core.backend import DeviceQuantizers
from mxfp4_core.backend.reference.backend import ReferenceBackend
from mxfp4_core.errors import (
    BackendError,
    CheckpointError,
    ConfigError,
    DialectError,
    LoadError,
    NonFiniteError,
    PatternError,
    ShapeError,
)
from mxfp4_transformers import Mxfp4Config

Edit = Callable[[Path, dict[str, torch.Tensor | None]], Path]


@pytest.fixture
def nothing_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if a weight is quantised, as the refusal has to come first."""

    def too_late(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a weight was read before the refusal")

    monkeypatch.setattr(DeviceQuantizers, "of", too_late)


@pytest.fixture(scope="module")
def saved(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Quantised checkpoints of ours."""
    root = tmp_path_factory.mktemp("saved")
    for name in ("llama", "qwen3_moe", "gpt_oss"):
        load(checkpoints[name], settings()).save_pretrained(root / name)
    return {path.name: path for path in root.iterdir()}


def spoiled(path: Path, name: str, index: tuple[int, ...], value: float) -> dict[str, torch.Tensor]:
    tensor = tensors(path)[name].clone()
    tensor[index] = value
    return {name: tensor}


@pytest.mark.parametrize(
    ("model", "name", "index", "value", "seen"),
    [
        ("llama", "model.layers.1.mlp.up_proj.weight", (5, 40), float("nan"), r"nan at index \[5, 40\]"),
        (
            "qwen3_moe",
            "model.layers.1.mlp.experts.3.up_proj.weight",
            (7, 33),
            float("inf"),
            r"inf at index \[7, 33\]",
        ),
        (
            "mixtral",
            "model.layers.0.block_sparse_moe.experts.2.w2.weight",
            (1, 2),
            float("-inf"),
            r"-inf at index \[1, 2\]",
        ),
    ],
)
def test_nan_and_inf_name_the_tensor_and_the_index(
    checkpoints: dict[str, Path],
    edited: Edit,
    model: str,
    name: str,
    index: tuple[int, ...],
    value: float,
    seen: str,
) -> None:
    path = edited(checkpoints[model], spoiled(checkpoints[model], name, index, value))
    with pytest.raises(NonFiniteError, match=seen) as caught:
        load(path, settings())
    assert caught.value.what.startswith(name)
    assert torch.isnan(logits(load(path, settings(nonfinite="nan")))).any() or model != "llama"


def test_nan_in_a_stack_names_the_expert(checkpoints: dict[str, Path], edited: Edit) -> None:
    name = "model.layers.0.mlp.experts.down_proj"
    path = edited(checkpoints["gpt_oss"], spoiled(checkpoints["gpt_oss"], name, (2, 11, 5), float("nan")))
    with pytest.raises(NonFiniteError, match=r"nan at index \[5, 11\]") as caught:  # [n, k] of one expert
        load(path, settings())
    assert caught.value.what.startswith(f"{name}[2]")


@pytest.mark.usefixtures("nothing_read")
def test_patterns_that_match_nothing(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(PatternError, match="q_proj"):
        load(checkpoints["llama"], settings(ignore=["self_attn.q_porj"]))
    with pytest.raises(PatternError, match="split"):
        load(checkpoints["qwen3_moe"], settings(ignore=["experts.2"]))


@pytest.mark.usefixtures("nothing_read")
def test_unknown_settings(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="ignore"):
        Mxfp4Config(ignored=["lm_head"])
    with pytest.raises(ConfigError, match="even"):
        load(checkpoints["llama"], {"quant_method": "mxfp4-core", "rule": "evn"})


@pytest.mark.usefixtures("nothing_read")
def test_a_backend_that_is_not_there(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(BackendError, match="rocm") as caught:
        load(checkpoints["qwen3_moe"], Mxfp4Config(backend="rocm"))
    assert re.search(r"\n +reference +accepted +", caught.value.seen), "without what each backend said"


@pytest.mark.usefixtures("nothing_read")
def test_activations_that_no_backend_quantises(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReferenceBackend, "features", ReferenceBackend.features - {"activation:fp8"})
    with pytest.raises(BackendError, match="fp8"):
        load(checkpoints["llama"], settings(activation="fp8"))


@pytest.mark.usefixtures("nothing_read")
def test_sizes_that_are_no_whole_blocks(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=80,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "odd")
    with pytest.raises(ShapeError, match="k = 80") as caught:
        load(tmp_path / "odd", settings())
    assert "model.layers.0.mlp.down_proj.weight" in caught.value.what
    assert "pad" in caught.value.fix


@pytest.mark.usefixtures("nothing_read")
def test_a_weight_that_is_not_in_the_checkpoint(checkpoints: dict[str, Path], edited: Edit) -> None:
    path = edited(checkpoints["llama"], {"model.layers.1.mlp.up_proj.weight": None})
    with pytest.raises(LoadError, match=r"layers\.1\.mlp\.up_proj"):
        load(path, settings())


def test_an_expert_that_is_not_in_the_checkpoint(checkpoints: dict[str, Path], edited: Edit) -> None:
    path = edited(checkpoints["qwen3_moe"], {"model.layers.1.mlp.experts.4.up_proj.weight": None})
    with pytest.raises(LoadError, match="5 tensors for one part of 6 experts"):
        load(path, settings())


def test_weights_of_another_size(checkpoints: dict[str, Path], edited: Edit) -> None:
    name = "model.layers.1.mlp.experts.4.up_proj.weight"
    path = edited(checkpoints["qwen3_moe"], {name: torch.zeros(32, 32, dtype=torch.bfloat16)})
    with pytest.raises(LoadError, match=r"\[32, 32\]") as caught:
        load(path, settings())
    assert caught.value.what.startswith(name)


@pytest.mark.parametrize("shape", [(5, 64, 192), (4, 64, 96), (64, 192)])
def test_stacks_of_another_size(checkpoints: dict[str, Path], edited: Edit, shape: tuple[int, ...]) -> None:
    name = "model.layers.1.mlp.experts.gate_up_proj"
    path = edited(checkpoints["gpt_oss"], {name: torch.zeros(shape, dtype=torch.bfloat16)})
    with pytest.raises(LoadError, match="does not fit") as caught:
        load(path, settings())
    assert caught.value.what.startswith(name)


def test_weights_that_are_integers(checkpoints: dict[str, Path], edited: Edit) -> None:
    # A cast to the dtype of the model would turn another quantizer's codes into numbers that look like weights.
    name = "model.layers.0.mlp.up_proj.weight"
    path = edited(checkpoints["llama"], {name: torch.zeros(96, 64, dtype=torch.int8)})
    with pytest.raises(LoadError, match="I8"):
        load(path, settings())


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("llama", "model.layers.1.mlp.up_proj.weight_scale"),
        ("llama", "model.layers.1.mlp.up_proj.weight"),
        ("qwen3_moe", "model.layers.1.mlp.experts.2.gate_proj.weight_scale"),
        ("gpt_oss", "model.layers.1.mlp.experts.down_proj_scale"),
    ],
)
def test_half_a_weight(saved: dict[str, Path], edited: Edit, model: str, name: str) -> None:
    with pytest.raises(LoadError) as caught:
        reload(edited(saved[model], {name: None}))
    assert name in caught.value.seen


def test_a_whole_expert_is_missing(saved: dict[str, Path], edited: Edit) -> None:
    gone = dict.fromkeys(name for name in tensors(saved["qwen3_moe"]) if ".experts.5." in name)
    with pytest.raises(LoadError, match=r"layers\.1\.mlp\.experts"):
        reload(edited(saved["qwen3_moe"], gone))


def test_a_whole_layer_is_missing(saved: dict[str, Path], edited: Edit) -> None:
    gone = dict.fromkeys(name for name in tensors(saved["llama"]) if "layers.1.mlp.up_proj.weight" in name)
    with pytest.raises((LoadError, ConfigError), match=r"layers\.1\.mlp\.up_proj"):
        reload(edited(saved["llama"], gone))


def test_high_precision_where_the_config_says_mxfp4(
    saved: dict[str, Path], checkpoints: dict[str, Path], edited: Edit
) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    changes = {name: tensors(checkpoints["llama"])[name], f"{name}_scale": None}
    with pytest.raises(ConfigError, match="contradicts") as caught:
        reload(edited(saved["llama"], changes))
    assert "model.layers.1.mlp.up_proj" in caught.value.seen


def test_codes_where_no_codes_can_be(saved: dict[str, Path], edited: Edit) -> None:
    packed = quantize(torch.randn(128, 64, dtype=torch.bfloat16))
    name = "model.embed_tokens.weight"
    with pytest.raises(ConfigError, match="embed_tokens"):
        reload(edited(saved["llama"], {name: packed.codes, f"{name}_scale": packed.scales}))


def test_scales_of_the_wrong_shape(saved: dict[str, Path], edited: Edit) -> None:
    name = "model.layers.1.mlp.up_proj.weight_scale"
    with pytest.raises(DialectError, match="up_proj"):
        reload(edited(saved["llama"], {name: torch.zeros(96, 3, dtype=torch.uint8)}))


def test_codes_of_another_size(saved: dict[str, Path], edited: Edit) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    changes = {
        name: torch.zeros(64, 32, dtype=torch.uint8),
        f"{name}_scale": torch.zeros(64, 2, dtype=torch.uint8),
    }
    with pytest.raises(LoadError, match="up_proj"):
        reload(edited(saved["llama"], changes))


def test_a_config_that_contradicts_the_checkpoint(saved: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="profile: 'floor/even' asked, 'even/even' in the file"):
        load(saved["llama"], settings(rule="floor"))
    with pytest.raises(ConfigError, match="ignore"):
        load(saved["llama"], settings(ignore=["layers.0"]))


def test_a_backend_can_be_chosen_for_a_quantised_checkpoint(saved: dict[str, Path]) -> None:
    with pytest.warns(UserWarning, match="already has"):
        model = load(saved["llama"], Mxfp4Config(backend="reference"))
    assert model.hf_quantizer.quantization_config.core.backend == "reference"
    with pytest.raises(BackendError, match="rocm"), pytest.warns(UserWarning):
        load(saved["llama"], Mxfp4Config(backend="rocm"))


def test_the_config_of_transformers_is_another_one(saved: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="Mxfp4CoreConfig"):
        load(saved["llama"], GptOssConfig())


def test_files_that_are_not_safetensors(saved: dict[str, Path], tmp_path: Path) -> None:
    torch.save(tensors(saved["llama"]), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((saved["llama"] / "config.json").read_text())
    with pytest.raises(CheckpointError, match="safetensors"):
        reload(tmp_path)


def test_a_linear_that_another_library_quantised(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.qwen3 import modeling_qwen3

    class Odd(nn.Linear):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.weight = nn.Parameter(self.weight.to(torch.int8), requires_grad=False)

    class Shim:
        Linear = Odd

        def __getattr__(self, name: str) -> Any:
            return getattr(nn, name)

    monkeypatch.setattr(modeling_qwen3, "nn", Shim())
    with pytest.raises(ConfigError, match=r"Odd has a weight torch\.int8") as caught:
        load(checkpoints["qwen3"], settings())
    assert "refused='keep'" in caught.value.fix


def test_a_config_of_a_later_version(saved: dict[str, Path], tmp_path: Path) -> None:
    config = json.loads((saved["llama"] / "config.json").read_text())
    config["quantization_config"]["version"] = 99
    for file in saved["llama"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="99"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
