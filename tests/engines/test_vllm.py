"""vLLM's released CPU engine with our plug-in: what it holds, what it says, what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kit
import made
import pytest

kit.need("vllm")

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the engine and of its own choice of libraries
OURS = {"quantization": "mxfp4-core"}
LORA = {"enable_lora": True, "max_lora_rank": 8}
SCALES = "model.layers.1.mlp.down_proj.weight_scale"
LARGE = {
    **{"hidden_size": 512, "moe_intermediate_size": 512, "num_experts": 64, "num_experts_per_tok": 2},
    **{"intermediate_size": 512, "num_hidden_layers": 3},
}
ODD = {  # the first layer is dense; on two ranks K of what is narrowed again is 48
    **{"hidden_size": 128, "num_hidden_layers": 2, "mlp_only_layers": [0], "intermediate_size": 96},
    **{"moe_intermediate_size": 96, "num_experts": 4, "num_experts_per_tok": 2},
}
MODELS: dict[str, Any] = {
    "dense-core": lambda folder, models: made.stored(models["dense"], folder, "mxfp4-core"),
    "dense-compressed": lambda folder, models: made.stored(models["dense"], folder, "compressed-tensors"),
    "dense-quark": lambda folder, models: made.stored(models["dense"], folder, "quark"),
    "dense-damaged": lambda folder, models: made.without(models["dense-core"], folder, SCALES),
    "dense-other": lambda folder, models: made.shifted(models["dense"], folder),
    "experts-core": lambda folder, models: made.stored(models["experts"], folder, "mxfp4-core"),
    "experts-compressed": lambda folder, models: made.stored(models["experts"], folder, "compressed-tensors"),
    "experts-other": lambda folder, models: made.shifted(models["experts"], folder),
    "gpt-oss": lambda folder, models: made.gpt_oss(folder),
    "gpt-oss-other": lambda folder, models: made.other_experts(models["gpt-oss"], folder),
    "gpt-oss-stored": lambda folder, models: made.stored_experts(models["gpt-oss"], folder),
    "gpt-oss-other-stored": lambda folder, models: made.stored_experts(models["gpt-oss-other"], folder),
    "adapter": lambda folder, models: made.adapter(models["dense"], folder),
    "large": lambda folder, models: made.random(folder, **LARGE),
    "odd": lambda folder, models: made.random(
        folder, hidden_size=128, intermediate_size=96, num_hidden_layers=1
    ),
    "odd-stored": lambda folder, models: made.stored(models["odd"], folder, "mxfp4-core"),
    "odd-both": lambda folder, models: made.random(folder, **ODD),
}


def on_two(model: str, **arguments: Any) -> dict[str, Any]:
    return {
        "model": model,
        "arguments": {"tensor_parallel_size": 2, **arguments},
        "variables": {"VLLM_CPU_OMP_THREADS_BIND": "0|1"},
    }


WHOLE = {"enable_expert_parallel": True}
WIDENED = {"MXFP4_CONFIG": '{"backend": "cuda-marlin", "refused": "keep"}'}
"""Of a folder no layer is taken on a CPU, and the values of its codes are what vLLM computes with."""


def settings(text: str) -> dict[str, Any]:
    return {"model": "dense", "arguments": {**OURS, "hf_overrides": {"quantization_config_dict_json": text}}}


def again(model: str, suffix: str = "", sent: str = "_proj") -> dict[str, Any]:
    """Return what is loaded afterwards: other weights, and the first ones in vLLM's own way."""
    ways = [(f"{model}-other{suffix}", "load_weights"), (f"{model}{suffix}", "reload_weights")]
    return {"again": ways, "sent": sent}


