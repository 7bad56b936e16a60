from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mxfp4_core import Mxfp4Config, dialects, quantize
from mxfp4_core.checkpoint.reader import open_checkpoint
from mxfp4_core.dialects.beside import Beside
from mxfp4_core.dialects.recipes import Read
from mxfp4_core.errors import DialectError
from mxfp4_core.jobs import convert_checkpoint, quantize_checkpoint, verify_checkpoint

Save = Callable[..., Path]
FP8 = {
    "quant_method": "fp8",
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "scale_fmt": "ue8m0",
    "weight_block_size": [128, 128],
}
MODEL: dict[str, Any] = {"model_type": "deepseek_v4", "expert_dtype": "fp4", "quantization_config": FP8}
DENSE = "layers.0.attn.wq_a.weight"


def packed(end: str = ".scale", module: str = "layers.0.ffn.experts.{}.w1") -> dict[str, torch.Tensor]:
    found = {}
    for expert in range(2):
        made = quantize(
            torch.randn(32, 64, generator=torch.Generator().manual_seed(expert)), profile="tilekernels"
        )
        name = module.format(expert)
        found[f"{name}.weight"] = made.codes.view(torch.int8)
        found[f"{name}{end}"] = made.scales.view(torch.float8_e8m0fnu)
    return found


def blocks(end: str = ".scale") -> dict[str, torch.Tensor]:
    """An FP8 weight of 130 x 200: blocks at the edges are not whole."""
    every = torch.arange(256, dtype=torch.uint8).repeat(102)[: 130 * 200].reshape(130, 200)
    every = torch.where(every & 0x7F == 0x7F, 0, every)  # no NaN
    scales = torch.tensor([[120, 127], [133, 100]], dtype=torch.uint8)
    name = DENSE.removesuffix(".weight")
    return {DENSE: every.view(torch.float8_e4m3fn), f"{name}{end}": scales.view(torch.float8_e8m0fnu)}


def high() -> dict[str, torch.Tensor]:
    return {"norm.weight": torch.ones(64).bfloat16()}


def widened() -> torch.Tensor:
    stored = blocks()
    scale = stored[DENSE.replace("weight", "scale")].float()
    return stored[DENSE].float() * scale.repeat_interleave(128, 0)[:130].repeat_interleave(128, 1)[:, :200]


@pytest.mark.parametrize("end", [".scale", ".weight_scale_inv"])
def test_both_namings_are_read(save: Save, end: str) -> None:
    checkpoint = open_checkpoint(save({**packed(end), **blocks(end), **high()}, config=MODEL))
    found = dialects.read(checkpoint)
    assert found is not None
    dialect, contents = found
    assert (dialect.name, contents.activation) == ("deepseek-v4", "fp8")
    assert set(contents.entries) == {f"layers.0.ffn.experts.{e}.w1.weight" for e in range(2)}
    entry = contents.entries["layers.0.ffn.experts.1.w1.weight"]
    codes, scales = (entry.parts[part].load(checkpoint) for part in ("codes", "scales"))
    assert torch.equal(codes.view(torch.int8), packed()[entry.weight])
    assert scales.dtype == torch.uint8
    assert set(contents.tensors) == set(high())
    assert contents.model is not None and "expert_dtype" not in contents.model
    beside = contents.beside[DENSE]
    assert beside.block == (128, 128)
    assert torch.equal(beside.widened.load(checkpoint).float(), widened())
    assert torch.equal(beside.widened.load(checkpoint, 120, 130).float(), widened()[120:])


def test_merged_experts_and_the_newer_place_of_expert_dtype(save: Save) -> None:
    made = quantize(torch.randn(2, 64, 64))
    tensors = {
        "experts.gate_up_proj": made.codes.view(torch.int8),
        "experts.gate_up_proj_scale_inv": made.scales.view(torch.float8_e8m0fnu),
    }
    inside = {"model_type": "deepseek_v41", "quantization_config": {**FP8, "expert_dtype": "fp4"}}
    source = save(tensors, config=inside)
    target = source.parent / "target"
    convert_checkpoint(source, target, "deepseek-v4")
    one, two = open_checkpoint(source), open_checkpoint(target)
    assert two.config == inside
    assert all(torch.equal(one.load(n).view(torch.uint8), two.load(n).view(torch.uint8)) for n in tensors)
    found = dialects.read(one)
    assert found is not None and found[1].entries["experts.gate_up_proj"].shape == (2, 64, 64)


