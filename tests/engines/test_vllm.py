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
    made["cut"] = kit.save_random(folder / "cut", hidden_size=128, intermediate_size=96, num_hidden_layers=1)
    made["dense-quark"] = kit.save_stored(DENSE, folder / "dense-quark", "quark")
    made["gpt-oss"] = kit.save_gpt_oss(folder / "gpt-oss")
    made["gpt-oss-theirs"] = kit.save_stored(made["gpt-oss"], folder / "gpt-oss-theirs", "gpt-oss")
    made["large"] = kit.save_random(
        folder / "large",
        **{"hidden_size": 512, "moe_intermediate_size": 512, "num_experts": 64, "num_experts_per_tok": 2},
        **{"intermediate_size": 512, "num_hidden_layers": 3},
    )
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
        {"name": "dense-quark", "model": saved["dense-quark"]},
        {"name": "gpt-oss", "model": saved["gpt-oss-theirs"], "arguments": OURS},
        {
            "name": "experts",
            "model": EXPERTS,
            "arguments": OURS,
            "again": saved["experts-b"],
            "how": "reload_weights",
        },
        {"name": "experts-stored", "model": saved["experts-mxfp4-core"]},
        {"name": "experts-taken", "model": saved["experts-compressed-tensors"], "arguments": OURS},
        {"name": "large", "model": saved["large"], "arguments": OURS, "watch": True},
        {"name": "made-up", "model": EXPERTS, "arguments": {**OURS, "load_format": "dummy"}},
        {"name": "adapters", "model": DENSE, "arguments": {**OURS, "enable_lora": True}},
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
        {"name": "cut", "model": saved["cut"], "arguments": {**OURS, **TP}},
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


@pytest.mark.parametrize("name", ["dense-theirs", "dense-quark"])
def test_a_format_of_vllms_own_runs_where_it_alone_refuses(alone: dict[str, Any], name: str) -> None:
    kit.check_said(fine(alone, name)["outputs"], DENSE)
    assert "Using Mxfp4CoreLinearKernel for MXFP4 GEMM" in alone["log"]


@pytest.mark.parametrize("name", ["dense", "experts"])
def test_weights_are_loaded_again_into_the_same_memory(
    alone: dict[str, Any], saved: dict[str, Path], name: str
) -> None:
    result = fine(alone, name)
    kit.check_said(result["again"], saved[f"{name}-b"])
    assert not result["moved"]


def test_a_checkpoint_of_gpt_oss_runs_where_vllm_alone_refuses(
    alone: dict[str, Any], saved: dict[str, Path]
) -> None:
    kit.check_said(fine(alone, "gpt-oss")["outputs"], saved["gpt-oss"])


def test_loading_takes_what_is_quantised_and_one_tensor(
    alone: dict[str, Any], saved: dict[str, Path]
) -> None:
    result, tensors = fine(alone, "large"), kit.tensors(saved["large"])
    weights = {name: each.nbytes for name, each in tensors.items() if "_proj" in name}
    layer = sum(size for name, size in weights.items() if name.startswith("model.layers.0."))
    quantised = sum(weights.values()) * 17 // 64
    assert quantised * 0.95 < result["added"] < quantised * 1.05 + (16 << 20)  # and what is in high precision
    # The workspace of the quantizer and of the allocator is within 8 MiB.
    assert result["peak"] <= result["added"] * 1.05 + max(weights.values()) + (8 << 20)
    assert result["peak"] < quantised * 1.05 + layer


def test_weights_may_be_made_up(alone: dict[str, Any]) -> None:
    assert len(fine(alone, "made-up")["outputs"]) == len(kit.PROMPTS)


def test_the_summary_is_in_the_log(alone: dict[str, Any]) -> None:
    assert "mxfp4: quantised 24 layers (24 linear)" in alone["log"]
    assert "'gate' is a router or gate, kept by default" in alone["log"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("adapters", "ConfigError: vLLM cannot put LoRA adapters on MXFP4 layers"),
        ("pattern", "PatternError: 1 of 1 name patterns match nothing"),
        ("backend", "BackendError: model.layers.0.self_attn.qkv_proj: "),
        ("embedding", "ConfigError: model.embed_tokens cannot be MXFP4 in vLLM"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_loaded(
    alone: dict[str, Any], name: str, says: str
) -> None:
    assert says in alone[name]["error"]


def test_tensor_parallelism_that_cuts_a_block_is_refused(spread: dict[str, Any]) -> None:
    assert "error" in spread["cut"]
    assert "model.layers.0.mlp.down_proj.weight cannot be sharded along k" in spread["log"]
    assert "k = 96 over 2 ranks" in spread["log"]


@pytest.mark.parametrize(("name", "whole"), [("dense-2", False), ("experts-2", False), ("experts-ep", True)])
def test_each_rank_holds_its_slice_of_the_bytes(
    spread: dict[str, Any], folder: Path, name: str, whole: bool
) -> None:
    source = DENSE if name.startswith("dense") else EXPERTS
    kit.check_said(fine(spread, name)["outputs"], source)
    for rank in range(2):
        kit.check_parts(folder / f"{name}.{rank}", kit.parts_of(source, rank, 2, whole_experts=whole))
