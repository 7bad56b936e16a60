"""vLLM's released CPU engine with our plug-in: what it holds, what it says, what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kit
import pytest

kit.need("vllm")

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the engine and of its own choice of libraries
DENSE, EXPERTS = kit.MODELS["dense"], kit.MODELS["experts"]
OURS = {"quantization": "mxfp4-core"}
TP = {"tensor_parallel_size": 2}
FORCED = '{"overrides": [{"pattern": "embed_tokens", "keep": false}]}'


def settings(text: str, **more: Any) -> dict[str, Any]:
    return {**OURS, "hf_overrides": {"quantization_config_dict_json": text}, **more}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="session")
def saved(folder: Path) -> dict[str, Path]:
    made = {
        f"{name}-{dialect}": kit.save_stored(source, folder / f"{name}-{dialect}", dialect)
        for name, source in kit.MODELS.items()
        for dialect in ("mxfp4-core", "compressed-tensors")
    }
    return made | {
        f"{name}-b": kit.save_shifted(kit.MODELS[name], folder / f"{name}-b") for name in kit.MODELS
    }


@pytest.fixture(scope="session")
def alone(folder: Path, saved: dict[str, Path]) -> dict[str, Any]:
    """One rank, one engine after the other."""
    scenarios: list[dict[str, Any]] = [
        {"name": "dense", "model": DENSE, "arguments": OURS, "again": saved["dense-b"]},
        {"name": "dense-stored", "model": saved["dense-mxfp4-core"]},
        {"name": "dense-theirs", "model": saved["dense-compressed-tensors"]},
        {
            "name": "experts",
            "model": EXPERTS,
            "arguments": OURS,
            "again": saved["experts-b"],
            "how": "reload_weights",
        },
        {"name": "experts-stored", "model": saved["experts-mxfp4-core"]},
        {"name": "experts-taken", "model": saved["experts-compressed-tensors"], "arguments": OURS},
        {"name": "made-up", "model": EXPERTS, "arguments": {**OURS, "load_format": "dummy"}},
        {"name": "pattern", "model": DENSE, "arguments": settings('{"ignore": ["o_prj"]}')},
        {"name": "backend", "model": DENSE, "arguments": settings('{"backend": "cuda-marlin"}')},
        {
            "name": "embedding",
            "model": DENSE,
            "arguments": settings(FORCED),
        },
    ]
    for each in scenarios:
        each["parts"] = str(folder / f"{each['name']}.{{rank}}")
        each.update({key: str(each[key]) for key in ("model", "again") if key in each})
    return kit.run("vllm_run.py", scenarios, folder)


@pytest.fixture(scope="session")
def spread(folder: Path, saved: dict[str, Path]) -> dict[str, Any]:
    """Two ranks; each worker imports vLLM anew, so these take longest."""
    scenarios: list[dict[str, Any]] = [
        {"name": "dense-2", "model": DENSE, "arguments": {**OURS, **TP}},
        {"name": "experts-2", "model": saved["experts-mxfp4-core"], "arguments": TP},
        {"name": "experts-ep", "model": EXPERTS, "arguments": {**OURS, **TP, "enable_expert_parallel": True}},
    ]
    for each in scenarios:
        each.update(parts=str(folder / f"{each['name']}.{{rank}}"), model=str(each["model"]))
    (folder / "spread").mkdir()
    return kit.run("vllm_run.py", scenarios, folder / "spread", VLLM_CPU_OMP_THREADS_BIND="0|1")


def fine(results: dict[str, Any], name: str) -> dict[str, Any]:
    result: dict[str, Any] = results[name]
    assert "error" not in result, result["error"]
    return result


@pytest.mark.parametrize("name", ["dense", "dense-stored", "experts", "experts-stored", "experts-taken"])
def test_the_engine_holds_the_bytes_of_the_core_and_says_what_transformers_says(
    alone: dict[str, Any], folder: Path, name: str
) -> None:
    source = DENSE if name.startswith("dense") else EXPERTS
    kit.check_said(fine(alone, name)["outputs"], source)
    kit.check_parts(folder / f"{name}.0", kit.parts_of(source))


def test_a_format_of_vllms_own_runs_where_it_alone_refuses(alone: dict[str, Any]) -> None:
    kit.check_said(fine(alone, "dense-theirs")["outputs"], DENSE)
    assert "Using Mxfp4CoreLinearKernel for MXFP4 GEMM" in alone["log"]


@pytest.mark.parametrize("name", ["dense", "experts"])
def test_weights_are_loaded_again_into_the_same_memory(
    alone: dict[str, Any], saved: dict[str, Path], name: str
) -> None:
    result = fine(alone, name)
    kit.check_said(result["again"], saved[f"{name}-b"])
    assert not result["moved"]


def test_weights_may_be_made_up(alone: dict[str, Any]) -> None:
    assert len(fine(alone, "made-up")["outputs"]) == len(kit.PROMPTS)


def test_the_summary_is_in_the_log(alone: dict[str, Any]) -> None:
    assert "mxfp4: quantised 24 layers (24 linear)" in alone["log"]
    assert "'gate' is a router or gate, kept by default" in alone["log"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("pattern", "PatternError: 1 of 1 name patterns match nothing"),
        ("backend", "BackendError: model.layers.0.self_attn.qkv_proj: "),
        ("embedding", "ConfigError: model.embed_tokens cannot be MXFP4 in vLLM"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_loaded(
    alone: dict[str, Any], name: str, says: str
) -> None:
    assert says in alone[name]["error"]


@pytest.mark.parametrize(("name", "whole"), [("dense-2", False), ("experts-2", False), ("experts-ep", True)])
def test_each_rank_holds_its_slice_of_the_bytes(
    spread: dict[str, Any], folder: Path, name: str, whole: bool
) -> None:
    source = DENSE if name.startswith("dense") else EXPERTS
    kit.check_said(fine(spread, name)["outputs"], source)
    for rank in range(2):
        kit.check_parts(folder / f"{name}.{rank}", kit.parts_of(source, rank, 2, whole_experts=whole))
