"""What a person asks of ``from_pretrained`` and ``save`` beside the usual: each works, or is an error of ours."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny import DEVICE, SIZES, load, logits, settings
from transformers.utils.quantization_config import QuantizationConfigMixin

import mxfp4_transformers
from mxfp4_core.errors import ConfigError, FormatError, Mxfp4Error, OutputError
from mxfp4_core.jobs import convert_checkpoint, dequantize_checkpoint, quantize_checkpoint

LLAMA: dict[str, Any] = {**SIZES, "intermediate_size": 128}
WHERE: dict[str, Any] = {} if DEVICE == "cpu" else {"device_map": DEVICE}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "bf16")
    return tmp_path / "bf16"


def rewrite(folder: Path, **change: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


UNLOADABLE: dict[str, dict[str, Any] | None] = {
    "no config.json": None,
    "no words about a model": {"model_type": None, "architectures": None},
    "a size that is none": {"num_hidden_layers": "two"},
    "sizes of another model": {"intermediate_size": 96},
}


@pytest.mark.parametrize("change", UNLOADABLE.values(), ids=UNLOADABLE.keys())
def test_no_line_is_given_for_a_folder_that_nothing_loads(
    change: dict[str, Any] | None, source: Path, tmp_path: Path
) -> None:
    if change is None:
        (source / "config.json").unlink()
    else:
        rewrite(source, **change)
    with pytest.raises(Mxfp4Error):
        mxfp4_transformers.from_pretrained(source)
    results = [quantize_checkpoint(source, tmp_path / "q", settings(dialect="quark").core)]
    results += [convert_checkpoint(tmp_path / "q", tmp_path / "c", to="mxfp4-core")]
    results += [dequantize_checkpoint(tmp_path / "q", tmp_path / "w")]
    for result in results:
        assert result.load == ""
        assert result.kinds.startswith("kinds by names")
    with pytest.raises(Mxfp4Error):
        mxfp4_transformers.from_pretrained(tmp_path / "q")


OWN = """from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class Own(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_a_model_that_brings_its_code_loads_from_every_dialect(source: Path, tmp_path: Path) -> None:
    (source / "modeling_own.py").write_text(OWN)
    auto = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.Own"}
    rewrite(source, model_type="own", architectures=["Own"], auto_map=auto)
    ask = {"trust_remote_code": True, **WHERE}
    now = mxfp4_transformers.from_pretrained(source, settings(), **ask)
    for dialect in ("mxfp4-core", "quark"):
        result = quantize_checkpoint(source, tmp_path / dialect, settings(dialect=dialect).core)
        assert any("trust_remote_code=True" in note for note in result.notes)
        read = mxfp4_transformers.from_pretrained(tmp_path / dialect, settings(), **ask)
        assert type(read).__name__ == "Own"
        assert torch.equal(logits(read), logits(now))


@pytest.mark.parametrize("dialect", ["mxfp4-core", "compressed-tensors"])
def test_a_subfolder_is_one_of_any_checkpoint(dialect: str, source: Path, tmp_path: Path) -> None:
    quantize_checkpoint(source, tmp_path / "whole" / "part", settings(dialect=dialect).core)
    read = mxfp4_transformers.from_pretrained(tmp_path / "whole", settings(), subfolder="part", **WHERE)
    now = load(source, settings())
    assert torch.equal(logits(read), logits(now))


@pytest.mark.parametrize(
    ("asked", "seen"),
    [({"quantization_config": settings()}, "quantization_config"), ({"dtype": "flot32"}, "'flot32'")],
    ids=["quantization_config", "dtype"],
)
def test_an_argument_that_is_wrong_is_named(
    asked: dict[str, Any], seen: str, source: Path, tmp_path: Path
) -> None:
    quantize_checkpoint(source, tmp_path / "q")
    with pytest.raises(ConfigError) as error:
        mxfp4_transformers.from_pretrained(tmp_path / "q", **asked)
    assert seen in error.value.seen


def test_a_full_disk_leaves_nothing_of_a_saved_model(source: Path, tmp_path: Path) -> None:
    model = load(source, settings())
    (tmp_path / "there").mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (20_000, 60_000):  # too small for what is saved first, and for what is made of it
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(OutputError):
                mxfp4_transformers.save(model, tmp_path / "there" / "it")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert list((tmp_path / "there").iterdir()) == []


def test_the_config_of_another_library_is_refused(source: Path) -> None:
    """One method has a config for each library, and pipelines of diffusers take both."""

    class Other(QuantizationConfigMixin):  # of mxfp4_diffusers, which need not be installed here
        quant_method = "mxfp4-core"

    Other.__module__ = "mxfp4_diffusers.config"
    with pytest.raises(ConfigError, match="mxfp4_transformers cannot load with this") as error:
        load(source, Other(quant_method="mxfp4-core"))
    assert error.value.seen == "a Other of mxfp4_diffusers"
    assert "pass mxfp4_transformers.Mxfp4Config" in error.value.fix


@pytest.mark.parametrize("where", ["meta", {"": "meta"}], ids=["word", "map"])
def test_a_device_without_memory_is_refused(where: Any, source: Path) -> None:
    pytest.importorskip("accelerate")  # transformers takes a device_map with it alone
    with pytest.raises(FormatError, match="meta device") as error:
        load(source, settings(), device_map=where)
    assert "device_map" in error.value.fix