SCENARIOS: dict[str, dict[str, Any]] = {
    "dense": {"model": "dense", "arguments": OURS, **again("dense")},
    "dense-stored": {"model": "dense-core"},
    "dense-compressed": {"model": "dense-compressed"},
    "dense-quark": {"model": "dense-quark"},
    "gpt-oss": {"model": "gpt-oss-stored", "arguments": OURS, **again("gpt-oss", "-stored", ".experts.")},
    "experts": {"model": "experts", "arguments": OURS, **again("experts")},
    "experts-stored": {"model": "experts-core"},
    "experts-taken": {"model": "experts-compressed", "arguments": OURS},
    "large": {"model": "large", "arguments": OURS, "watch": True},
    "made-up": {"model": "experts", "arguments": {**OURS, "load_format": "dummy"}},
    "adapters": {"model": "dense", "arguments": {**OURS, **LORA}, "adapter": "adapter"},
    "adapters-experts": {"model": "experts", "arguments": {**OURS, **LORA}},
    "left-out": {"model": "dense", "arguments": OURS, "variables": {"VLLM_PLUGINS": "another"}},
    "damaged": {"model": "dense-damaged"},
    "pattern": settings('{"ignore": ["o_prj"]}'),
    "backend": settings('{"backend": "cuda-marlin"}'),
    "embedding": settings('{"overrides": [{"pattern": "embed_tokens", "keep": false}]}'),
    "backend-kept": settings('{"backend": "cuda-marlin", "refused": "keep"}'),
    "dense-widened": {"model": "dense-core", "variables": WIDENED},
    "experts-widened": {"model": "experts-core", "variables": WIDENED},
    "odd-2": on_two("odd", **OURS),
    "odd-stored-kept": {**on_two("odd-stored"), "variables": {**on_two("")["variables"], **WIDENED}},
    "odd-kept": on_two(
        "odd-both", **OURS, hf_overrides={"quantization_config_dict_json": '{"refused": "keep"}'}
    ),
    "dense-2": on_two("dense", **OURS),
    "dense-core-2": on_two("dense-core"),
    "dense-quark-2": on_two("dense-quark", **OURS),
    "experts-2": on_two("experts-core"),
    "experts-compressed-2": on_two("experts-compressed", **OURS),
    "experts-ep": on_two("experts", **OURS, **WHOLE),
    "experts-core-ep": on_two("experts-core", **WHOLE),
    "gpt-oss-2": on_two("gpt-oss-stored", **OURS),
}


def compiled(graphs: Path, config: str) -> dict[str, Any]:
    variables = {"VLLM_CACHE_ROOT": str(graphs), "MXFP4_CONFIG": config}
    return {"model": "dense", "arguments": {**OURS, "enforce_eager": False}, "variables": variables}


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kit.Engine]:
    models, graphs = kit.Models(tmp_path_factory.mktemp("models"), MODELS), tmp_path_factory.mktemp("graphs")
    scenarios = {
        **SCENARIOS,
        "compiled": compiled(graphs, "{}"),
        "compiled-other": compiled(graphs, '{"ignore": ["layers.0"]}'),
    }
    process = kit.Engine("vllm_run.py", models, scenarios, tmp_path_factory.mktemp("vllm"))
    yield process
    process.close()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("dense", marks=pytest.mark.smoke),
        pytest.param("dense-stored", marks=pytest.mark.smoke),
        pytest.param("experts", marks=pytest.mark.smoke),
        pytest.param("experts-stored", marks=pytest.mark.smoke),
        "experts-taken",
    ],
)
def test_the_engine_holds_the_bytes_of_the_core_and_says_what_transformers_says(
    engine: kit.Engine, name: str
) -> None:
    source = kit.MODELS[name.partition("-")[0]]
    kit.check_said(engine.fine(name)["outputs"], source)
    kit.check_held(engine.parts(name), source)


@pytest.mark.parametrize("name", ["dense-compressed", "dense-quark"])
def test_a_format_of_vllms_own_runs_where_it_alone_refuses(engine: kit.Engine, name: str) -> None:
    result = engine.fine(name)
    kit.check_said(result["outputs"], kit.MODELS["dense"])
    kit.check_held(engine.parts(name), kit.MODELS["dense"])
    assert "Using Mxfp4CoreLinearKernel for MXFP4 GEMM" in result["log"]


@pytest.mark.parametrize("name", ["dense", "experts", "gpt-oss"])
def test_weights_are_loaded_again_into_the_same_memory(engine: kit.Engine, name: str) -> None:
    result = engine.fine(name)
    for said, model in zip(result["again"], (f"{name}-other", name), strict=True):
        kit.check_said(said, engine.models[model])
    assert not result["moved"]


def test_a_checkpoint_of_gpt_oss_runs_where_vllm_alone_refuses(engine: kit.Engine) -> None:
    kit.check_said(engine.fine("gpt-oss")["outputs"], engine.models["gpt-oss"])


def test_loading_takes_what_is_quantised_and_one_tensor(engine: kit.Engine) -> None:
    result, tensors = engine.fine("large"), kit.tensors(engine.models["large"])
    weights = {name: each.nbytes for name, each in tensors.items() if "_proj" in name}
    layer = sum(size for name, size in weights.items() if name.startswith("model.layers.0."))
    quantised = sum(weights.values()) * 17 // 64
    assert quantised * 0.95 < result["added"] < quantised * 1.05 + (16 << 20)  # and what is in high precision
    # The workspace of the quantizer and of the allocator is within 8 MiB.
    assert result["peak"] <= result["added"] * 1.05 + max(weights.values()) + (8 << 20)
    assert result["peak"] < quantised * 1.05 + layer


