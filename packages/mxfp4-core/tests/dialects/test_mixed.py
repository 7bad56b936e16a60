"""One folder with weights in several formats: MXFP4, MXFP8, FP8 and high precision."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mxfp4_core import dialects, quantize
from mxfp4_core.checkpoint.reader import open_checkpoint
from mxfp4_core.errors import DialectError
from mxfp4_core.jobs import convert_checkpoint, dequantize_checkpoint, verify_checkpoint

Save = Callable[..., Path]
LAYER = "model.layers.0."
TOKEN = {"dynamic": True, "num_bits": 8, "strategy": "token", "symmetric": True, "type": "float"}
FP8 = {"dynamic": False, "num_bits": 8, "symmetric": True, "type": "float"}
MX = {
    "dynamic": False, "group_size": 32, "num_bits": 4, "scale_dtype": "torch.uint8", "strategy": "group",
    "symmetric": True, "type": "float",
}  # fmt: skip


def group(format: str, weights: dict[str, Any], targets: list[str], inputs: Any = None) -> dict[str, Any]:
    return {
        "format": format, "input_activations": inputs, "output_activations": None, "targets": targets,
        "weights": weights,
    }  # fmt: skip


DESCRIBED = {
    "config_groups": {
        "group_0": group("mxfp4-pack-quantized", MX, ["Linear"]),
        "group_1": group(
            "mxfp8-quantized", {**MX, "num_bits": 8}, [f"{LAYER}mlp.down_proj"], {**MX, "num_bits": 8, "dynamic": True}
        ),
        "group_2": group("float-quantized", {**FP8, "strategy": "channel"}, [f"{LAYER}self_attn.q_proj"], TOKEN),
        "group_3": group(
            "float-quantized", {**FP8, "strategy": "block", "block_structure": [16, 32]}, [f"{LAYER}self_attn.k_proj"]
        ),
        "group_4": group("float-quantized", {**FP8, "strategy": "tensor"}, [f"{LAYER}self_attn.v_proj"]),
    },
    "format": "mixed-precision", "global_compression_ratio": None, "ignore": ["lm_head"], "kv_cache_scheme": None,
    "moe_sparsity_config": None, "quant_method": "compressed-tensors", "quantization_status": "compressed",
    "sparsity_config": {}, "transform_config": {}, "version": "0.20.0",
}  # fmt: skip
CONFIG = {"model_type": "llama", "quantization_config": DESCRIBED}


def stored() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    four = quantize(torch.randn(96, 64, generator=generator))
    eight = quantize(torch.randn(64, 96, generator=generator), format="mxfp8")

    def fp8(*grid: int) -> tuple[torch.Tensor, torch.Tensor]:
        scales = torch.rand(grid, generator=generator).add(0.5).bfloat16()
        return torch.randn(32, 64, generator=generator).to(torch.float8_e4m3fn), scales

    found = {
        f"{LAYER}mlp.up_proj.weight_packed": four.codes,
        f"{LAYER}mlp.up_proj.weight_scale": four.scales,
        f"{LAYER}mlp.down_proj.weight": eight.parts["codes"],
        f"{LAYER}mlp.down_proj.weight_scale": eight.parts["scales"],
        "lm_head.weight": torch.ones(8, 64).bfloat16(),
    }
    for part, grid in {"q": (32, 1), "k": (2, 2), "v": (1,)}.items():
        values, scales = fp8(*grid)
        found |= {
            f"{LAYER}self_attn.{part}_proj.weight": values,
            f"{LAYER}self_attn.{part}_proj.weight_scale": scales,
        }
    return found


def same(one: Path, two: Path) -> None:
    left, right = open_checkpoint(one), open_checkpoint(two)
    assert left.tensors.keys() == right.tensors.keys()
    for name, info in left.tensors.items():
        assert (info.dtype, info.shape) == (right.tensors[name].dtype, right.tensors[name].shape), name
        raw = [each.load(name).reshape(-1).view(torch.uint8) for each in (left, right)]
        assert torch.equal(*raw), name


def test_each_weight_has_its_format_and_all_come_back(save: Save) -> None:
    source = save(stored(), config=CONFIG)
    found = dialects.read(open_checkpoint(source))
    assert found is not None
    dialect, contents = found
    assert dialect.name == "compressed-tensors"
    assert {name: entry.format for name, entry in contents.entries.items()} == {
        f"{LAYER}mlp.up_proj.weight": "mxfp4",
        f"{LAYER}mlp.down_proj.weight": "mxfp8",
    }
    assert contents.entries[f"{LAYER}mlp.down_proj.weight"].activation == "mxfp8"
    blocks = {name.split(".")[-2][0]: each.block for name, each in contents.beside.items()}  # type: ignore[attr-defined]
    assert blocks == {"q": (1, 64), "k": (16, 32), "v": (32, 64)}
    assert verify_checkpoint(source).ok
    convert_checkpoint(source, source.parent / "again", "compressed-tensors")
    same(source, source.parent / "again")
    described = open_checkpoint(source.parent / "again").config["quantization_config"]
    groups = described.pop("config_groups")
    assert described == {key: value for key, value in DESCRIBED.items() if key != "config_groups"}
    wanted = DESCRIBED["config_groups"]
    assert isinstance(wanted, dict)
    told = [sorted(json.dumps(each, sort_keys=True) for each in one.values()) for one in (groups, wanted)]
    assert told[0] == told[1]


def test_their_own_schema_takes_it_and_decompresses_the_same(save: Save) -> None:
    quantization = pytest.importorskip("compressed_tensors.quantization")
    source = save(stored(), config=CONFIG)
    convert_checkpoint(source, source.parent / "again", "compressed-tensors")
    described = open_checkpoint(source.parent / "again").config["quantization_config"]
    assert len(quantization.QuantizationConfig.model_validate(described).config_groups) == 5
    mxfp8 = pytest.importorskip("compressed_tensors.compressors.mxfp8.base")
    scheme = quantization.QuantizationConfig.model_validate(described).config_groups["group_1"]
    written = open_checkpoint(source.parent / "again")
    name = f"{LAYER}mlp.down_proj.weight"
    state = {"weight": written.load(name), "weight_scale": written.load(f"{name}_scale")}
    values = mxfp8.MXFP8QuantizationCompressor.decompress(state, scheme)["weight"]
    dequantize_checkpoint(source, source.parent / "plain")
    assert torch.equal(values.bfloat16(), open_checkpoint(source.parent / "plain").load(name))


def test_fp8_is_dequantised_rounded_and_said(save: Save) -> None:
    source = save(stored(), config=CONFIG)
    result = dequantize_checkpoint(source, source.parent / "plain")
    assert len(result.notes) == 3 and all("rounded" in note for note in result.notes)
    plain, tensors = open_checkpoint(source.parent / "plain"), stored()
    name = f"{LAYER}self_attn.q_proj.weight"
    exact = tensors[name].double() * tensors[f"{name}_scale"].double()
    assert torch.equal(plain.load(name), exact.bfloat16())


def test_others_refuse_it_with_the_way_out(save: Save) -> None:
    source = save(stored(), config=CONFIG)
    with pytest.raises(DialectError, match=r"proj.*cannot be written in the dialect quark"):
        convert_checkpoint(source, source.parent / "quark", "quark")


BAD = {
    "FP8 without a group": ([0, 1], {}, "a group says how such weights are scaled"),
    "FP8 of another grid": ([0, 1, 2, 3, 4], {f"{LAYER}self_attn.k_proj.weight_scale": torch.ones(3, 3)}, "[3, 3]"),
    "MXFP8 of another grid": (
        [0, 1, 2, 3, 4], {f"{LAYER}mlp.down_proj.weight_scale": torch.ones(64, 2).byte()}, "[64, 2]"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("groups", "changed", "seen"), BAD.values(), ids=BAD.keys())
def test_what_contradicts_itself(
    save: Save, groups: list[int], changed: dict[str, torch.Tensor], seen: str
) -> None:
    wanted = DESCRIBED["config_groups"]
    assert isinstance(wanted, dict)
    chosen = {f"group_{number}": wanted[f"group_{number}"] for number in groups}
    config = {**CONFIG, "quantization_config": {**DESCRIBED, "config_groups": chosen}}
    with pytest.raises(DialectError) as caught:
        dialects.read(open_checkpoint(save({**stored(), **changed}, config=config)))
    assert seen in caught.value.seen + caught.value.rule


FP8_32 = {
    "quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "scale_fmt": "ue8m0",
    "weight_block_size": [32, 32], "expert_dtype": "fp4",
}  # fmt: skip


def test_deepseek_v41_has_its_dense_layers_in_blocks_of_32(save: Save) -> None:
    made = quantize(torch.randn(64, 96), profile="tilekernels")
    dense = torch.randn(70, 96).to(torch.float8_e4m3fn)
    scales = torch.randint(120, 130, (3, 3)).to(torch.uint8).view(torch.float8_e8m0fnu)
    tensors = {
        "layers.0.ffn.experts.0.w1.weight": made.codes.view(torch.int8),
        "layers.0.ffn.experts.0.w1.scale": made.scales.view(torch.float8_e8m0fnu),
        "layers.0.attn.wq_a.weight": dense,
        "layers.0.attn.wq_a.scale": scales,
        "norm.weight": torch.ones(96).bfloat16(),
    }
    config = {"model_type": "deepseek_v41", "quantization_config": FP8_32}
    source = save(tensors, config=config)
    found = dialects.read(open_checkpoint(source))
    assert found is not None
    assert (found[0].name, len(found[1].entries), len(found[1].beside)) == ("deepseek-v4", 1, 1)
    convert_checkpoint(source, source.parent / "again", "deepseek-v4")
    same(source, source.parent / "again")
    assert open_checkpoint(source.parent / "again").config == config
    dequantize_checkpoint(source, source.parent / "plain")
    spread = scales.double().repeat_interleave(32, 0)[:70].repeat_interleave(32, 1)
    plain = open_checkpoint(source.parent / "plain").load("layers.0.attn.wq_a.weight")
    assert torch.equal(plain.double(), dense.double() * spread)