def test_through_compressed_tensors_and_back(save: Save) -> None:
    source = save({**packed(), **high()}, config=MODEL)
    via, again = source.parent / "via", source.parent / "again"
    convert_checkpoint(source, via, "compressed-tensors")
    middle = open_checkpoint(via)
    assert "expert_dtype" not in middle.config
    assert middle.tensors["layers.0.ffn.experts.0.w1.weight_scale"].dtype == "U8"
    assert verify_checkpoint(via).ok
    convert_checkpoint(via, again, "deepseek-v4")
    before, after = open_checkpoint(source), open_checkpoint(again)
    assert after.config == MODEL
    assert before.tensors.keys() == after.tensors.keys()
    for name, info in before.tensors.items():
        assert after.tensors[name].dtype == info.dtype
        assert torch.equal(before.load(name).view(torch.uint8), after.load(name).view(torch.uint8)), name


def test_fp8_weights_are_kept_or_widened(save: Save) -> None:
    source = save({**packed(), **blocks(), **high()}, config=MODEL)
    target = source.parent / "target"
    with pytest.raises(
        DialectError, match=r"wq_a\.weight.*cannot be written in the dialect compressed-tensors"
    ):
        convert_checkpoint(source, target, "compressed-tensors")
    assert not target.exists()
    convert_checkpoint(source, target, "compressed-tensors", beside="widen")
    written = open_checkpoint(target)
    assert written.tensors[DENSE].dtype == "BF16"
    assert torch.equal(written.load(DENSE).float(), widened())
    assert DENSE.removesuffix(".weight") in written.config["quantization_config"]["ignore"]
    kept = source.parent / "kept"
    convert_checkpoint(source, kept, "deepseek-v4")
    again = open_checkpoint(kept)
    for name, info in open_checkpoint(source).tensors.items():
        assert again.tensors[name].dtype == info.dtype
    assert again.config == MODEL


class Memory:
    def __init__(self, **tensors: torch.Tensor) -> None:
        self.tensors = tensors

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        buffer[:] = self.tensors[name].reshape(-1).view(torch.uint8).numpy()[start : start + len(buffer)].data


def beside(dtype: str = "F8_E8M0") -> Beside:
    return Beside("w", Read("F8_E4M3", (2, 256), "v"), Read(dtype, (1, 1), "s"), (128, 256))


def test_every_value_at_every_scale_of_bfloat16_is_exact() -> None:
    """E4M3 times 2**k is BF16 without rounding for every k that keeps it in range: all 256 values, 118 to 254 - 8."""
    values = torch.arange(256, dtype=torch.uint8).repeat(2, 1)
    for byte in range(3, 247):
        memory = Memory(v=values, s=torch.tensor([[byte]], dtype=torch.uint8))
        made = beside().widened.load(memory)
        exact = values.view(torch.float8_e4m3fn).double() * 2.0 ** (byte - 127)
        assert torch.equal(made.double().nan_to_num(7.0), exact.nan_to_num(7.0)), byte


@given(scale=st.floats(0.0009765625, 1024.0, width=32))
def test_a_scale_that_is_no_power_of_two_is_refused_where_it_rounds(scale: float) -> None:
    values = torch.arange(256, dtype=torch.uint8).repeat(2, 1)
    memory = Memory(v=values, s=torch.tensor([[scale]]))
    exact = values.view(torch.float8_e4m3fn).double() * scale
    finite = exact[~exact.isnan()]
    if torch.equal(finite.bfloat16().double(), finite):
        assert torch.equal(beside("F32").widened.load(memory).double().nan_to_num(7.0), exact.nan_to_num(7.0))
    else:
        with pytest.raises(DialectError, match="'w' cannot be widened to BF16"):
            beside("F32").widened.load(memory)


