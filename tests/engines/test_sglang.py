"""SGLang's released engine on a CPU, with our plug-in: what it says, online and from folders, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kit
import pytest
from safetensors.torch import save_file

from mxfp4_core import Mxfp4Config
from mxfp4_core.jobs import quantize_checkpoint

kit.need("sglang")

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the engine and of its own choice of libraries
DENSE = kit.MODELS["dense"]
OURS = {"quantization": "mxfp4-core"}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sglang")


@pytest.fixture(scope="session")
def experts(folder: Path) -> Path:
    """Experts with an output head of their own: SGLang's Qwen3-MoE leaves a shared one out, and then says nothing."""
    source, target = kit.MODELS["experts"], folder / "experts"
    target.mkdir()
    tensors = kit.tensors(source)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    return target


def saved(source: Path, folder: Path, dialect: str) -> Path:
    target = folder / f"{source.name}-{dialect}"
    quantize_checkpoint(source, target, Mxfp4Config.from_dict({"dialect": dialect}), models="none")
    return target


@pytest.fixture(scope="session")
def other(folder: Path) -> Path:
    """Other weights for the dense model, as a step of training makes them."""
    return kit.save_shifted(DENSE, folder / "other")


@pytest.fixture(scope="session")
def results(folder: Path, other: Path, experts: Path) -> dict[str, Any]:
    """One engine after the other."""
    scenarios: list[dict[str, Any]] = [
        {"name": "dense", "model": DENSE, "arguments": OURS, "again": other},
        {"name": "dense-stored", "model": saved(DENSE, folder, "mxfp4-core")},
        {"name": "experts", "model": experts, "arguments": OURS},
        {"name": "experts-stored", "model": saved(experts, folder, "compressed-tensors"), "arguments": OURS},
    ]
    for each in scenarios:
        each.update({key: str(each[key]) for key in ("model", "again") if key in each})
    return kit.run("sglang_run.py", scenarios, folder)


def fine(results: dict[str, Any], name: str) -> dict[str, Any]:
    result: dict[str, Any] = results[name]
    assert "error" not in result, result["error"]
    return result


@pytest.mark.parametrize("name", ["dense", "dense-stored", "experts", "experts-stored"])
def test_the_engine_says_what_transformers_says(results: dict[str, Any], experts: Path, name: str) -> None:
    source = DENSE if name.startswith("dense") else experts
    kit.check_said(fine(results, name)["outputs"], source)


def test_the_summary_is_in_the_log(results: dict[str, Any]) -> None:
    assert "mxfp4: quantised 24 layers (24 linear)" in fine(results, "dense")["log"]
    assert "'lm_head' is an output head, kept by default" in fine(results, "experts")["log"]


def test_weights_are_updated_from_disk(results: dict[str, Any], other: Path) -> None:
    result = fine(results, "dense")
    assert result["updated"]
    kit.check_said(result["again"], other)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ('{"ignore": ["o_prj"]}', "PatternError: 1 of 1 name patterns match nothing"),
        ('{"backend": "cuda-marlin"}', "BackendError: model.layers.0.self_attn.qkv_proj: "),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_loaded(folder: Path, settings: str, says: str) -> None:
    place = folder / says[:12]
    place.mkdir()
    scenario = {"name": "refused", "model": str(DENSE), "arguments": OURS}
    found = kit.run("sglang_run.py", [scenario], place, MXFP4_CONFIG=settings)
    assert says in found["refused"]["error"]
