"""Folders of our own dialect through transformers' own ``from_pretrained``: a session fills them or says why not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import DEVICE, load, logits, reload, settings, tensors
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.quantizers import auto

import mxfp4_transformers
from mxfp4_core import quantize
from mxfp4_core.errors import CheckpointError, ConfigError, DialectError, LoadError
from mxfp4_core.loader import LoadSession, QuantTarget

Edit = Callable[[Path, dict[str, torch.Tensor | None]], Path]
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def saved(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("native")
    for name in ("llama", "qwen3", "qwen3_moe"):
        load(checkpoints[name], settings()).save_pretrained(root / name)
    return {path.name: path for path in root.iterdir()}


def same_state(one: nn.Module, other: nn.Module) -> None:
    left, right = one.state_dict(), other.state_dict()
    assert list(left) == list(right)
    assert all(torch.equal(left[name].cpu(), right[name].cpu()) for name in left)


def test_without_our_import_transformers_says_so_in_its_own_words(
    saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # docs/transformers.md explains it.
    for known in (auto.AUTO_QUANTIZER_MAPPING, auto.AUTO_QUANTIZATION_CONFIG_MAPPING):
        monkeypatch.delitem(known, mxfp4_transformers.METHOD)
    said: list[str] = []
    monkeypatch.setattr(auto.logger, "warning", said.append)
    with pytest.raises(RuntimeError, match="mismatched"):
        AutoModelForCausalLM.from_pretrained(saved["llama"])
    assert "Unknown quantization type, got mxfp4-core" in said[0]


@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen3_moe"])
def test_it_fills_a_session_as_our_own_function_does(
    saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    put: list[str] = []
    real, checked = QuantTarget.put, LoadSession.check
    checks: list[LoadSession] = []

    def noted(self: QuantTarget, *args: Any, **keywords: Any) -> None:
        put.append(self.name)
        real(self, *args, **keywords)

    def counted(self: LoadSession) -> None:
        checks.append(self)
        checked(self)

    monkeypatch.setattr(QuantTarget, "put", noted)
    monkeypatch.setattr(LoadSession, "check", counted)
    model = reload(saved[name])
    assert set(put) == set(model.hf_quantizer.plan.weights)
    assert len(checks) == 1
    same_state(model, mxfp4_transformers.from_pretrained(saved[name], settings()))


@pytest.mark.filterwarnings("ignore:You passed")
def test_nothing_is_missing_and_nothing_left_over(saved: dict[str, Path]) -> None:
    for path in saved.values():
        model, info = load(path, settings(backend="reference"), output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert model.is_quantized


@pytest.mark.filterwarnings("ignore:You passed")
@pytest.mark.parametrize("device_map", ["auto", "sequential", {"": DEVICE}], ids=str)
def test_device_maps(saved: dict[str, Path], device_map: Any) -> None:
    model = load(saved["qwen3_moe"], settings(backend="reference"), device_map=device_map)
    assert {tensor.device.type for tensor in model.state_dict().values()} == {torch.device(DEVICE).type}
    same_state(model, reload(saved["qwen3_moe"]))


def test_a_weight_that_has_no_place(saved: dict[str, Path], edited: Edit) -> None:
    packed = quantize(torch.randn(96, 64, dtype=torch.bfloat16))
    name = UP.replace("layers.1", "layers.7")
    with pytest.raises(LoadError, match=r"no place(.|\n)*layers\.7\.mlp\.up_proj"):
        reload(edited(saved["llama"], {name: packed.codes, f"{name}_scale": packed.scales}))


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16])
def test_scales_that_are_none(saved: dict[str, Path], edited: Edit, dtype: torch.dtype) -> None:
    scale = tensors(saved["llama"])[f"{UP}_scale"]
    with pytest.raises(DialectError, match="up_proj"):
        reload(edited(saved["llama"], {f"{UP}_scale": scale.to(dtype)}))


def test_another_model(saved: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(saved["llama"], tmp_path / "other")
    config = json.loads((saved["llama"] / "config.json").read_text())
    for change, match in (
        ({"num_hidden_layers": 1}, "no place"),
        ({"intermediate_size": 128}, "cannot be filled"),
    ):
        (tmp_path / "other/config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(LoadError, match=match):
            reload(tmp_path / "other")


def test_a_shard_that_is_missing(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    model = load(checkpoints["qwen3_moe"], settings())
    model.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    same_state(model, reload(tmp_path / "shards"))
    index = tmp_path / "shards/model.safetensors.index.json"
    found = json.loads(index.read_text())
    gone = sorted(set(found["weight_map"].values()))[1]
    found["weight_map"] = {name: file for name, file in found["weight_map"].items() if file != gone}
    index.write_text(json.dumps(found))
    with pytest.raises((LoadError, ConfigError)):
        reload(tmp_path / "shards")


def test_a_state_dict_is_no_folder(saved: dict[str, Path]) -> None:
    from transformers import AutoConfig, LlamaForCausalLM

    config = AutoConfig.from_pretrained(saved["llama"])
    with pytest.raises(CheckpointError, match="no safetensors files"):
        LlamaForCausalLM.from_pretrained(None, config=config, state_dict=tensors(saved["llama"]))


def test_what_no_backend_takes_is_widened_on_request(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mxfp4_core.backend import No
    from mxfp4_core.backend.reference.backend import ReferenceBackend

    model = load(checkpoints["qwen3_moe"], settings())
    model.save_pretrained(tmp_path / "saved")
    before = logits(model)
    supports = ReferenceBackend.supports

    def picky(self: ReferenceBackend, problem: Any) -> Any:
        return No("no experts here", "use linears") if problem.op == "moe" else supports(self, problem)

    monkeypatch.setattr(ReferenceBackend, "supports", picky)
    with pytest.warns(UserWarning, match="already has"):
        kept = load(tmp_path / "saved", settings(backend="reference", refused="keep"))
    assert "Qwen3MoeExperts" in repr(kept)
    assert (logits(kept) - before).norm() < 0.05 * before.norm()


@pytest.mark.parametrize("route", [reload, mxfp4_transformers.from_pretrained])
@pytest.mark.parametrize(
    ("patterns", "weight", "reason"),
    [
        ({"ignore": ["re:.*"]}, "model.layers.0.", "ignored by 're:.*'"),
        (
            {"overrides": [{"pattern": "layers.1.mlp", "keep": True}]},
            "model.layers.1.mlp.",
            "kept by override",
        ),
        ({"targets": ["layers.0", "layers.1.self_attn"]}, "model.layers.1.mlp.", "no target matches it"),
    ],
)
def test_patterns_that_keep_what_is_quantised(
    saved: dict[str, Path],
    tmp_path: Path,
    route: Callable[[Path], Any],
    patterns: dict[str, Any],
    weight: str,
    reason: str,
) -> None:
    shutil.copytree(saved["llama"], tmp_path / "said")
    config = json.loads((saved["llama"] / "config.json").read_text())
    config["quantization_config"] |= patterns
    (tmp_path / "said/config.json").write_text(json.dumps(config))
    with pytest.raises((DialectError, ConfigError)) as caught:
        route(tmp_path / "said")
    assert weight in caught.value.seen
    assert reason in str(caught.value)
