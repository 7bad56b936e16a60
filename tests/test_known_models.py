"""What the table of transformers says is what transformers says; and where it cannot be certain, it says nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import known_models
import pytest
import transformers
from known_probes import Config, Seen, base_config, combined, probe, see

import mxfp4_transformers_models as models
from mxfp4_core.errors import ModelError
from mxfp4_core.naming import ModelView
from mxfp4_transformers import provider as library
from mxfp4_transformers_models import table

ROOT = Path(__file__).resolve().parent.parent
VERSION = transformers.__version__
ROWS = table.rows(VERSION)
PROBED = ["GptOssForCausalLM", "Qwen3MoeForCausalLM", "T5ForConditionalGeneration"]


def test_every_release_that_the_adapter_is_checked_with_has_a_table() -> None:
    assert [*table.releases()] == ["5.17.0", "5.24.0"]


def test_the_families_that_people_use_have_a_row() -> None:
    if VERSION not in table.releases():
        pytest.skip(f"no table for transformers {VERSION}")
    wanted = """
        BertForMaskedLM DeepseekV3ForCausalLM FalconForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM GPT2LMHeadModel
        GptOssForCausalLM GraniteForCausalLM LlamaForCausalLM MistralForCausalLM MixtralForCausalLM Phi3ForCausalLM
        Qwen2ForCausalLM Qwen3ForCausalLM Qwen3MoeForCausalLM T5ForConditionalGeneration ViTForImageClassification
    """
    assert {*wanted.split()} <= {*ROWS}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_says_what_the_library_says(name: str) -> None:
    kind = getattr(transformers, name)
    config = base_config(kind)
    pairs: list[tuple[Seen, Config]] = [(see(kind, config, ""), config)]
    if name in PROBED:
        pairs = [*probe(kind, config), *combined(kind, config, 10)]
        assert len(pairs) > 20
    assert [*known_models.differences(ROWS[name], *zip(*pairs, strict=True))] == []


def model(name: str, **changes: Any) -> tuple[Config, dict[str, tuple[str, tuple[int, ...]]]]:
    """Return the config and the headers of a model that the table knows, as ``save_pretrained`` would write them."""
    kind = getattr(transformers, name)
    config = {**base_config(kind), **changes}
    found = see(kind, config, "changed")
    _, shapes = found.views.get("saved", found.views["own"])
    return config, {each: ("BF16", shape) for each, shape in shapes.items()}


def both(config: Config, headers: Mapping[str, Any]) -> tuple[ModelView | None, Any]:
    """Return what the table says, and what the library says, or the error that it raises."""
    try:
        said: Any = library.describe(config, headers)
    except ModelError as error:
        said = error.seen
    return table.describe(VERSION, config, headers), said


def llama() -> tuple[Config, dict[str, tuple[str, tuple[int, ...]]]]:
    return model("LlamaForCausalLM")


LAYER = "model.layers.0.self_attn.q_proj.weight"


Headers = Mapping[str, tuple[str, tuple[int, ...]]]
DOUBTFUL: dict[str, tuple[str, Callable[[Config, Headers], tuple[Config, Headers]]]] = {
    "a size": ("Llama", lambda c, h: (c, {**h, LAYER: ("BF16", (4096, 4097))})),
    "another model": ("Llama", lambda c, h: ({**c, "hidden_size": 2048}, h)),
    "a dtype": ("Llama", lambda c, h: (c, {**h, LAYER: ("U8", h[LAYER][1])})),
    "axes": ("Llama", lambda c, h: (c, {**h, LAYER: ("BF16", (*h[LAYER][1], 1))})),
    "a name": ("Llama", lambda c, h: (c, {**h, LAYER.replace("q_", "z_"): h[LAYER]})),
    "no number": ("Llama", lambda c, h: ({**c, "num_hidden_layers": None}, h)),
    "a number of layers": ("Llama", lambda c, h: (c, {**h, LAYER.replace("0", "9" * 5000): h[LAYER]})),
    "an activation": ("Mixtral", lambda c, h: ({**c, "hidden_act": "gelu"}, h)),
    "other tensors": ("Mixtral", lambda c, h: (c, dict.fromkeys(("a", "b"), ("BF16", (64, 64))))),
}


@pytest.mark.parametrize("case", DOUBTFUL)
def test_what_is_not_as_the_row_has_it_is_left_to_the_library(case: str) -> None:
    name, change = DOUBTFUL[case]
    config, headers = change(*model(f"{name}ForCausalLM"))
    assert table.describe(VERSION, config, headers) is None


def test_a_part_that_the_model_does_not_have_is_not_loaded() -> None:
    """DeepSeek-V3 files hold a layer that predicts more tokens, which transformers does not load."""
    config, headers = model("DeepseekV3ForCausalLM")
    extra = f"model.layers.{config['num_hidden_layers']}.mlp.gate_proj.weight"
    known, said = both(config, {**headers, extra: ("BF16", (64, 64))})
    assert known is not None and known.tensors == said.tensors
    assert extra not in known.tensors


@pytest.mark.parametrize("name", ["BartForConditionalGeneration", "T5ForConditionalGeneration"])
def test_a_shared_weight_is_known_by_all_its_names_whichever_the_file_has(name: str) -> None:
    if name not in ROWS:
        pytest.skip(f"no row for transformers {VERSION}")
    config, headers = model(name)
    tied = {each for pair in ROWS[name]["tied"].items() for each in pair}
    assert len(tied) > 3
    for only in tied & {*headers}:
        known, said = both(config, {each: headers[each] for each in headers if each not in tied - {only}})
        assert known is not None and tied <= {*known.parameters} & {*said.parameters}
        assert all(said.parameters[each] == known.parameters[each] for each in tied)


def test_other_words_for_a_setting_and_settings_that_are_left_out() -> None:
    config, headers = model("Qwen3MoeForCausalLM")
    renamed = {("num_experts" if key == "num_local_experts" else key): each for key, each in config.items()}
    short = {key: each for key, each in renamed.items() if key != "tie_word_embeddings"}
    for given in (renamed, short):
        known, said = both(given, headers)
        assert known is not None and known.tensors == said.tensors
        assert all(said.parameters[name] == each for name, each in known.parameters.items())


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "llama"},
        {"model_type": "no_such_model", "architectures": ["LlamaForCausalLM"]},
        {"model_type": 7, "architectures": ["LlamaForCausalLM"]},
        {"model_type": "llama", "architectures": [None]},
    ],
)
def test_what_no_class_belongs_to_is_said_at_once(config: Config) -> None:
    assert library.describe(config, {}) is None
    assert table.is_unknown("5.24.0", config)


def test_another_release_has_the_library_asked() -> None:
    config, headers = llama()
    assert table.describe("5.24.1", config, headers) is None
    assert not table.is_unknown("5.24.1", {**config, "model_type": "no_such_model"})


def test_the_provider_asks_the_library_where_the_table_is_silent() -> None:
    config, headers = llama()
    odd = {**headers, "model.layers.0.extra": ("BF16", (64, 64))}
    assert models.provider.describe(config, odd) == library.describe(config, odd)
    with pytest.raises(ModelError, match=r"by config\.json"):
        models.provider.describe({**config, "vocab_size": 7}, headers)


def test_a_plan_imports_no_torch() -> None:
    if VERSION not in table.releases():
        pytest.skip(f"no table for transformers {VERSION}")
    code = (
        "import sys, json\n"
        "from mxfp4_core.jobs import plan_checkpoint\n"
        "plan = plan_checkpoint(sys.argv[1])\n"
        "print(json.dumps([plan.kinds, 'torch' in sys.modules, 'transformers' in sys.modules]))\n"
    )
    command = [sys.executable, "-c", code, str(ROOT / "models" / "qwen3-tiny")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == [f"kinds by transformers {VERSION}: Qwen3ForCausalLM", False, False]
