from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mxfp4_core import Mxfp4Config, dequantize, quantize
from mxfp4_core.checkpoint.reader import open_checkpoint
from mxfp4_core.errors import DialectError
from mxfp4_core.jobs import (
    convert_checkpoint,
    dequantize_checkpoint,
    processes,
    quantize_checkpoint,
    verify_checkpoint,
)

Save = Callable[..., Path]
EXPERTS = "model.layers.0.mlp.experts.down_proj"


@pytest.fixture
def source(save: Save, dense: dict[str, torch.Tensor]) -> Path:
    dense["model.layers.1.mlp.up_proj.weight"] = torch.randn(8, 40).bfloat16()  # K is padded
    dense[EXPERTS] = torch.randn(2, 96, 64).bfloat16()
    return save(dense, config={"model_type": "gpt_oss", "dtype": "bfloat16"})  # experts with K before N


def quantised(source: Path) -> Path:
    folder = source.parent / "quantised"
    quantize_checkpoint(source, folder, Mxfp4Config.from_dict({"dialect": "mxfp4-core", "tail": "pad"}))
    return folder


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_values_come_back_under_the_names_and_axes_of_the_model(source: Path, dtype: str) -> None:
    folder = quantised(source)
    result = dequantize_checkpoint(folder, source.parent / "plain", dtype=dtype)  # type: ignore[arg-type]
    before, after = open_checkpoint(source), open_checkpoint(source.parent / "plain")
    assert result.notes == () and result.quantized == 0
    assert {n: i.shape for n, i in before.tensors.items()} == {n: i.shape for n, i in after.tensors.items()}
    assert after.config == before.config
    exact = getattr(torch, dtype)
    for name in before.tensors:
        weight, made = before.load(name), after.load(name)
        if "proj.weight" in name:
            assert torch.equal(made, quantize(weight, tail="pad").dequantize(exact)), name
        elif name == EXPERTS:
            assert torch.equal(made, quantize(weight.mT.contiguous()).dequantize(exact).mT), name
        else:
            assert torch.equal(made, weight), name


def test_what_is_dequantised_is_quantised_to_the_same_bytes(source: Path) -> None:
    """MXFP4 values are their own nearest, whatever scale a block gets then."""
    folder, plain = quantised(source), source.parent / "plain"
    dequantize_checkpoint(folder, plain)
    again = source.parent / "again"
    quantize_checkpoint(plain, again, Mxfp4Config.from_dict({"dialect": "mxfp4-core", "tail": "pad"}))
    one, two = open_checkpoint(folder), open_checkpoint(again)
    for name in one.tensors:
        if name.endswith("_scale"):
            continue
        scale = f"{name}_scale"
        if scale in one.tensors:
            left, right = (dequantize(c.load(name), c.load(scale), torch.float32) for c in (one, two))
            assert torch.equal(left, right), name


