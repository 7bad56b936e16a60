"""Checkpoints of very many tensors: what one more of them costs, in calls of functions, since those can be counted."""

from __future__ import annotations

import cProfile
import json
import pstats
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxfp4_core.checkpoint import open_checkpoint
from mxfp4_core.cli import main
from mxfp4_core.cli.output import json_text
from mxfp4_core.errors import CheckpointError

MOST = 110  # of a tensor; with the encoder of `json` that is written in Python, it was 570
SHARD = 1000
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def save(folder: Path, experts: int) -> Path:
    """Write an index and shards of one layer with so many experts, three tensors each; the data are holes."""
    folder.mkdir()
    parts = ("gate_proj", "up_proj", "down_proj")
    names = [
        f"model.layers.0.mlp.experts.{number}.{part}.weight" for number in range(experts) for part in parts
    ]
    index: dict[str, str] = {}
    shards = [names[start : start + SHARD] for start in range(0, len(names), SHARD)]
    for number, some in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        index |= dict.fromkeys(some, file)
        nbytes = 32 * 32 * 2
        offsets = ([at * nbytes, (at + 1) * nbytes] for at in range(len(some)))
        header = {
            name: {"dtype": "BF16", "shape": [32, 32], "data_offsets": span}
            for name, span in zip(some, offsets, strict=True)
        }
        text = json.dumps(header).encode()
        with open(folder / file, "wb") as opened:
            opened.write(struct.pack("<Q", len(text)) + text)
            opened.truncate(8 + len(text) + nbytes * len(some))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "config.json").write_text(json.dumps({"model_type": "unheard_of", "hidden_size": 32}))
    return folder


def calls(arguments: list[str]) -> int:
    profile = cProfile.Profile()
    profile.enable()
    with pytest.raises(SystemExit, match="0"):
        main(arguments)
    profile.disable()
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_the_plan_of_one_more_tensor_costs_a_hundred_calls(
    tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    few, many = save(tmp_path / "few", 700), save(tmp_path / "many", 1400)
    main_of = ["plan", "--models", "none", *options]
    calls([*main_of, str(few)])  # what is imported and remembered
    cost = calls([*main_of, str(many)]) - calls([*main_of, str(few)])
    assert cost / (3 * 700) < MOST
    capsys.readouterr()


@given(JSON)
def test_json_for_programs_is_that_of_the_standard_library(data: Any) -> None:
    assert json.loads(json_text(data)) == data


def test_json_has_a_line_for_each_key_and_each_element() -> None:
    data = {"a": {"b": 1}, "rows": [{"n": 1, "m": [1, 2]}, {"n": 2}], "empty": {}, "flat": [1, 2]}
    assert json_text(data).splitlines() == [
        "{",
        '  "a": {',
        '    "b": 1',
        "  },",
        '  "rows": [',
        '    {"n": 1, "m": [1, 2]},',
        '    {"n": 2}',
        "  ],",
        '  "empty": {},',
        '  "flat": [1, 2]',
        "}",
    ]


@pytest.mark.parametrize("where", [0, -1], ids=["first", "last"])
def test_every_entry_of_an_index_is_looked_at(tmp_path: Path, where: int) -> None:
    folder = save(tmp_path / "model", 5)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name = list(index["weight_map"])[where]
    for file in ("../model.safetensors", "gone.safetensors", "model.bin", 7, ""):
        path.write_text(json.dumps({"weight_map": {**index["weight_map"], name: file}}))
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
            open_checkpoint(folder)
    path.write_text(json.dumps({"weight_map": {k: v for k, v in index["weight_map"].items() if k != name}}))
    with pytest.raises(CheckpointError, match="the index has not"):
        open_checkpoint(folder)
