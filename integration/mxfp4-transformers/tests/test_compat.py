"""What is built on the inside of transformers, piece by piece."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import load, settings, tensors
from torch import nn
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
)
from transformers.quantizers import auto

from mxfp4_core.backend import GPT_OSS_SWIGLU, SILU, Gate
from mxfp4_core.errors import ConfigError
from mxfp4_core.modules import find_gate
from mxfp4_transformers import METHOD, Mxfp4Config, Mxfp4Quantizer, compat, converters, ops
from mxfp4_transformers._release import check_version
from mxfp4_transformers.ops import Converter


def stacking(suffix: str = "") -> WeightConverter:
    sources = [f"experts.*.{part}.weight{suffix}" for part in ("w1", "w3")]
    return WeightConverter(sources, f"experts.gate_up_proj{suffix}", [MergeModulelist(0), Concatenate(1)])


def test_patterns_end_where_names_end() -> None:
    converter = converters.rebuilt(Converter, stacking())
    assert converter.rename_source_key("mlp.experts.3.w1.weight")[0] == "mlp.experts.gate_up_proj"
    assert converter.rename_source_key("mlp.experts.3.w1.weight_scale")[1] is None


def test_experts_split_as_they_were_merged() -> None:
    # One column of scales: transformers 5.17 would drop that axis.
    parts = torch.arange(12, dtype=torch.uint8).reshape(3, 4, 1)
    pattern = ["experts.*.w2.weight_scale"]
    merged = converters.MergeExperts(0).convert(
        {pattern[0]: list(parts)}, pattern, ["experts.down_proj_scale"]
    )
    back = converters.MergeExperts(0).reverse_op.convert(merged, ["experts.down_proj_scale"], pattern)
    assert list(back) == [f"experts.{index}.w2.weight_scale" for index in range(3)]
    assert all(torch.equal(tensor, part) for tensor, part in zip(back.values(), parts, strict=True))


def test_which_conversions_codes_survive() -> None:
    assert converters.stacks(stacking())
    assert converters.keeps_rows_whole(WeightConverter(["a", "b"], "c", [Concatenate(0)]))
    assert not converters.keeps_rows_whole(WeightConverter(["a", "b"], "c", [Concatenate(1)]))
    assert not converters.keeps_rows_whole(WeightConverter("a", "b", [Transpose(1, 2)]))
    assert not converters.stacks(WeightConverter("a.*.b", "c", [MergeModulelist(1)]))


def test_targets_with_a_reference() -> None:
    converter = WeightConverter(r"blocks\.(\d+)\.ff", r"layers.\1.mlp.up_proj", [Concatenate(0)])
    assert converters.feeds(converter, ["model.layers.12.mlp.up_proj.weight"])
    assert not converters.feeds(converter, ["model.layers.12.mlp.down_proj.weight"])


def test_renames_are_read_from_conversions() -> None:
    conversions = [
        WeightRenaming(".block_sparse_moe.", ".mlp."),
        WeightRenaming(r"^(\w+)\.x", r"\1.y"),
        stacking(),
    ]
    assert converters.renames(conversions) == [("mlp", "block_sparse_moe")]


def test_without_our_converters_the_operation_does_it(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load(checkpoints["qwen3_moe"], settings()).state_dict()
    monkeypatch.setattr(converters, "feeds", lambda converter, names: False)
    monkeypatch.setattr(ops.Direct, "rename_source_key", lambda self, key: (key, None))
    found = load(checkpoints["qwen3_moe"], settings()).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


class Experts(nn.Module):
    """As much of a stack of experts as matters for its activation."""

    is_concatenated = True

    def __init__(self, **values: Any) -> None:
        super().__init__()
        vars(self).update(values)

    def _apply_gate(self, rows: torch.Tensor) -> torch.Tensor:
        gate, up = (rows[..., ::2], rows[..., 1::2]) if not self.is_concatenated else rows.chunk(2, -1)
        limit = getattr(self, "limit", None)
        if limit is not None:
            gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return (up + getattr(self, "offset", 0)) * gate * torch.sigmoid(getattr(self, "alpha", 1) * gate)


def test_gates_are_tried_out() -> None:
    assert find_gate(Experts()) == SILU
    assert find_gate(Experts(limit=7.0)) == Gate(limit=7.0)
    assert find_gate(Experts(alpha=1.702, limit=7.0, offset=1, is_concatenated=False)) == GPT_OSS_SWIGLU
    assert find_gate(Experts(alpha=1.5)) == Gate(alpha=1.5)
    assert find_gate(Experts(offset=2)) is None

    class Gelu(Experts):
        def _apply_gate(self, rows: torch.Tensor) -> torch.Tensor:
            gate, up = rows.chunk(2, -1)
            return nn.functional.gelu(gate) * up

    assert find_gate(Gelu()) == Gate(function="gelu")

    class Tanh(Experts):
        def _apply_gate(self, rows: torch.Tensor) -> torch.Tensor:
            gate, up = rows.chunk(2, -1)
            return gate.tanh() * up

    assert find_gate(Tanh()) is None


def test_headers_are_read_without_tensors(checkpoints: dict[str, Path]) -> None:
    path = checkpoints["gpt_oss"]
    found = compat.headers([str(path / "model.safetensors")])
    stored = tensors(path)
    assert {name: header.shape for name, header in found.items()} == {
        n: tuple(t.shape) for n, t in stored.items()
    }
    assert {header.dtype for header in found.values()} == {"BF16"}
    assert compat.headers(None) == compat.headers(["x.bin"]) == {}


def test_a_name_that_another_package_has(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = type("Theirs", (), {"__module__": "elsewhere.plugin"})
    monkeypatch.setitem(auto.AUTO_QUANTIZER_MAPPING, METHOD, theirs)
    with pytest.raises(ConfigError, match=r"elsewhere\.plugin\.Theirs has that name"):
        compat.register(METHOD, Mxfp4Config, Mxfp4Quantizer)
    assert auto.AUTO_QUANTIZER_MAPPING[METHOD] is theirs


@pytest.mark.parametrize("found", ["5.16.1", "4.57.0", "6.0.0", "main"])
def test_another_release(found: str) -> None:
    with pytest.raises(ConfigError, match="cannot be used with this transformers") as caught:
        check_version(found)
    assert found in caught.value.seen and "pip install" in caught.value.fix
    for known in ("5.17.0", "5.24.0", "5.25.0.dev0"):
        check_version(known)
