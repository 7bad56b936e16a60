"""Every dialect into every other and back, on weights of any codes, scale bytes and shapes: not a bit changes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from mxfp4_core import dialects
from mxfp4_core.checkpoint.reader import open_checkpoint
from mxfp4_core.jobs import convert_checkpoint

LINEAR = (
    "auto-round",
    "compressed-tensors",
    "gguf",
    "modelopt",
    "mxfp4-core",
    "quark",
    "torchao",
    "torchao-plain",
)
STACKED = ("gguf", "gpt-oss", "gpt-oss-original", "mxfp4-core")
V4 = ("compressed-tensors", "deepseek-v4", "mxfp4-core", "modelopt")
LLAMA = {"model_type": "llama", "num_attention_heads": 2, "num_key_value_heads": 1}
EXPERTS = "model.layers.0.mlp.experts."


def drawn(shape: tuple[int, ...], seed: int, low: int, high: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (*shape[:-1], shape[-1] // 2), generator=generator).to(torch.uint8)
    scales = torch.randint(low, high + 1, (*shape[:-1], shape[-1] // 32), generator=generator).to(torch.uint8)
    return codes, scales


def native(folder: Path, shapes: Mapping[str, tuple[int, ...]], seed: int, **config: Any) -> Path:
    tensors = {"model.norm.weight": torch.ones(32)}
    for number, (name, shape) in enumerate(shapes.items()):
        codes, scales = drawn(shape, seed + number, 0, 255)
        tensors |= {name: codes, f"{name}_scale": scales}
    (folder / "native").mkdir()
    save_file(tensors, folder / "native" / "model.safetensors")
    facts = {"transposed": [name for name in shapes if "experts." in name and not name.endswith(".weight")]}
    described = {"quant_method": "mxfp4-core", "activation": config.pop("activation", "none"), **facts}
    (folder / "native" / "config.json").write_text(json.dumps({**config, "quantization_config": described}))
    return folder / "native"


def check_every_pair(source: Path, names: tuple[str, ...], activation: str) -> None:
    before = open_checkpoint(source)
    folder = source.parent
    for first in names:
        convert_checkpoint(source, folder / first, first, activation=activation)
        for second in names:
            if second == first:
                continue
            step = folder / f"{first}-{second}"
            convert_checkpoint(folder / first, step, second, activation=activation)
            after = open_checkpoint(step)
            found = dialects.read(after)
            assert found is not None and found[0].name == second
            entries = found[1].entries
            assert entries.keys() == {name for name in before.tensors if f"{name}_scale" in before.tensors}
            for name, entry in entries.items():
                assert torch.equal(entry.parts["codes"].load(after), before.load(name)), (first, second, name)
                scales = entry.parts["scales"].load(after)
                assert torch.equal(scales, before.load(f"{name}_scale")), (first, second, name)
            (high,) = found[1].tensors.values()
            assert torch.equal(high.load(after), before.load("model.norm.weight"))


@settings(max_examples=2, deadline=None)
@given(st.integers(1, 70), st.integers(1, 5), st.integers(0, 1000))
def test_linears(rows: int, blocks: int, seed: int) -> None:
    shapes = {
        "model.layers.0.self_attn.q_proj.weight": (4 * rows, 32 * blocks),
        "model.layers.0.mlp.down_proj.weight": (rows, 32 * blocks),
    }
    with tempfile.TemporaryDirectory() as folder:
        check_every_pair(native(Path(folder), shapes, seed, **LLAMA), LINEAR, "mxfp4")


@settings(max_examples=2, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 1000))
def test_stacked_experts(experts: int, hidden: int, blocks: int, seed: int) -> None:
    sizes = {
        "gate_up_proj": (experts, 64 * blocks, 32 * hidden),
        "down_proj": (experts, 32 * hidden, 32 * blocks),
    }
    shapes = {f"{EXPERTS}{name}": size for name, size in sizes.items()}
    with tempfile.TemporaryDirectory() as folder:
        check_every_pair(native(Path(folder), shapes, seed, model_type="gpt_oss"), STACKED, "none")


@settings(max_examples=2, deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(0, 1000))
def test_experts_of_deepseek(rows: int, blocks: int, seed: int) -> None:
    shapes = {
        f"layers.0.ffn.experts.{e}.{w}.weight": (rows, 32 * blocks) for e in range(2) for w in ("w1", "w2")
    }
    with tempfile.TemporaryDirectory() as folder:
        check_every_pair(native(Path(folder), shapes, seed, model_type="deepseek_v4"), V4, "fp8")


def test_every_lossless_dialect_is_in_a_pair() -> None:
    """One that is added here is tried with the others; modelslim is another package's, fp-quant is no target."""
    core = {name for name in dialects.names() if name not in ("modelslim", "fp-quant")}
    assert core == {*LINEAR, *STACKED, *V4}


@pytest.mark.parametrize("to", sorted({*LINEAR, *STACKED, *V4} - {"mxfp4-core"}))
def test_no_dialect_takes_a_part_for_another(tmp_path: Path, to: str) -> None:
    """Codes and scales that differ in every byte come back each in its place: rows are not only renamed."""
    names = STACKED if to in STACKED and to != "gguf" else V4 if to == "deepseek-v4" else LINEAR
    if names is STACKED:
        sizes: dict[str, tuple[int, ...]] = {
            f"{EXPERTS}gate_up_proj": (2, 64, 32),
            f"{EXPERTS}down_proj": (2, 32, 32),
        }
        source = native(tmp_path, sizes, 5, model_type="gpt_oss")
    elif names is V4:
        source = native(
            tmp_path, {"layers.0.ffn.experts.0.w1.weight": (130, 160)}, 5, model_type="deepseek_v4"
        )
    else:
        source = native(tmp_path, {"model.layers.0.mlp.up_proj.weight": (130, 160)}, 5, **LLAMA)
    mode = "fp8" if names is V4 else "none" if names is STACKED else "mxfp4"
    convert_checkpoint(source, tmp_path / "made", to, activation=mode)
    found = dialects.read(open_checkpoint(tmp_path / "made"))
    before = open_checkpoint(source)
    assert found is not None and found[1].entries
    for name, entry in found[1].entries.items():
        made = open_checkpoint(tmp_path / "made")
        middle = entry.shape[0] // 2
        assert torch.equal(entry.parts["codes"].load(made, middle), before.load(name)[middle:])
        assert torch.equal(entry.parts["scales"].load(made, middle), before.load(f"{name}_scale")[middle:])