@pytest.mark.parametrize("byte", [0, 247, 254])
def test_products_outside_of_bfloat16_are_refused(byte: int) -> None:
    memory = Memory(
        v=torch.full((2, 256), 0x7E, dtype=torch.uint8), s=torch.tensor([[byte]], dtype=torch.uint8)
    )
    if byte == 0:
        memory.tensors["v"] = torch.full((2, 256), 0x03, dtype=torch.uint8)  # 3 * 2**-9
    with pytest.raises(DialectError, match="cannot be widened to BF16"):
        beside().widened.load(memory)


def test_a_scale_of_nan_gives_nan() -> None:
    memory = Memory(v=torch.ones(2, 256, dtype=torch.uint8), s=torch.tensor([[255]], dtype=torch.uint8))
    assert beside().widened.load(memory).isnan().all()


BAD: dict[str, tuple[dict[str, torch.Tensor], dict[str, Any], str]] = {
    "no experts": ({"a.weight": torch.ones(4, 64)}, MODEL, "no weight in I8"),
    "codes without scales": (
        {n: t for n, t in packed().items() if "0.w1.scale" not in n},
        MODEL,
        "'layers.0.ffn.experts.0.w1.weight' of dtype I8 without scales",
    ),
    "scales without codes": (
        {**packed(), "x.scale": torch.ones(2, 2).to(torch.float8_e8m0fnu)},
        MODEL,
        "scales 'x.scale' without codes",
    ),
    "scales of another shape": (
        {**packed(), "layers.0.ffn.experts.0.w1.scale": torch.ones(32, 3).to(torch.float8_e8m0fnu)},
        MODEL,
        "[32, 3]",
    ),
    "FP8 without scales": ({**packed(), DENSE: blocks()[DENSE]}, MODEL, "F8_E4M3 without scales"),
    "FP8 of another grid": (
        {**packed(), **blocks()},
        {**MODEL, "quantization_config": {**FP8, "weight_block_size": [64, 64]}},
        "[130, 200]",
    ),
    "FP8 without block sizes": (
        {**packed(), **blocks()},
        {**MODEL, "quantization_config": {**FP8, "weight_block_size": None}},
        "weight_block_size = None",
    ),
}


@pytest.mark.parametrize(("tensors", "config", "seen"), BAD.values(), ids=BAD.keys())
def test_what_contradicts_itself(
    save: Save, tensors: dict[str, torch.Tensor], config: dict[str, Any], seen: str
) -> None:
    checkpoint = open_checkpoint(save(tensors, config=config))
    with pytest.raises(DialectError) as caught:
        dialects.read(checkpoint)
    assert seen in caught.value.seen


def test_plain_fp8_is_not_taken_for_it(save: Save) -> None:
    config = {"quantization_config": FP8}
    checkpoint = open_checkpoint(save({**blocks(), **high()}, config=config))
    with pytest.raises(DialectError, match=r"FP8 \(DeepSeek style\)"):
        dialects.read(checkpoint)
    by_dtype = open_checkpoint(save({**packed(), **high()}, config=config, name="packed"))
    found = dialects.read(by_dtype)
    assert found is not None and found[0].name == "deepseek-v4"


def test_experts_are_quantised_into_it(save: Save) -> None:
    name = "layers.0.ffn.experts.0.w1"
    weight = torch.randn(32, 64)
    source = save({f"{name}.weight": weight}, config={"model_type": "deepseek_v4"})
    target = source.parent / "target"
    quantize_checkpoint(source, target, Mxfp4Config.from_dict({"dialect": "deepseek-v4"}))
    written = open_checkpoint(target)
    assert (written.tensors[f"{name}.weight"].dtype, written.tensors[f"{name}.scale"].dtype) == (
        "I8",
        "F8_E8M0",
    )
    assert torch.equal(written.load(f"{name}.weight").view(torch.uint8), quantize(weight).codes)
    assert verify_checkpoint(target, source).ok
    with pytest.raises(DialectError, match="model_type 'llama'"):
        other = save({f"{name}.weight": weight}, config={"model_type": "llama"}, name="other")
        quantize_checkpoint(other, source.parent / "no", Mxfp4Config.from_dict({"dialect": "deepseek-v4"}))
