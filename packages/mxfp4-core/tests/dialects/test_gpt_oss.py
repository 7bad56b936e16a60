from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mxfp4_core import Mxfp4Config, dequantize, dialects, quantize
from mxfp4_core.checkpoint.reader import open_checkpoint
from mxfp4_core.errors import DialectError
from mxfp4_core.jobs import convert_checkpoint, processes, quantize_checkpoint, verify_checkpoint

Save = Callable[..., Path]
E, H, I = 3, 64, 96  # noqa: E741 - experts, hidden, intermediate
MODEL = {"model_type": "gpt_oss", "num_local_experts": E}
DESCRIBED = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
EXPERTS = "model.layers.0.mlp.experts."


def stacks() -> dict[str, torch.Tensor]:
    """Experts with K last, gate and up in turn."""
    generator = torch.Generator().manual_seed(3)
    return {
        "gate_up_proj": torch.randn(E, 2 * I, H, generator=generator).bfloat16(),
        "down_proj": torch.randn(E, H, I, generator=generator).bfloat16(),
    }


def packed(
    prefix: str = EXPERTS, blocks: str = "_blocks", scales: str = "_scales"
) -> dict[str, torch.Tensor]:
    found = {}
    for name, weight in stacks().items():
        made = quantize(weight, profile="triton-kernels")
        found[f"{prefix}{name}{blocks}"] = made.codes.reshape(*made.scales.shape, 16)
        found[f"{prefix}{name}{scales}"] = made.scales
    return found


def others() -> dict[str, torch.Tensor]:
    return {
        f"{EXPERTS}gate_up_proj_bias": torch.ones(E, 2 * I).bfloat16(),
        "model.layers.0.mlp.router.weight": torch.ones(E, H).bfloat16(),
        "model.layers.0.self_attn.q_proj.weight": torch.ones(H, H).bfloat16(),
        "lm_head.weight": torch.ones(8, H).bfloat16(),
    }


@pytest.fixture
def published(save: Save) -> Path:
    config = {**MODEL, "quantization_config": DESCRIBED}
    return save({**others(), **packed()}, config=config, name="published")


def test_a_published_checkpoint_is_read(published: Path) -> None:
    checkpoint = open_checkpoint(published)
    found = dialects.read(checkpoint)
    assert found is not None
    dialect, contents = found
    assert (dialect.name, contents.activation, contents.profile) == ("gpt-oss", "none", "")
    assert contents.kept == ("model.layers.*.self_attn", "lm_head")
    assert set(contents.tensors) == set(others())
    for name, weight in stacks().items():
        entry = contents.entries[f"{EXPERTS}{name}"]
        assert (entry.shape, entry.transposed) == (tuple(weight.shape), True)
        assert entry.interleaved == (name == "gate_up_proj")
        codes, scales = (entry.parts[part].load(checkpoint) for part in ("codes", "scales"))
        expected = quantize(weight, profile="triton-kernels").dequantize(torch.float32)
        assert torch.equal(dequantize(codes, scales, torch.float32), expected)
        gate = entry.parts["codes"].take(step=2, axis=1)
        assert torch.equal(gate.load(checkpoint, 1, 2), codes[1:2, ::2])


def test_through_the_native_dialect_and_back(
    published: Path, contents: Callable[..., dict[str, bytes]]
) -> None:
    native, again = published.parent / "native", published.parent / "again"
    convert_checkpoint(published, native, "mxfp4-core")
    found = dialects.read(open_checkpoint(native))
    assert found is not None
    assert found[1].entries[f"{EXPERTS}gate_up_proj"].interleaved
    assert verify_checkpoint(native).ok
    convert_checkpoint(native, again, "gpt-oss")
    before, after = open_checkpoint(published), open_checkpoint(again)
    assert before.tensors.keys() == after.tensors.keys()
    for name in before.tensors:
        assert torch.equal(before.load(name), after.load(name)), name
    assert after.config["quantization_config"] == {
        "quant_method": "mxfp4",
        "modules_to_not_convert": [
            "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"
        ],
    }  # fmt: skip
    assert "quantization_config" in json.loads(contents(again)["config.json"])


