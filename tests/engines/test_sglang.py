"""SGLang's released engine on a CPU, with our plug-in: what it says, online and from folders, and what it refuses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import kit
import made
import pytest

kit.need("sglang")

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the engine and of its own choice of libraries
SCALES = "model.layers.1.mlp.down_proj.weight_scale"
OURS = {"quantization": "mxfp4-core"}
MODELS: dict[str, Any] = {
    "adapter": lambda folder, models: made.adapter(models["dense"], folder),
    "dense-stored": lambda folder, models: made.stored(models["dense"], folder, "mxfp4-core"),
    "dense-damaged": lambda folder, models: made.without(models["dense-stored"], folder, SCALES),
    "dense-other": lambda folder, models: made.shifted(models["dense"], folder),
    "routed": lambda folder, models: made.untied(models["experts"], folder),
    "routed-stored": lambda folder, models: made.stored(models["routed"], folder, "compressed-tensors"),
}


def on_two() -> dict[str, Any]:
    return {
        "arguments": {**OURS, "tp_size": 2},
        "variables": {"SGLANG_CPU_OMP_THREADS_BIND": "0|1"},
    }


WIDENED = {"MXFP4_CONFIG": '{"backend": "cuda-marlin", "refused": "keep"}'}
"""Of a folder no layer is taken on a CPU, and the values of its codes are what SGLang computes with."""

UNPINNED = {"PYTHONPATH": os.pathsep.join([str(kit.HERE / "unpinned"), os.environ.get("PYTHONPATH", "")])}

SCENARIOS: dict[str, dict[str, Any]] = {
    "dense": {"model": "dense", "arguments": OURS, "again": [("dense-other", "update_weights_from_disk")]},
    "dense-stored": {"model": "dense-stored"},
    "routed": {"model": "routed", "arguments": OURS},
    "routed-stored": {"model": "routed-stored", "arguments": OURS},
    "dense-2": {"model": "dense", **on_two()},
    "routed-2": {"model": "routed-stored", **on_two()},
    "dense-widened": {"model": "dense-stored", "variables": WIDENED},
    "routed-widened": {"model": "routed-stored", "arguments": OURS, "variables": WIDENED},
    "adapters": {"model": "dense", "arguments": OURS, "adapter": "adapter", "variables": UNPINNED},
    "left-out": {"model": "dense", "arguments": OURS, "variables": {"SGLANG_PLUGINS": "another"}},
    "damaged": {"model": "dense-damaged"},
    "pattern": {
        "model": "dense",
        "arguments": OURS,
        "variables": {"MXFP4_CONFIG": '{"ignore": ["o_prj"]}'},
    },
    "backend": {
        "model": "dense",
        "arguments": OURS,
        "variables": {"MXFP4_CONFIG": '{"backend": "cuda-marlin"}'},
    },
}


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kit.Engine]:
    models = kit.Models(tmp_path_factory.mktemp("models"), MODELS)
    process = kit.Engine("sglang_run.py", models, SCENARIOS, tmp_path_factory.mktemp("sglang"))
    yield process
    process.close()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("dense", marks=pytest.mark.smoke),
        "dense-stored",
        "routed",
        pytest.param("routed-stored", marks=pytest.mark.smoke),
        "dense-2",
        "routed-2",
    ],
)
def test_the_engine_says_what_transformers_says(engine: kit.Engine, name: str) -> None:
    kit.check_said(engine.fine(name)["outputs"], engine.models[name.partition("-")[0]])


@pytest.mark.parametrize("name", ["dense-widened", "routed-widened"])
def test_of_a_folder_what_no_backend_takes_computes_with_its_values(engine: kit.Engine, name: str) -> None:
    result = engine.fine(name)
    kit.check_said(result["outputs"], engine.models[name.partition("-")[0]])
    assert (
        "model.layers.0.self_attn.qkv_proj stays in high precision, refused: no backend for" in result["log"]
    )


def test_without_a_backend_the_error_has_what_each_one_said(engine: kit.Engine) -> None:
    said = engine["backend"]["log"]
    for line in (
        "cuda-marlin  rejected      the device is cpu",
        "reference    accepted      widens the weights",
    ):
        assert line in said
    assert "fix:  use the backend of this device" in said


def test_the_summary_is_in_the_log(engine: kit.Engine) -> None:
    assert "mxfp4: quantised 24 layers (24 linear)" in engine.fine("dense")["log"]
    assert "'lm_head' is an output head, kept by default" in engine.fine("routed")["log"]


@pytest.mark.smoke
def test_weights_are_updated_from_disk(engine: kit.Engine) -> None:
    result = engine.fine("dense")
    assert result["updated"] == [True]
    kit.check_said(result["again"][0], engine.models["dense-other"])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("damaged", f"without '{SCALES}'"),
        ("pattern", "PatternError: 1 of 1 name patterns match nothing"),
        ("backend", "BackendError: model.layers.0.self_attn.qkv_proj: "),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_loaded(engine: kit.Engine, name: str, says: str) -> None:
    result = engine[name]
    assert "error" in result
    assert says in result["log"]


def test_without_the_plug_in_sglang_says_so_in_its_own_words(engine: kit.Engine) -> None:
    # docs/sglang.md explains it.
    assert "Unknown quantization method: mxfp4-core" in engine["left-out"]["error"]


def test_an_adapter_is_added_to_what_the_codes_stand_for(engine: kit.Engine) -> None:
    result, source = engine.fine("adapters"), kit.MODELS["dense"]
    kit.check_said(result["outputs"], source)
    kit.check_said(result["adapted"], source, adapter=engine.models["adapter"])
    assert result["adapted"] != result["outputs"]
