"""Conversions of any class that only move rows, applied to what is quantised already."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import load, logits, reload, settings, tensors
from torch import nn
from transformers import conversion_mapping
from transformers.core_model_loading import (
    Chunk,
    ConversionOps,
    ErnieFuseAndSplitTextVisionExperts,
    PermuteForRope,
    WeightConverter,
)

from mxfp4_core.config import Mxfp4Config as CoreConfig
from mxfp4_core.dialects import Source
from mxfp4_core.errors import LoadError
from mxfp4_core.jobs import plan_checkpoint, quantize_checkpoint, verify_checkpoint
from mxfp4_transformers.converters import Group
from mxfp4_transformers.rows import gathered, moved

Edit = Callable[[Path, dict[str, torch.Tensor | None]], Path]


class Memory(dict[str, torch.Tensor]):
    """Stored tensors, as recipes read them."""

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        data = self[name].numpy().tobytes()
        buffer[:] = data[start : start + len(buffer)]


@given(st.data())
def test_any_rows_of_several_tensors(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    stored = Memory(
        {
            str(i): torch.randint(
                0, 256, (n, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(i)
            )
            for i, n in enumerate(sizes)
        }
    )
    source = Source({}, {name: ("U8", tuple(tensor.shape)) for name, tensor in stored.items()})
    count = sum(sizes)
    index = torch.tensor(data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=12)))
    index = index.reshape(data.draw(st.sampled_from([(-1,), (1, -1), (len(index), 1)])))
    recipe = gathered([source.tensor(name) for name in stored], index)
    wanted = torch.cat(list(stored.values()))[index]
    assert recipe.shape == tuple(wanted.shape)
    assert torch.equal(recipe.load(stored), wanted)


def same_state(one: nn.Module, other: nn.Module) -> None:
    left, right = one.state_dict(), other.state_dict()
    assert list(left) == list(right)
    assert all(torch.equal(left[name], right[name]) for name in left)


def convert(monkeypatch: pytest.MonkeyPatch, kind: str, *conversions: Any) -> None:
    conversion_mapping.get_checkpoint_conversion_mapping(kind)  # fills the cache
    monkeypatch.setitem(conversion_mapping._checkpoint_conversion_mapping_cache, kind, list(conversions))


def check_all_routes(path: Path, tmp_path: Path, like: nn.Module) -> None:
    """Load, save, reload, and quantise file to file: one model, and the names of the source."""
    model = load(path, settings())
    same_state(model, like)
    model.save_pretrained(tmp_path / "saved")
    assert {name.removesuffix("_scale") for name in tensors(tmp_path / "saved")} == set(tensors(path))
    verify_checkpoint(tmp_path / "saved", source=path)
    again = reload(tmp_path / "saved")
    same_state(model, again)
    assert torch.equal(logits(model), logits(again))
    quantize_checkpoint(path, tmp_path / "file", CoreConfig(dialect="mxfp4-core"))
    same_state(model, reload(tmp_path / "file"))


def for_rope(tensor: torch.Tensor) -> torch.Tensor:
    """Return rows of 4 heads as older checkpoints have them: pairs of a rotation beside each other."""
    heads = tensor.reshape(4, 2, -1, *tensor.shape[1:])
    return heads.transpose(1, 2).reshape(tensor.shape).contiguous()


class Turned(ConversionOps):
    """Reverses the order of rows, as a class of some other package may."""

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: Any,
    ) -> dict[str, Any]:
        (tensors,) = input_dict.values()
        tensor = tensors[0] if isinstance(tensors, list) else tensors
        return {target_patterns[0]: tensor.flip(0)}

    @property
    def reverse_op(self) -> ConversionOps:
        return self


def test_rows_that_are_permuted(
    checkpoints: dict[str, Path], tmp_path: Path, edited: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    like = load(checkpoints["llama"], settings())
    changes: dict[str, torch.Tensor | None] = {}
    for name, tensor in tensors(checkpoints["llama"]).items():
        if "q_proj" in name:
            changes |= {name: None, name.replace("q_proj", "wq"): tensor.flip(0)}
    path = edited(checkpoints["llama"], changes)
    convert(monkeypatch, "llama", WeightConverter("self_attn.wq", "self_attn.q_proj", [Turned()]))
    check_all_routes(path, tmp_path, like)


def test_a_fused_weight_of_which_a_part_is_permuted(
    checkpoints: dict[str, Path], tmp_path: Path, edited: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    like = load(checkpoints["llama"], settings())
    changes: dict[str, torch.Tensor | None] = {}
    stored = tensors(checkpoints["llama"])
    for name, tensor in stored.items():
        if "gate_proj" in name:
            up = name.replace("gate_proj", "up_proj")
            fused = torch.cat([for_rope(tensor), stored[up]])
            changes |= {name: None, up: None, name.replace("gate_proj", "both"): fused}
    path = edited(checkpoints["llama"], changes)
    operations = [Chunk(0), PermuteForRope(permute_layer_names=["gate_proj"])]
    parts = ["mlp.gate_proj", "mlp.up_proj"]
    convert(monkeypatch, "llama", WeightConverter("mlp.both", parts, operations))
    check_all_routes(path, tmp_path, like)


def test_experts_that_are_stacked_by_another_class(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    like = load(checkpoints["qwen3_moe"], settings())
    sources = [f"mlp.experts.*.{part}_proj.weight" for part in ("gate", "up", "down")]
    convert(
        monkeypatch,
        "qwen3_moe",
        WeightConverter(sources[:2], "mlp.experts.gate_up_proj", [ErnieFuseAndSplitTextVisionExperts()]),
        WeightConverter(sources[2], "mlp.experts.down_proj", [ErnieFuseAndSplitTextVisionExperts()]),
    )
    check_all_routes(checkpoints["qwen3_moe"], tmp_path, like)


class Doubled(ConversionOps):
    """Changes numbers."""

    def convert(self, input_dict: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        (tensors,) = input_dict.values()
        return {"mlp.up_proj": 2.0 * tensors[0]}

    @property
    def reverse_op(self) -> ConversionOps:
        return self


def test_numbers_that_are_changed(
    checkpoints: dict[str, Path], tmp_path: Path, edited: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = tensors(checkpoints["llama"])
    changes: dict[str, torch.Tensor | None] = {}
    for name in stored:
        if "up_proj" in name:
            changes |= {name: None, name.replace("up_proj", "half"): stored[name] / 2}
    path = edited(checkpoints["llama"], changes)
    convert(monkeypatch, "llama", WeightConverter("mlp.half", "mlp.up_proj", [Doubled()]))
    model = load(path, settings())
    same_state(model, load(checkpoints["llama"], settings()))
    for done in (
        plan_checkpoint(path),
        quantize_checkpoint(path, tmp_path / "file", CoreConfig(dialect="mxfp4-core")),
    ):
        said = [note for note in done.notes if "Doubled does more than move rows" in note]
        assert len(said) == 1 and "model.layers.{0-1}.mlp.half.weight" in said[0]
    assert not done.load
    with pytest.raises(LoadError, match="Doubled"):
        reload(tmp_path / "file")


class Does(ConversionOps):
    """Does what it is given to the tensors."""

    def __init__(self, what: Callable[[torch.Tensor], Any]) -> None:
        self.what = what

    def convert(self, input_dict: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        (tensors,) = input_dict.values()
        return {"mlp.up_proj": self.what(tensors[0])}


@pytest.mark.parametrize(
    ("what", "wanted"),
    [
        (lambda x: x.flip(0), [5, 4, 3, 2, 1, 0]),
        (lambda x: x[1:4], [1, 2, 3]),
        (lambda x: x * 2, None),
        (lambda x: x + 1, None),
        (lambda x: x - x.shape[0], None),
        (lambda x: x.flip(1), None),
        (lambda x: x.cumsum(0), None),
        (lambda x: x.roll(1, 1), None),
        (lambda x: x * 2.0, None),
        (lambda x: torch.cat([x[:, :1], x[:1, 1:].expand(6, 1)], 1), None),
        (lambda x: x.T, None),
        (lambda x: x.abs().amax(), None),
        (lambda x: "nothing", None),
    ],
    ids=lambda given: "" if callable(given) else str(given),
)
def test_whatever_is_more_than_moving_rows_is_found(what: Any, wanted: list[int] | None) -> None:
    converter = WeightConverter("mlp.half", "mlp.up_proj", [Does(what)])
    group = Group(("mlp.up_proj",), converter, {"mlp.half": ["mlp.half"]})
    found = moved(group, {"mlp.half": (6,)}, nn.Module())
    assert (found and found["mlp.up_proj"].tolist()) == wanted