def test_weights_may_be_made_up(engine: kit.Engine) -> None:
    assert len(engine.fine("made-up")["outputs"]) == len(kit.PROMPTS)


@pytest.mark.smoke
def test_the_summary_is_in_the_log(engine: kit.Engine) -> None:
    assert "mxfp4: quantised 24 layers (24 linear)" in engine.fine("dense")["log"]
    assert "'gate' is a router or gate, kept by default" in engine.fine("experts")["log"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        # vLLM's own words, which docs/vllm.md explains.
        ("left-out", "Unknown quantization method: mxfp4-core"),
        ("damaged", f"without '{SCALES}'"),
        ("adapters-experts", "ConfigError: model.layers.0.mlp.experts: vLLM cannot put LoRA adapters on"),
        pytest.param("pattern", "PatternError: 1 of 1 name patterns match nothing", marks=pytest.mark.smoke),
        ("backend", "BackendError: model.layers.0.self_attn.qkv_proj: "),
        ("backend-kept", "ConfigError: nothing is left to quantise"),
        ("embedding", "ConfigError: model.embed_tokens cannot be MXFP4 in vLLM"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_loaded(engine: kit.Engine, name: str, says: str) -> None:
    assert says in engine[name]["error"]


def test_tensor_parallelism_that_cuts_a_block_is_refused(engine: kit.Engine) -> None:
    result = engine["odd-2"]
    assert "error" in result
    assert "model.layers.0.mlp.down_proj.weight cannot be sharded along k" in result["log"]
    assert "k = 96 over 2 ranks" in result["log"]


def test_what_is_refused_stays_in_high_precision_where_the_config_says_so(engine: kit.Engine) -> None:
    result = engine.fine("odd-kept")
    kit.check_said(result["outputs"], engine.models["odd-both"], kept=r"\.0\.mlp\.down_proj|\.experts\.")
    for name in ("model.layers.0.mlp.down_proj", "model.layers.1.mlp.experts"):
        assert f"{name} stays in high precision, refused: {name}." in result["log"]
    assert "mxfp4: quantised 5 layers (5 linear)" in result["log"]


@pytest.mark.parametrize("name", ["dense-widened", "experts-widened"])
def test_of_a_folder_what_no_backend_takes_computes_with_its_values(engine: kit.Engine, name: str) -> None:
    result = engine.fine(name)
    kit.check_said(result["outputs"], kit.MODELS[name.partition("-")[0]])
    assert (
        "model.layers.0.self_attn.qkv_proj stays in high precision, refused: no backend for" in result["log"]
    )


def test_of_a_folder_what_cuts_a_block_is_refused_in_any_case(engine: kit.Engine) -> None:
    log = engine["odd-stored-kept"]["log"]
    assert "model.layers.0.mlp.down_proj.weight cannot be sharded along k" in log
    assert "refused='keep' widens whole blocks" in log and "mxfp4 dequantize" in log


def test_without_a_backend_the_error_has_what_each_one_said(engine: kit.Engine) -> None:
    said = engine["backend"]["error"]
    for line in (
        "cuda-marlin  rejected      the device is cpu",
        "reference    accepted      widens the weights",
    ):
        assert line in said
    assert "fix:  use the backend of this device" in said


ON_TWO = ["dense-2", "dense-core-2", "dense-quark-2", "experts-2", "experts-compressed-2"]


@pytest.mark.parametrize("name", [*ON_TWO, "experts-ep", "experts-core-ep"])
def test_each_rank_holds_its_slice_of_the_bytes(engine: kit.Engine, name: str) -> None:
    source = kit.MODELS[name.partition("-")[0]]
    kit.check_said(engine.fine(name)["outputs"], source)
    for rank in range(2):
        kit.check_held(engine.parts(name, rank), source, rank, 2, whole_experts=name.endswith("-ep"))


def test_stacks_and_biases_of_gpt_oss_are_cut_between_two_ranks(engine: kit.Engine) -> None:
    kit.check_said(engine.fine("gpt-oss-2")["outputs"], engine.models["gpt-oss"])


def test_a_compiled_graph_on_the_disk_is_not_taken_for_other_settings(engine: kit.Engine) -> None:
    for name, kept in (("compiled", ""), ("compiled-other", r"\.layers\.0\.")):
        kit.check_said(engine.fine(name)["outputs"], kit.MODELS["dense"], kept=kept)


def test_an_adapter_is_added_to_what_the_codes_stand_for(engine: kit.Engine) -> None:
    result, source = engine.fine("adapters"), kit.MODELS["dense"]
    kit.check_said(result["outputs"], source)
    kit.check_said(result["adapted"], source, adapter=engine.models["adapter"])
    assert result["adapted"] != result["outputs"]
