"""Models whose code reads weights itself, and classes that are a part of the model in a folder: plain loads run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import T5
from tiny import DEVICE, reload, settings

import mxfp4_transformers
from mxfp4_core.jobs import (
    convert_checkpoint,
    dequantize_checkpoint,
    plan_checkpoint,
    quantize_checkpoint,
)

IDS = torch.tensor([[1, 5, 9, 3, 7]])
SIGLIP: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "projection_size": 64,
}

READERS: dict[str, Any] = {
    "t5": lambda: transformers.T5EncoderModel(transformers.T5Config(**T5)),
    "umt5": lambda: transformers.UMT5EncoderModel(transformers.UMT5Config(**T5)),
    # it begins the weights of an attention where it begins the attention
    "siglip": lambda: transformers.SiglipTextModel(transformers.SiglipTextConfig(**SIGLIP)),
    "mamba": lambda: transformers.MambaModel(
        transformers.MambaConfig(
            vocab_size=96, hidden_size=64, num_hidden_layers=1, state_size=16, time_step_rank=32
        )
    ),
}


@torch.no_grad()
def hidden(model: Any) -> torch.Tensor:
    return model(IDS.to(DEVICE)).last_hidden_state.float().cpu()


@pytest.mark.parametrize("name", READERS)
def test_a_folder_is_written_such_that_a_plain_load_runs(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = READERS[name]().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "bf16")
    result = quantize_checkpoint(tmp_path / "bf16", tmp_path / "q")
    assert result.dialect == "mxfp4-core" and "itself, and compressed-tensors leaves" in result.why
    assert result.why == plan_checkpoint(tmp_path / "bf16").why
    read = reload(tmp_path / "q", type(model))
    now = type(model).from_pretrained(
        tmp_path / "bf16", quantization_config=settings(), device_map=None if DEVICE == "cpu" else DEVICE
    )
    assert torch.equal(hidden(read), hidden(now))
    mxfp4_transformers.save(now, tmp_path / "saved")
    assert torch.equal(hidden(reload(tmp_path / "saved", type(model))), hidden(now))


@pytest.mark.parametrize("dialect", ["compressed-tensors", "quark", "auto-round"])
def test_the_line_for_a_dialect_that_was_asked_for_loads_the_model(dialect: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = READERS["t5"]().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "bf16")
    config = settings(dialect=dialect).core
    result = quantize_checkpoint(tmp_path / "bf16", tmp_path / "q", config)
    assert "the config names it; T5" in result.why and result.why.endswith("mxfp4_transformers does not")
    assert result.why == plan_checkpoint(tmp_path / "bf16", config).why
    if DEVICE == "cpu":  # elsewhere a line without a backend is refused
        read = called(result.load)
        now = type(model).from_pretrained(tmp_path / "bf16", quantization_config=settings())
        assert type(read) is type(now) and torch.equal(hidden(read), hidden(now))


def encoded(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.get_encoder()(IDS).last_hidden_state.float()


def called(line: str) -> Any:
    """Run a line as it was printed."""
    *imports, call = line.split("; ")
    space: dict[str, Any] = {}
    exec("; ".join(imports), space)
    return eval(call, space)


@pytest.mark.skipif(DEVICE != "cpu", reason="a line without a backend is refused elsewhere")
def test_the_lines_of_conversions_load_the_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = READERS["t5"]().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "bf16")
    quantize_checkpoint(tmp_path / "bf16", tmp_path / "q")
    chosen = convert_checkpoint(tmp_path / "q", tmp_path / "auto", "auto")
    assert chosen.dialect == "mxfp4-core" and "itself, and compressed-tensors leaves" in chosen.why
    named = convert_checkpoint(tmp_path / "q", tmp_path / "named", "compressed-tensors")
    assert any("itself, and loaders of that dialect" in note for note in named.notes)
    again = convert_checkpoint(tmp_path / "named", tmp_path / "back", "mxfp4-core")
    assert not any("itself" in note for note in again.notes)
    values = dequantize_checkpoint(tmp_path / "named", tmp_path / "values")
    want = hidden(type(model).from_pretrained(tmp_path / "bf16", quantization_config=settings()))
    for result in (chosen, named, again):
        found = called(result.load)
        assert torch.equal(encoded(found), want)
    assert (encoded(called(values.load)) - want).norm() < 0.02 * want.norm()
    other = convert_checkpoint(tmp_path / "q", tmp_path / "fp8", "fp8", lossy=True)
    assert other.load == "" and any("may not run" in note for note in other.notes)


class Words(transformers.GenerationConfig):
    """Settings of a model that generates in a way of its own: they take no words of others, as DiffusionGemma's."""

    def __init__(self, **words: Any) -> None:
        if words.keys() & {"num_beams", "min_length"}:
            raise ValueError(f"Unexpected kwargs: {words.keys()}")
        super().__init__(**words)

    def to_dict(self) -> dict[str, Any]:
        return {"max_new_tokens": self.max_new_tokens}


class Steps(transformers.LlamaForCausalLM):
    generation_config_class = Words


@pytest.mark.parametrize("dialect", ["mxfp4-core", "compressed-tensors"])
def test_a_model_that_generates_in_a_way_of_its_own_keeps_its_settings(dialect: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = Steps(transformers.LlamaConfig(vocab_size=96, **sizes)).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "bf16")
    (tmp_path / "bf16" / "generation_config.json").write_text('{"max_new_tokens": 7}')
    quantize_checkpoint(tmp_path / "bf16", tmp_path / "q", settings(dialect=dialect).core)
    where = {} if DEVICE == "cpu" else {"device_map": DEVICE}
    read = mxfp4_transformers.from_pretrained(tmp_path / "q", settings(), auto_class=Steps, **where)
    assert read.generation_config.max_new_tokens == 7


@pytest.mark.parametrize("dialect", ["mxfp4-core", "compressed-tensors"])
def test_an_encoder_is_loaded_from_the_folder_of_the_whole_model(dialect: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = transformers.T5ForConditionalGeneration(transformers.T5Config(**T5)).to(torch.bfloat16)
    whole.save_pretrained(tmp_path / "bf16")
    kind = transformers.T5EncoderModel
    where = {} if DEVICE == "cpu" else {"device_map": DEVICE}
    now = kind.from_pretrained(tmp_path / "bf16", quantization_config=settings(), **where)
    quantize_checkpoint(tmp_path / "bf16", tmp_path / "q", settings(dialect=dialect).core)
    read = mxfp4_transformers.from_pretrained(tmp_path / "q", settings(), auto_class=kind, **where)
    assert torch.equal(hidden(read), hidden(now))
    if dialect == "mxfp4-core":
        assert torch.equal(hidden(reload(tmp_path / "q", kind)), hidden(now))


def test_a_class_that_the_library_does_not_have_is_not_named(tmp_path: Path) -> None:
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**T5)).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "bf16")
    path = tmp_path / "bf16" / "config.json"
    path.write_text(path.read_text().replace("T5ForConditionalGeneration", "T5WithLMHeadModel"))
    results = [quantize_checkpoint(tmp_path / "bf16", tmp_path / "q")]
    results += [convert_checkpoint(tmp_path / "q", tmp_path / "c", to="mxfp4-core")]
    results += [dequantize_checkpoint(tmp_path / "q", tmp_path / "w")]
    for result in results:
        assert result.load == ""
        assert "no class for model type t5" in result.kinds