@pytest.mark.parametrize("dialect", ["quark", "compressed-tensors"])
def test_shared_experts_become_mxfp4_beside_routed_ones_that_keep_their_values(
    save: Save, dialect: str
) -> None:
    """A folder with shared experts in BF16 is made whole through BF16: docs/loading.md."""
    torch.manual_seed(3)
    mlp, parts = "model.layers.0.mlp", ("gate_proj", "up_proj", "down_proj")
    routed = [f"{mlp}.experts.{expert}.{part}" for expert in range(2) for part in parts]
    shared = [f"{mlp}.shared_expert.{part}" for part in parts]
    weights = {f"{name}.weight": torch.randn(64, 64).bfloat16() for name in [*routed, *shared]}
    for name in routed:  # blocks of every magnitude, as vendors' rules make them, too
        weights[f"{name}.weight"] *= 2.0 ** torch.randint(-30, 8, (64, 1))
    kept = {f"{mlp}.shared_expert_gate.weight": torch.randn(1, 64).bfloat16()}
    kept["model.layers.0.self_attn.q_proj.weight"] = torch.randn(64, 64).bfloat16()
    source = save(weights | kept, config={"model_type": "qwen2_moe", "dtype": "bfloat16"})
    first, wide, whole = (source.parent / name for name in ("first", "wide", "whole"))

    def config(*targets: str) -> Mxfp4Config:
        return Mxfp4Config.from_dict({"dialect": dialect, "rule": "floor", "targets": [*targets]})

    quantize_checkpoint(source, first, config("*.experts.*"))
    with pytest.raises(DialectError, match="quantised already"):
        quantize_checkpoint(first, whole, config("*.shared_expert*.*_proj"))
    dequantize_checkpoint(first, wide)
    quantize_checkpoint(wide, whole, config("*.experts.*", "*.shared_expert*.*_proj"))
    key = "weight" if dialect == "quark" else "weight_packed"
    before, after = open_checkpoint(first), open_checkpoint(whole)
    for name in routed:
        one, two = (
            dequantize(each.load(f"{name}.{key}"), each.load(f"{name}.weight_scale"), torch.float32)
            for each in (before, after)
        )
        assert torch.equal(one, two), name
    for name in shared:
        assert torch.equal(before.load(f"{name}.weight"), weights[f"{name}.weight"]), name
        want = quantize(weights[f"{name}.weight"], profile="floor/even")
        assert torch.equal(after.load(f"{name}.{key}"), want.codes), name
        assert torch.equal(after.load(f"{name}.weight_scale"), want.scales), name
    assert all(torch.equal(after.load(name), weight) for name, weight in kept.items())


def test_workers_give_the_same_bytes(source: Path) -> None:
    folder = quantised(source)
    with processes(2) as executor:
        dequantize_checkpoint(folder, source.parent / "many", max_shard_bytes=9000, executor=executor)
    dequantize_checkpoint(folder, source.parent / "one", max_shard_bytes=9000)
    for path in (source.parent / "one").iterdir():
        assert path.read_bytes() == (source.parent / "many" / path.name).read_bytes(), path.name


def test_what_bfloat16_does_not_have_is_an_error(save: Save) -> None:
    scales = torch.full((4, 1), 254, dtype=torch.uint8)  # 6 x 2**127 is larger than all of BF16
    tensors = {"a.weight": torch.full((4, 16), 0x77, dtype=torch.uint8), "a.weight_scale": scales}
    folder = save(tensors, config={"quantization_config": {"quant_method": "mxfp4-core"}})
    with pytest.raises(DialectError, match=r"'a\.weight' cannot be widened to BF16"):
        dequantize_checkpoint(folder, folder.parent / "plain")
    assert not (folder.parent / "plain" / "model.safetensors").exists()


def test_a_layer_that_multiplies_its_input_is_refused(save: Save) -> None:
    made = quantize(torch.randn(4, 64))
    tensors = {"a.weight": made.codes, "a.weight_scale": made.scales, "a.weight_input_scale": torch.ones(64)}
    described = {"quant_method": "mxfp4-core", "weights_format": "mxfp4+input_scale"}
    folder = save(tensors, config={"quantization_config": described})
    with pytest.raises(DialectError, match="multiplies the input first"):
        dequantize_checkpoint(folder, folder.parent / "plain")


def test_high_precision_is_refused(source: Path) -> None:
    with pytest.raises(DialectError, match="no quantised weights"):
        dequantize_checkpoint(source, source.parent / "plain")


def test_the_result_of_a_conversion_has_the_same_values(save: Save, dense: dict[str, torch.Tensor]) -> None:
    linear = save(dense, name="linear", config={"model_type": "llama"})
    quantize_checkpoint(
        linear, linear.parent / "ct", Mxfp4Config.from_dict({"dialect": "compressed-tensors"})
    )
    convert_checkpoint(linear.parent / "ct", linear.parent / "ar", "auto-round")
    assert verify_checkpoint(linear.parent / "ar").ok
    for name in ("ct", "ar"):
        dequantize_checkpoint(linear.parent / name, linear.parent / f"{name}-plain")
    one, two = (open_checkpoint(linear.parent / f"{name}-plain") for name in ("ct", "ar"))
    assert one.tensors.keys() == two.tensors.keys() == dense.keys()
    assert all(torch.equal(one.load(name), two.load(name)) for name in dense)