def test_experts_are_quantised_into_it(save: Save) -> None:
    weights = {f"{EXPERTS}{name}": weight.mT.contiguous() for name, weight in stacks().items()}
    source = save({**others(), **weights}, config=MODEL)
    target = source.parent / "target"
    config = Mxfp4Config.from_dict(
        {"dialect": "gpt-oss", "profile": "triton-kernels", "ignore": ["self_attn"]}
    )
    quantize_checkpoint(source, target, config)
    written = open_checkpoint(target)
    for name, expected in packed().items():
        assert torch.equal(written.load(name), expected), name
    assert verify_checkpoint(target, source).ok


def test_openai_files_come_out_under_the_names_of_transformers(save: Save) -> None:
    layer = "block.0."
    rows = (4 + 2 + 2) * 16
    kept = {
        f"{layer}attn.qkv.weight": torch.arange(rows * H).reshape(rows, H).bfloat16(),
        f"{layer}attn.qkv.bias": torch.arange(rows).bfloat16(),
        f"{layer}attn.norm.scale": torch.ones(H).bfloat16(),
        f"{layer}mlp.gate.weight": torch.ones(E, H).bfloat16(),
        f"{layer}mlp.mlp1_bias": torch.ones(E, 2 * I).bfloat16(),
        "embedding.weight": torch.ones(8, H).bfloat16(),
        "unembedding.weight": torch.ones(8, H).bfloat16(),
    }
    names = {"gate_up_proj": "mlp1_weight", "down_proj": "mlp2_weight"}
    weights = {}
    for name, tensor in packed("", ".blocks", ".scales").items():
        part, kind = name.split(".")
        weights[f"{layer}mlp.{names[part]}.{kind}"] = tensor
    config = {
        "num_experts": E, "experts_per_token": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "rope_theta": 150000.0, "rope_scaling_factor": 32.0, "rope_ntk_alpha": 1.0, "rope_ntk_beta": 32.0,
        "initial_context_length": 4096,
    }  # fmt: skip
    source = save({**kept, **weights}, config=config)
    target = source.parent / "target"
    convert_checkpoint(source, target, "gpt-oss")
    written = open_checkpoint(target)
    for name, expected in packed().items():
        assert torch.equal(written.load(name), expected), name
    attention = "model.layers.0.self_attn."
    fused = kept[f"{layer}attn.qkv.weight"]
    assert torch.equal(written.load(f"{attention}q_proj.weight"), fused[:64])
    assert torch.equal(written.load(f"{attention}k_proj.weight"), fused[64:96])
    assert torch.equal(written.load(f"{attention}v_proj.weight"), fused[96:])
    assert torch.equal(written.load(f"{attention}v_proj.bias"), kept[f"{layer}attn.qkv.bias"][96:])
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.layers.0.input_layernorm.weight"} < set(
        written.tensors
    )
    assert written.config["model_type"] == "gpt_oss"
    assert (written.config["num_local_experts"], written.config["num_experts_per_tok"]) == (E, 2)
    assert written.config["rope_parameters"]["beta_fast"] == 32.0


def test_workers_convert_it_to_the_same_bytes(published: Path) -> None:
    with processes(2) as executor:
        convert_checkpoint(
            published, published.parent / "many", "mxfp4-core", max_shard_bytes=9000, executor=executor
        )
    convert_checkpoint(published, published.parent / "one", "mxfp4-core", max_shard_bytes=9000)
    files = sorted(path.name for path in (published.parent / "one").iterdir())
    assert len(files) > 3
    for name in files:
        one, many = (published.parent / folder / name for folder in ("one", "many"))
        assert one.read_bytes() == many.read_bytes(), name


