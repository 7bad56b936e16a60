"""A checkpoint in another dtype than the model's: a weight is rounded once, by the quantizer, whoever reads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import load, reload, settings, tensors
from torch import nn

from mxfp4_core.config import Mxfp4Config as CoreConfig
from mxfp4_core.jobs import quantize_checkpoint, verify_checkpoint


def rewritten(source: Path, target: Path, dtype: torch.dtype, only: str = "") -> Path:
    """Copy a checkpoint in another dtype, with numbers that bfloat16 cannot hold; its config says bfloat16."""
    target.mkdir()
    for file in source.glob("*.json"):
        shutil.copy(file, target)
    torch.manual_seed(7)
    stored = {}
    for name, tensor in tensors(source).items():
        finer = tensor.to(dtype) * (1 + torch.rand(tensor.shape).to(dtype) / 64)
        stored[name] = finer if only in name else tensor
    save_file(stored, target / "model.safetensors", {"format": "pt"})
    assert json.loads((target / "config.json").read_text())["dtype"] == "bfloat16"
    return target


def codes(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if tensor.dtype == torch.uint8}


def same(model: nn.Module, other: nn.Module) -> None:
    found, wanted = codes(model), codes(other)
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in found)


def check(path: Path, model: nn.Module, file: Path) -> None:
    quantize_checkpoint(path, file, CoreConfig(dialect="mxfp4-core"))
    same(model, reload(file))


def test_both_routes_give_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    path = rewritten(checkpoint, tmp_path / "wide", torch.float32)
    model = load(path, settings())
    check(path, model, tmp_path / "file")
    model.save_pretrained(tmp_path / "saved")
    verify_checkpoint(tmp_path / "saved", source=path)
    assert {tensor.dtype for tensor in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("stored", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("asked", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_whatever_dtype_is_asked_for(
    checkpoints: dict[str, Path], tmp_path: Path, stored: torch.dtype, asked: torch.dtype
) -> None:
    path = rewritten(checkpoints["qwen3_moe"], tmp_path / "wide", stored)
    model = load(path, settings(), dtype=asked)
    check(path, model, tmp_path / "file")
    assert {tensor.dtype for tensor in model.parameters()} == {asked}


def test_some_weights_in_another_dtype(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    path = rewritten(checkpoints["qwen3_moe"], tmp_path / "mixed", torch.float32, only="gate_proj")
    quantize_checkpoint(path, tmp_path / "file", CoreConfig(dialect="mxfp4-core"))
    same(load(path, settings()), reload(tmp_path / "file"))
