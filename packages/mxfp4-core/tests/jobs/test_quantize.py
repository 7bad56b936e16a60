from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mxfp4_core import Mxfp4Config, quantize
from mxfp4_core.checkpoint.reader import open_checkpoint
from mxfp4_core.errors import (
    DialectError,
)
from mxfp4_core.jobs import units as units_module
from mxfp4_core.jobs.convert import convert_checkpoint
from mxfp4_core.jobs.plan import plan_checkpoint
from mxfp4_core.jobs.quantize import quantize_checkpoint

Save = Callable[..., Path]


Contents = Callable[[Path], dict[str, bytes]]


LAYER = "model.layers.0."


Q = f"{LAYER}self_attn.q_proj.weight"


DOWN = f"{LAYER}mlp.down_proj.weight"


def config(**settings: object) -> Mxfp4Config:
    return Mxfp4Config.from_dict(dict(settings))


def load_all(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("chunk", [1, 500, units_module.CHUNK_BYTES])
@pytest.mark.parametrize("shard", [3000, 10**9])
def test_the_bytes_are_those_of_quantize(
    save: Save, dense: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, chunk: int, shard: int
) -> None:
    monkeypatch.setattr(units_module, "CHUNK_BYTES", chunk)
    source = save(dense, config={"model_type": "llama"})
    target = source.parent / "target"
    result = quantize_checkpoint(source, target, config(dialect="mxfp4-core"), max_shard_bytes=shard)
    written = load_all(target)
    kept = {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"}
    kept |= {f"{LAYER}input_layernorm.weight", f"{LAYER}self_attn.q_proj.bias"}
    for name, weight in dense.items():
        if name in kept:
            assert torch.equal(written.pop(name), weight)
        else:
            expected = quantize(weight)
            assert torch.equal(written.pop(name), expected.codes)
            assert torch.equal(written.pop(f"{name}_scale"), expected.scales)
    assert not written
    assert (result.quantized, result.kept, len(result.files) > 1) == (7, 5, shard == 3000)
    assert set(open_checkpoint(target).files) == {target / name for name in result.files}


def test_equal_runs_write_equal_bytes(save: Save, dense: dict[str, torch.Tensor], contents: Contents) -> None:
    source = save(dense, config={"model_type": "llama"})
    for name in ("one", "two"):
        quantize_checkpoint(source, source.parent / name, config(rule="floor"), max_shard_bytes=5000)
    one, two = contents(source.parent / "one"), contents(source.parent / "two")
    assert one == two
    assert {"config.json", "mxfp4_manifest.json", "model.safetensors.index.json"} < one.keys()


def test_other_files_are_carried_over(save: Save, dense: dict[str, torch.Tensor], contents: Contents) -> None:
    source = save(dense, config={"model_type": "llama", "architectures": ["X"]})
    (source / "tokenizer.json").write_bytes(b"{tok}")
    (source / "sub").mkdir()
    (source / "sub" / "template.jinja").write_bytes(b"hi")
    quantize_checkpoint(source, source.parent / "target", config(dialect="mxfp4-core"))
    written = contents(source.parent / "target")
    assert written["tokenizer.json"] == b"{tok}"
    assert written["sub/template.jinja"] == b"hi"
    described = json.loads(written["config.json"])
    assert described["architectures"] == ["X"]
    assert described["quantization_config"]["quant_method"] == "mxfp4-core"
    assert described["quantization_config"]["weights_profile"] == "even/even"


def test_overrides_give_each_weight_its_profile(save: Save, dense: dict[str, torch.Tensor]) -> None:
    source = save(dense)
    overrides = [{"pattern": "mlp.down_proj", "profile": "gguf"}]
    quantize_checkpoint(source, source.parent / "target", config(dialect="mxfp4-core", overrides=overrides))
    written = load_all(source.parent / "target")
    assert torch.equal(written[DOWN], quantize(dense[DOWN], profile="gguf").codes)
    assert torch.equal(written[Q], quantize(dense[Q]).codes)


def test_the_default_loads_in_other_programs(save: Save, dense: dict[str, torch.Tensor]) -> None:
    source = save(dense, config={"model_type": "llama"})
    result = quantize_checkpoint(source, source.parent / "target")
    assert result.dialect == "compressed-tensors"
    assert "it can say everything; it loads in vLLM" in result.why
    written = load_all(source.parent / "target")
    assert torch.equal(written[f"{Q}_packed"], quantize(dense[Q]).codes)
    plan = plan_checkpoint(source)
    assert (plan.dialect, plan.why) == (result.dialect, result.why)
    assert plan.to_dict()["dialect"] == {"name": "compressed-tensors", "why": result.why}
    manifest = json.loads((source.parent / "target" / "mxfp4_manifest.json").read_text())
    assert (manifest["dialect"], manifest["config"]["dialect"]) == ("compressed-tensors",) * 2


@pytest.mark.parametrize(
    ("named", "dialect", "line"),
    [
        (
            "LlamaForCausalLM",
            "auto",
            "import mxfp4_transformers, transformers; "
            "mxfp4_transformers.from_pretrained('{}', auto_class=transformers.LlamaForCausalLM)",
        ),
        ("X", "mxfp4-core", "import mxfp4_transformers, transformers; transformers.X.from_pretrained('{}')"),
        (
            "not a name",
            "auto",
            "import mxfp4_transformers; mxfp4_transformers.from_pretrained('{}')",
        ),
    ],
)
def test_the_result_says_which_class_loads_it(
    save: Save, dense: dict[str, torch.Tensor], named: str, dialect: str, line: str
) -> None:
    source = save(dense, config={"architectures": [named]})
    target = source.parent / "target"
    result = quantize_checkpoint(source, target, config(dialect=dialect), models="none")
    assert result.load.partition("  #")[0] == line.format(target)
    other = source.parent / "other"
    again = convert_checkpoint(target, other, result.dialect)
    assert again.load.partition("  #")[0] == line.format(other)


CANNOT: dict[str, tuple[dict[str, torch.Tensor], dict[str, object], str]] = {
    "stacked experts": ({f"{LAYER}mlp.experts.down_proj": torch.ones(2, 32, 64)}, {}, "stacked experts"),
    "padding": ({Q: torch.ones(4, 40)}, {"tail": "pad"}, "K = 40, padded"),
    "a mode that it has no word for": ({Q: torch.ones(4, 64)}, {"activation": "mxfp8"}, "'mxfp8'"),
    "two modes": (
        {Q: torch.ones(4, 64), DOWN: torch.ones(4, 64)},
        {"overrides": [{"pattern": "down_proj", "activation": "mxfp4"}]},
        "activation modes none, mxfp4",
    ),
}


@pytest.mark.parametrize(("tensors", "settings", "why"), CANNOT.values(), ids=CANNOT.keys())
def test_our_own_dialect_says_what_the_other_cannot(
    save: Save, tensors: dict[str, torch.Tensor], settings: dict[str, object], why: str
) -> None:
    source = save(tensors, config={"model_type": "llama"})
    result = quantize_checkpoint(source, source.parent / "target", config(**settings))
    assert result.dialect == "mxfp4-core"
    assert why in result.why
    assert plan_checkpoint(source, config(**settings)).why == result.why
    other = config(**settings, dialect="compressed-tensors")
    with pytest.raises(DialectError, match=re.escape(why)):
        quantize_checkpoint(source, source.parent / "other", other)
    assert not (source.parent / "other").exists()


@pytest.mark.parametrize("chunk", [1, 3000])
def test_stacked_experts_keep_k_last(save: Save, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(units_module, "CHUNK_BYTES", chunk)
    experts = "model.layers.0.mlp.experts."
    up, down = torch.randn(3, 64, 96).bfloat16(), torch.randn(3, 32, 64).bfloat16()
    source = save(
        {f"{experts}gate_up_proj": up, f"{experts}down_proj": down}, config={"model_type": "gpt_oss"}
    )
    quantize_checkpoint(source, source.parent / "first")
    written = load_all(source.parent / "first")
    for name, weight in (("gate_up_proj", up), ("down_proj", down)):
        expected = quantize(weight.transpose(1, 2))
        assert torch.equal(written[f"{experts}{name}"], expected.codes)
        assert torch.equal(written[f"{experts}{name}_scale"], expected.scales)
    described = json.loads((source.parent / "first" / "config.json").read_text())["quantization_config"]
    assert described["transposed"] == [f"{experts}down_proj", f"{experts}gate_up_proj"]
    (source / "config.json").write_text('{"model_type": "qwen3_5_moe"}')
    quantize_checkpoint(source, source.parent / "last")
    written = load_all(source.parent / "last")
    assert torch.equal(written[f"{experts}gate_up_proj"], quantize(up).codes)


def test_linears_that_are_stored_with_k_first(save: Save) -> None:
    weight = torch.randn(64, 12)
    source = save(
        {"h.0.attn.c_attn.weight": weight, "h.0.attn.bias": torch.ones(12)}, config={"model_type": "gpt2"}
    )
    quantize_checkpoint(source, source.parent / "target")
    written = load_all(source.parent / "target")
    assert torch.equal(written["h.0.attn.c_attn.weight"], quantize(weight.t()).codes)
    with pytest.raises(DialectError, match="K before N"):
        quantize_checkpoint(source, source.parent / "quark", config(dialect="quark"))


def test_a_source_that_is_one_file(save: Save, dense: dict[str, torch.Tensor], contents: Contents) -> None:
    source = save(dense, config={"model_type": "llama"})
    quantize_checkpoint(source / "model.safetensors", source.parent / "one")
    quantize_checkpoint(source, source.parent / "two")
    one, two = contents(source.parent / "one"), contents(source.parent / "two")
    assert one.keys() == {"config.json", "model.safetensors", "mxfp4_manifest.json"}
    assert one["model.safetensors"] == two["model.safetensors"]


def test_padding_is_recorded(save: Save) -> None:
    weight = torch.randn(5, 40).bfloat16()
    source = save({"layer.proj.weight": weight})
    quantize_checkpoint(source, source.parent / "target", config(tail="pad"))
    written = load_all(source.parent / "target")
    assert torch.equal(written["layer.proj.weight"], quantize(weight, tail="pad").codes)
    described = json.loads((source.parent / "target" / "config.json").read_text())["quantization_config"]
    assert described["shapes"] == {"layer.proj.weight": [5, 40]}


def test_weights_without_elements(save: Save) -> None:
    source = save({"a.proj.weight": torch.zeros(0, 32), "b.proj.weight": torch.ones(1, 32)})
    quantize_checkpoint(source, source.parent / "target")
    written = load_all(source.parent / "target")
    assert written["a.proj.weight"].shape == (0, 32)  # kept
    unit = units_module.QuantizeUnit(
        open_checkpoint(source), "a.proj.weight", ("codes", "scales"), "even/even"
    )
    assert [spec.shape for spec in unit.specs] == [(0, 16), (0, 1)]
    assert list(unit.stream(lambda nbytes: None)) == []


def test_a_dry_run_writes_nothing(save: Save, dense: dict[str, torch.Tensor]) -> None:
    source = save(dense)
    result = quantize_checkpoint(source, source.parent / "target", dry_run=True)
    assert not (source.parent / "target").exists()
    real = quantize_checkpoint(source, source.parent / "target")
    assert (result.target_bytes, result.files, result.quantized) == (
        real.target_bytes,
        real.files,
        real.quantized,
    )
    assert result.dry_run


def test_progress_reaches_the_end(save: Save, dense: dict[str, torch.Tensor]) -> None:
    seen: list[tuple[int, int]] = []
    source = save(dense)
    quantize_checkpoint(
        source,
        source.parent / "target",
        progress=lambda done, total: seen.append((done, total)),
    )
    total = sum(tensor.nbytes for tensor in dense.values())
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
