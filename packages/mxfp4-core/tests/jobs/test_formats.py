"""File to file in each format: plan, quantize and verify agree, and the bytes are those of ``quantize``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mxfp4_core import quantize
from mxfp4_core.arithmetic import get_format
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.errors import ShapeError
from mxfp4_core.jobs import plan_checkpoint, quantize_checkpoint, verify_checkpoint

NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize("format", ["mxfp4", "mxfp4-dual", "mxfp8"])
def test_a_checkpoint_in_each_format(save: Callable[..., Path], tmp_path: Path, format: str) -> None:
    weight = torch.randn(96, 1024, generator=torch.Generator().manual_seed(0)).bfloat16()
    source = save(
        {NAME: weight, "model.norm.weight": torch.ones(64).bfloat16()}, config={"model_type": "llama"}
    )
    config = Mxfp4Config.from_dict({"format": format, "dialect": "mxfp4-core"})
    target = tmp_path / "made"
    result = quantize_checkpoint(source, target, config)
    assert result.format == format
    stored, made = load_file(target / "model.safetensors"), quantize(weight, format=format)
    for part in get_format(format).parts:
        assert torch.equal(
            stored[f"{NAME}{part.suffix}"].view(made.parts[part.name].dtype), made.parts[part.name]
        )
    planned = plan_checkpoint(source, config)
    row = next(row for row in planned.rows if row.name == NAME)
    assert row.bytes_after == get_format(format).nbytes(weight.shape)
    checked = verify_checkpoint(target, source)
    assert checked.ok and checked.format == format


def test_a_tail_of_the_format_is_refused_or_padded(save: Callable[..., Path], tmp_path: Path) -> None:
    source = save({NAME: torch.randn(32, 544).bfloat16()}, config={"model_type": "llama"})
    with pytest.raises(ShapeError, match="multiple of 512"):
        quantize_checkpoint(source, tmp_path / "no", Mxfp4Config.from_dict({"format": "mxfp4-dual"}))
    padded = Mxfp4Config.from_dict({"format": "mxfp4-dual", "tail": "pad"})
    quantize_checkpoint(source, tmp_path / "made", padded)
    assert verify_checkpoint(tmp_path / "made", source).ok
