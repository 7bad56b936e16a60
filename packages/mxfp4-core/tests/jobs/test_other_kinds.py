"""MXFP4 to FP8 and NVFP4, exact or refused; FP8 and NVFP4 to MXFP4, with the error of each weight."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mxfp4_core import dequantize, dialects, quantize
from mxfp4_core.checkpoint.reader import open_checkpoint
from mxfp4_core.dialects.base import Entry
from mxfp4_core.dialects.narrow import narrow_kind, read_narrow
from mxfp4_core.dialects.recipes import Read
from mxfp4_core.dialects.recoded import exponents_of, fp8_of, nvfp4_of
from mxfp4_core.dialects.source import Source
from mxfp4_core.errors import DialectError
from mxfp4_core.jobs import convert_checkpoint, dequantize_checkpoint

Save = Callable[..., Path]
NAME = "model.layers.0.self_attn.q_proj.weight"


class Memory:
    def __init__(self, codes: torch.Tensor, scales: torch.Tensor) -> None:
        self.tensors = {"codes": codes, "scales": scales}
        self.entry = Entry(
            NAME,
            (codes.shape[0], codes.shape[1] * 2),
            {name: Read("U8", tuple(one.shape), name) for name, one in self.tensors.items()},
        )

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        data = self.tensors[name].reshape(-1).contiguous().numpy()
        buffer[:] = data[start : start + len(buffer)].data

    @property
    def values(self) -> torch.Tensor:
        codes, scales = self.tensors["codes"], self.tensors["scales"]
        elements = dequantize(codes, torch.full_like(scales, 127), torch.float32).double()
        return elements * torch.exp2(scales.double() - 127).repeat_interleave(
            32, 1
        )  # 6 x 2**126 is no float32


def weight(n: int, k: int, low: int, high: int, seed: int = 1) -> Memory:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (n, k // 2), generator=generator).to(torch.uint8)
    scales = torch.randint(low, high + 1, (n, k // 32), generator=generator).to(torch.uint8)
    scales[0, 0], scales[-1, 0], codes[0], codes[-1] = low, high, 0x17, 0x17
    return Memory(codes, scales)


def fp8_values(memory: Memory, *, lossy: bool = False) -> torch.Tensor:
    values, scales = (recipe.load(memory) for recipe in fp8_of(memory.entry, lossy=lossy))
    n, k = memory.entry.shape
    grid = scales.double().repeat_interleave(128, 0)[:n].repeat_interleave(128, 1)[:, :k]
    return values.double() * grid


@given(st.integers(1, 247), st.integers(0, 6), st.integers(1, 300), st.integers(1, 9), st.integers(0, 9))
@example(247, 6, 1, 1, 0)  # values beyond float32
@settings(max_examples=25)
def test_fp8_is_exact_where_scales_span_six_steps(
    low: int, span: int, n: int, blocks: int, seed: int
) -> None:
    memory = weight(n, blocks * 32, low, low + span, seed)
    assert torch.equal(fp8_values(memory), memory.values)
    piece = fp8_of(memory.entry, lossy=False)[0].load(memory, n // 2, n)
    assert torch.equal(piece.double(), fp8_of(memory.entry, lossy=False)[0].load(memory).double()[n // 2 :])


def test_fp8_with_seven_steps_is_refused_or_rounded() -> None:
    memory = weight(130, 64, 120, 127)
    memory.tensors["scales"][128:] = 100  # a block of its own
    memory.tensors["scales"][5, 0], memory.tensors["codes"][5] = 127, 0x17
    with pytest.raises(DialectError, match="span 7 steps") as caught:
        fp8_values(memory)
    assert NAME in caught.value.what and "--lossy" in caught.value.fix
    made, exact = fp8_values(memory, lossy=True), memory.values
    assert torch.allclose(made, exact, rtol=2**-4, atol=0) and (made[128:] == exact[128:]).all()


def test_blocks_of_zeros_count_for_nothing() -> None:
    memory = weight(128, 64, 120, 122)
    memory.tensors["codes"][7] = 0x80  # both zeros
    memory.tensors["scales"][7] = 0
    assert torch.equal(fp8_values(memory), memory.values)
    memory.tensors["codes"][:] = 0
    assert (fp8_values(memory) == 0).all() and exponents_of(memory.entry, memory) is None


def nvfp4_values(memory: Memory, *, lossy: bool = False) -> torch.Tensor:
    largest = (exponents_of(memory.entry, memory) or (0, 0))[1]
    codes, scales, number = (r.load(memory) for r in nvfp4_of(memory.entry, largest, lossy=lossy))
    ones = torch.full((codes.shape[0], codes.shape[1] // 16), 127, dtype=torch.uint8)
    return (
        dequantize(codes, ones, torch.float32).double()
        * scales.double().repeat_interleave(16, 1)
        / number.double()
    )


@given(st.integers(0, 237), st.integers(0, 17), st.integers(1, 40), st.integers(1, 5), st.integers(0, 9))
@settings(max_examples=25)
def test_nvfp4_is_exact_where_scales_span_17_steps(
    low: int, span: int, n: int, blocks: int, seed: int
) -> None:
    memory = weight(n, blocks * 32, low, low + span, seed)
    assert torch.equal(nvfp4_values(memory), memory.values)


def test_nvfp4_with_18_steps_is_refused_or_rounded() -> None:
    memory = weight(64, 64, 110, 128)
    with pytest.raises(DialectError, match="span 18 steps"):
        nvfp4_values(memory)
    made, exact = nvfp4_values(memory, lossy=True), memory.values
    small = 2.0 ** (110 - 127)
    assert torch.allclose(made, exact, rtol=0, atol=small) and not torch.equal(made, exact)


def same(one: Path, two: Path) -> bool:
    left, right = open_checkpoint(one), open_checkpoint(two)
    assert left.tensors.keys() == right.tensors.keys()
    return all(torch.equal(left.load(name), right.load(name)) for name in left.tensors)


LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
NATIVE = {**LLAMA, "quantization_config": {"quant_method": "mxfp4-core"}}


@pytest.fixture
def native(save: Save, dense: dict[str, torch.Tensor]) -> Path:
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in dense.items():
        if "proj.weight" in name:
            made = quantize(tensor)
            tensors |= {name: made.codes, f"{name}_scale": made.scales}
        else:
            tensors[name] = tensor
    return save(tensors, config=NATIVE, name="native")


@pytest.mark.parametrize("to", ["fp8", "nvfp4"])
def test_a_checkpoint_has_the_same_values_and_comes_back(native: Path, to: str) -> None:
    folder = native.parent
    result = convert_checkpoint(native, folder / to, to)
    assert (result.quantized, result.format, result.errors) == (7, to, {})
    source = Source.of(open_checkpoint(folder / to))
    kind = narrow_kind(source)
    assert kind == to.upper()
    assert len(read_narrow(source, kind).beside) == 7
    dequantize_checkpoint(native, folder / "plain")
    dequantize_checkpoint(folder / to, folder / f"{to}-plain")
    assert same(folder / "plain", folder / f"{to}-plain")
    back = convert_checkpoint(folder / to, folder / "back", "mxfp4-core")
    assert back.quantized == 7 and "lossy" in back.notes[0]
    assert set(back.errors.values()) == {math.inf}  # what was MXFP4 once is its own nearest
    assert (
        convert_checkpoint(native, folder / f"{to}-lossy", to, lossy=True).errors.keys() == back.errors.keys()
    )


def test_weights_that_engines_fuse_share_a_number(native: Path) -> None:
    convert_checkpoint(native, native.parent / "nv", "nvfp4")
    found = open_checkpoint(native.parent / "nv")
    numbers = [found.load(f"model.layers.0.self_attn.{part}_proj.weight_global_scale") for part in "qkv"]
    assert numbers[0] == numbers[1] == numbers[2]


def fp8(tensor: torch.Tensor, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    n, k = tensor.shape
    scales = torch.ones(-(-n // rows), -(-k // columns))
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            block = tensor[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
            scales[i, j] = block.abs().max().float() / 448
    spread = scales.repeat_interleave(rows, 0)[:n].repeat_interleave(columns, 1)[:, :k]
    return (tensor.float() / spread).to(torch.float8_e4m3fn), scales


CT_FP8 = {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}, "targets": ["Linear"]}
SOURCES: dict[str, tuple[dict[str, Any], int, int, str]] = {
    "blocks": ({"quant_method": "fp8", "weight_block_size": [16, 48]}, 16, 48, "_scale_inv"),
    "rows": ({"quant_method": "compressed-tensors", "config_groups": {"a": CT_FP8}}, 1, 64, "_scale"),
    "tensor": ({"quant_method": "modelopt", "quant_algo": "FP8"}, 32, 64, "_scale"),
}


@pytest.mark.parametrize(("described", "rows", "columns", "end"), SOURCES.values(), ids=SOURCES.keys())
def test_fp8_is_dequantised_and_quantised_anew(
    save: Save, described: dict[str, Any], rows: int, columns: int, end: str
) -> None:
    original = torch.randn(32, 64, generator=torch.Generator().manual_seed(3)).bfloat16()
    values, scales = fp8(original, rows, columns)
    tensors = {NAME: values, f"{NAME}{end}": scales, "lm_head.weight": torch.ones(8, 64).bfloat16()}
    source = save(tensors, config={**LLAMA, "quantization_config": described})
    result = convert_checkpoint(source, source.parent / "mx", "compressed-tensors")
    assert "quantised anew" in result.notes[0] and 15 < result.errors[NAME] < 25
    found = dialects.read(open_checkpoint(source.parent / "mx"))
    assert found is not None and set(found[1].entries) == {NAME} and "lm_head" in found[1].kept
    again = dequantize_checkpoint(source, source.parent / "plain")
    assert "rounded" in again.notes[0]
    made = open_checkpoint(source.parent / "plain").load(NAME).float()
    spread = scales.repeat_interleave(rows, 0)[:32].repeat_interleave(columns, 1)[:, :64]
    assert torch.equal(made, (values.double() * spread.double()).bfloat16().float())


@pytest.mark.parametrize("vendor", ["modelopt", "compressed-tensors"])
def test_nvfp4_is_dequantised_and_quantised_anew(save: Save, vendor: str) -> None:
    made = quantize(torch.randn(32, 64, generator=torch.Generator().manual_seed(3)))
    scales = (torch.rand(32, 4, generator=torch.Generator().manual_seed(4)) * 400 + 20).to(
        torch.float8_e4m3fn
    )
    if vendor == "modelopt":
        tensors = {NAME: made.codes, f"{NAME}_scale": scales, f"{NAME}_scale_2": torch.tensor(0.003)}
        described: dict[str, Any] = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
        outer = torch.tensor(0.003).double()
    else:
        tensors = {
            f"{NAME}_packed": made.codes,
            f"{NAME}_scale": scales,
            f"{NAME}_global_scale": torch.tensor([333.0]),
        }
        weights = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
        described = {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": weights}}}
        outer = 1 / torch.tensor(333.0).double()
    source = save(tensors, config={**LLAMA, "quantization_config": described})
    dequantize_checkpoint(source, source.parent / "plain", dtype="float32")
    ones = torch.full((32, 2), 127, dtype=torch.uint8)
    expected = (
        dequantize(made.codes, ones, torch.float32).double()
        * scales.double().repeat_interleave(16, 1)
        * outer
    )
    got = open_checkpoint(source.parent / "plain").load(NAME).double()
    assert torch.allclose(got, expected, rtol=1e-7, atol=0)
    result = convert_checkpoint(source, source.parent / "mx", "mxfp4-core")
    assert 10 < result.errors[NAME] < 30


BAD: dict[str, tuple[dict[str, torch.Tensor], dict[str, Any], str]] = {
    "FP8 without scales": ({NAME: torch.ones(32, 64).to(torch.float8_e4m3fn)}, {"quant_method": "fp8"}, "without"),
    "scales for no block": (
        {NAME: torch.ones(32, 64).to(torch.float8_e4m3fn), f"{NAME}_scale_inv": torch.ones(3, 5)},
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        "[3, 5]",
    ),
    "nothing": ({NAME: torch.ones(32, 64)}, {"quant_method": "fp8"}, "no weight in it"),
    "NVFP4 of another grid": (
        {NAME: torch.ones(32, 32).byte(), f"{NAME}_scale": torch.ones(32, 3).to(torch.float8_e4m3fn),
         f"{NAME}_scale_2": torch.ones(1)},
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        "(32, 3)",
    ),
    "NVFP4 without codes": (
        {f"{NAME}_scale_2": torch.ones(1)}, {"quant_method": "modelopt", "quant_algo": "NVFP4"}, "without"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("tensors", "described", "seen"), BAD.values(), ids=BAD.keys())
def test_what_contradicts_itself(
    save: Save, tensors: dict[str, torch.Tensor], described: dict[str, Any], seen: str
) -> None:
    source = save(tensors, config={**LLAMA, "quantization_config": described})
    for job in (dequantize_checkpoint, lambda one, two: convert_checkpoint(one, two, "mxfp4-core")):
        with pytest.raises(DialectError) as caught:
            job(source, source.parent / "no")
        assert seen in caught.value.seen


EXPERTS = "model.layers.0.mlp.experts"


def stack(**described: object) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """Return three experts, stacked, in our own dialect, and its config."""
    generator = torch.Generator().manual_seed(11)
    made = {
        "gate_up_proj": quantize(torch.randn(3, 320, 64, generator=generator)),
        "down_proj": quantize(torch.randn(3, 64, 160, generator=generator)),
    }
    tensors = {f"{EXPERTS}.{name}": each.codes for name, each in made.items()}
    tensors |= {f"{EXPERTS}.{name}_scale": each.scales for name, each in made.items()}
    settings = {"quant_method": "mxfp4-core", **described}
    return tensors, {"model_type": "qwen3_moe", "num_experts": 3, "quantization_config": settings}


@pytest.mark.parametrize("to", ["fp8", "nvfp4"])
@pytest.mark.parametrize("turns", [False, True])
def test_stacks_of_experts_are_written_one_by_one(save: Save, to: str, turns: bool) -> None:
    tensors, config = stack(**({"interleaved": [f"{EXPERTS}.gate_up_proj"]} if turns else {}))
    native = save(tensors, config=config, name="stacks")
    folder = native.parent
    result = convert_checkpoint(native, folder / to, to, lossy=True)
    assert result.quantized == 9 and set(result.errors.values()) == {math.inf}
    dequantize_checkpoint(native, folder / "plain")
    dequantize_checkpoint(folder / to, folder / "singly")
    whole, single = open_checkpoint(folder / "plain"), open_checkpoint(folder / "singly")
    both, down = whole.load(f"{EXPERTS}.gate_up_proj"), whole.load(f"{EXPERTS}.down_proj")
    gate, up = (both[:, 0::2], both[:, 1::2]) if turns else (both[:, :160], both[:, 160:])
    assert len(single.tensors) == 9
    for number in range(3):
        for name, values in (("gate", gate), ("up", up), ("down", down)):
            assert torch.equal(single.load(f"{EXPERTS}.{number}.{name}_proj.weight"), values[number])


def test_what_they_do_not_take(save: Save) -> None:
    tensors, config = stack(transposed=[f"{EXPERTS}.down_proj"])
    stacked = save(tensors, config=config)
    for to in ("fp8", "nvfp4"):
        with pytest.raises(DialectError, match=f"{EXPERTS}.down_proj.*cannot be stored in {to}"):
            convert_checkpoint(stacked, stacked.parent / "no", to)


def test_a_result_is_plain_json(native: Path) -> None:
    convert_checkpoint(native, native.parent / "fp8", "fp8")
    result = convert_checkpoint(native.parent / "fp8", native.parent / "back", "mxfp4-core").to_dict()
    assert set(json.loads(json.dumps(result, allow_nan=False))["errors"].values()) == {None}  # nothing lost
