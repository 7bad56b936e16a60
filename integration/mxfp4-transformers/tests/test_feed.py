"""Reading ahead: the same bytes as the ordinary way, and only where that is sure. Here the CPU plays the GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import DEVICE, load, settings, tensors

from mxfp4_core.checkpoint import ahead
from mxfp4_core.errors import CheckpointError, LoadError, NonFiniteError
from mxfp4_transformers import feed
from mxfp4_transformers.feed import Feed

Edit = Callable[[Path, dict[str, torch.Tensor | None]], Path]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Read ahead on this device, in small chunks, and note which weights were fed that way."""
    found: dict[str, bool] = {}
    rows = Feed.rows

    def noted(self: Feed, name: str, names: list[str]) -> Any:
        result = rows(self, name, names)
        found[name] = result is not None
        return result

    monkeypatch.setattr(feed, "DEVICES", {torch.device(DEVICE).type})
    monkeypatch.setattr(Feed, "rows", noted)
    monkeypatch.setattr(
        ahead.ReadAhead.__init__,
        "__kwdefaults__",
        {**ahead.ReadAhead.__init__.__kwdefaults__, "chunk_bytes": 1000, "buffers": 2, "threads": 2},
    )
    return found


def plain(path: Path, **given: Any) -> dict[str, torch.Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feed, "DEVICES", frozenset())
        return load(path, settings(**given)).state_dict()


def test_the_bytes_are_those_of_the_ordinary_way(checkpoint: Path, taken: dict[str, bool]) -> None:
    model = load(checkpoint, settings())
    assert taken and set(taken) <= set(model.hf_quantizer.plan.weights)
    # Transposed experts are the only weights whose bytes are not whole rows of the file.
    transposed = {name for name, weight in model.hf_quantizer.plan.weights.items() if weight.transposed}
    assert {name for name, fed in taken.items() if not fed} == transposed
    assert bool(transposed) == (checkpoint.name == "gpt_oss")
    report, state = model.mxfp4_report, model.state_dict()
    wanted = plain(checkpoint)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in state.items())
    assert report.bytes_before == sum(tensor.nbytes for tensor in tensors(checkpoint).values())


def test_what_has_to_be_converted_is_not_fed(checkpoints: dict[str, Path], taken: dict[str, bool]) -> None:
    load(checkpoints["qwen3"], settings(), dtype=torch.float32)
    assert taken and not any(taken.values())


@pytest.mark.parametrize("name", ["mlp.experts.3.up_proj", "self_attn.q_proj"])
def test_nan_is_found_and_named(
    checkpoints: dict[str, Path], edited: Edit, taken: dict[str, bool], name: str
) -> None:
    source = f"model.layers.1.{name}.weight"
    spoiled = tensors(checkpoints["qwen3_moe"])[source].clone()
    spoiled[7, 40] = torch.nan
    path = edited(checkpoints["qwen3_moe"], {source: spoiled})
    with pytest.raises(NonFiniteError, match=r"nan at index \[7, 40\]") as caught:
        load(path, settings())
    assert caught.value.what.startswith(source)
    state = load(path, settings(nonfinite="nan")).state_dict()
    wanted = plain(path, nonfinite="nan")
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in state.items())


def test_another_order_than_expected(
    checkpoints: dict[str, Path], taken: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "in_order", lambda columns: [name for column in columns for name in column])
    wanted = plain(checkpoints["qwen3_moe"])
    state = load(checkpoints["qwen3_moe"], settings()).state_dict()
    assert not taken["model.layers.1.mlp.experts.gate_up_proj"]
    assert taken["model.layers.1.self_attn.q_proj.weight"]
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in state.items())


def test_a_file_that_shrinks_meanwhile(
    checkpoints: dict[str, Path], edited: Edit, taken: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = edited(checkpoints["llama"], {})
    begin = Feed._begin

    def shrunk(self: Feed) -> None:
        with open(path / "model.safetensors", "r+b") as file:
            file.truncate(20_000)
        begin(self)

    monkeypatch.setattr(Feed, "_begin", shrunk)
    with pytest.raises(CheckpointError, match="end of file"):
        load(path, settings())


def test_reading_that_ends_early_is_an_error(
    checkpoints: dict[str, Path], taken: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Feed.rows

    def cut(self: Feed, name: str, names: Sequence[str]) -> object:
        fed = rows(self, name, names)
        return fed if fed is None else (fed[0], (chunk[:-1] for chunk in fed[1]))

    monkeypatch.setattr(Feed, "rows", cut)
    with pytest.raises(LoadError, match="is not filled"):
        load(checkpoints["llama"], settings())