PAIR = packed()
BAD: dict[str, tuple[dict[str, torch.Tensor], dict[str, Any], str]] = {
    "no experts": (others(), DESCRIBED, "no gpt-oss MXFP4 weight"),
    "another dialect's names": (
        {"a.weight_packed": torch.zeros(2, 16, dtype=torch.uint8), "a.weight_scale": torch.ones(2, 1).byte()},
        DESCRIBED,
        "'a.weight_packed' of dtype U8 is a name of compressed-tensors",
    ),
    "blocks without scales": (
        {f"{EXPERTS}down_proj_blocks": PAIR[f"{EXPERTS}down_proj_blocks"]},
        DESCRIBED,
        "without 'model.layers.0.mlp.experts.down_proj_scales'",
    ),
    "scales without blocks": (
        {**PAIR, "x_scales": PAIR[f"{EXPERTS}down_proj_scales"].clone()},
        DESCRIBED,
        "scales 'x_scales' without blocks",
    ),
    "blocks of another width": (
        {**PAIR, f"{EXPERTS}down_proj_blocks": torch.zeros(E, H, I // 32, 8, dtype=torch.uint8)},
        DESCRIBED,
        "[3, 64, 3, 8]",
    ),
    "scales of floats": ({**PAIR, f"{EXPERTS}down_proj_scales": torch.ones(E, H, I // 32)}, DESCRIBED, "F32"),
    "a list of numbers": (PAIR, {**DESCRIBED, "modules_to_not_convert": [3]}, "modules_to_not_convert"),
}


@pytest.mark.parametrize(("tensors", "described", "seen"), BAD.values(), ids=BAD.keys())
def test_what_contradicts_itself(
    save: Save, tensors: dict[str, torch.Tensor], described: dict[str, Any], seen: str
) -> None:
    checkpoint = open_checkpoint(save(tensors, config={**MODEL, "quantization_config": described}))
    with pytest.raises(DialectError) as caught:
        dialects.read(checkpoint)
    assert seen in caught.value.seen


@pytest.mark.parametrize(
    ("name", "config", "seen"),
    [
        ("block.0.mlp.extra", {}, "'block.0.mlp.extra' in the original layout"),
        ("block.0.attn.qkv.weight", {}, "with 0 heads"),
    ],
)
def test_openai_files_with_other_contents(save: Save, name: str, config: dict[str, Any], seen: str) -> None:
    weights = {
        "block.0.mlp.mlp2_weight.blocks": PAIR[f"{EXPERTS}down_proj_blocks"],
        "block.0.mlp.mlp2_weight.scales": PAIR[f"{EXPERTS}down_proj_scales"],
    }
    checkpoint = open_checkpoint(save({**weights, name: torch.ones(6, 2)}, config=config))
    with pytest.raises(DialectError) as caught:
        dialects.read(checkpoint)
    assert seen in caught.value.seen


def test_what_it_cannot_say(save: Save, dense: dict[str, torch.Tensor]) -> None:
    source = save(dense, config=MODEL)
    with pytest.raises(DialectError, match=r"proj\.weight.*cannot be written in the dialect gpt-oss"):
        quantize_checkpoint(source, source.parent / "target", Mxfp4Config(dialect="gpt-oss"))
    stacked = save(
        {"model.layers.0.mlp.experts.down_proj": torch.ones(2, 64, 32)}, config={"model_type": "llama4"}
    )
    with pytest.raises(DialectError, match="model_type 'llama4'"):
        quantize_checkpoint(stacked, source.parent / "target", Mxfp4Config(dialect="gpt-oss"))
    assert not (source.parent / "target").exists()


def test_transformers_reads_what_is_written(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")  # its own reader asks for it
    torch.manual_seed(4)
    config = transformers.GptOssConfig(
        hidden_size=H, intermediate_size=I, num_local_experts=E, num_experts_per_tok=2, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, vocab_size=32, max_position_embeddings=64,
    )  # fmt: skip
    model = transformers.GptOssForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "source")
    settings = Mxfp4Config.from_dict({"dialect": "gpt-oss", "ignore": ["self_attn"]})
    quantize_checkpoint(tmp_path / "source", tmp_path / "target", settings)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "target",
        quantization_config=transformers.Mxfp4Config(dequantize=True),
        dtype=torch.bfloat16,
    )
    for layer, mine in zip(model.model.layers, loaded.model.layers, strict=True):
        for name in ("gate_up_proj", "down_proj"):
            weight = getattr(layer.mlp.experts, name).detach()
            expected = quantize(weight.mT.contiguous()).dequantize(torch.bfloat16).mT
            assert torch.equal(getattr(mine.mlp.experts, name).detach(), expected), name
