"""What the benchmarks of engines share: weights of both forms, and pieces that end in time and say why."""

from __future__ import annotations

import json
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))

from serving import comparing, models, pieces, sizes  # noqa: E402

from mxfp4_core import quantize  # noqa: E402
from mxfp4_core.checkpoint import open_checkpoint  # noqa: E402
from mxfp4_core.dialects import read  # noqa: E402

SMALL = {
    "vocab_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_size": 64,
}
EXPERTS = {"intermediate_size": 96, "moe_intermediate_size": 32, "num_experts": 4}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sizes.MODELS):
        more = EXPERTS if name == "moe" else {"intermediate_size": 96}
        monkeypatch.setitem(sizes.MODELS, name, {**sizes.MODELS[name], **SMALL, **more})


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_both_folders_hold_the_same_weights(name: str, small: None, tmp_path: Path) -> None:
    written = sizes.written(name, 2, tmp_path)
    models.write(name, 2, tmp_path, "cpu", None)
    whole, stored = (
        {key: each for file in folder.glob("*.safetensors") for key, each in load_file(file).items()}
        for folder in (written.source, written.stored)
    )
    assert sum(each.numel() for each in whole.values()) == written.parameters
    assert sum(each.nbytes for each in stored.values()) == written.quantised
    for key, each in whole.items():
        if key in stored:
            assert torch.equal(each, stored[key])
        else:
            parts = quantize(each).parts
            assert torch.equal(stored[f"{key}_packed"], parts["codes"])
            assert torch.equal(stored[f"{key}_scale"], parts["scales"])
    found = read(open_checkpoint(written.stored))
    assert found is not None
    assert len(found[1].entries) == sum(map(sizes.is_quantised, whole))


def test_sizes_are_those_that_are_promised() -> None:
    dense, moe = (sizes.written(name, 0, Path()) for name in ("dense", "moe"))
    assert dense.parameters / 1e9 == pytest.approx(8.19, abs=0.01)
    assert moe.parameters / 1e9 == pytest.approx(16.9, abs=0.1)
    assert dense.limit < dense.parameters  # in bytes: half of what BF16 takes


def fail(keep: Callable[[pieces.Answer], None]) -> None:
    keep({"start_s": 1.0})
    raise ValueError("the engine did not start")


def hang(keep: Callable[[pieces.Answer], None]) -> None:
    keep({"start_s": 2.0})
    time.sleep(60)


def test_a_piece_that_fails_keeps_what_it_knew_and_says_why(tmp_path: Path) -> None:
    found = pieces.apart(fail, tmp_path, 30)
    assert found["start_s"] == 1.0
    assert found["error"][0] == "ended with 1"
    assert found["error"][-1] == "ValueError: the engine did not start"


def test_a_piece_ends_in_time(tmp_path: Path) -> None:
    found = pieces.apart(hang, tmp_path, 0.5)
    assert found["start_s"] == 2.0
    assert found["error"] == ["killed after 0 s"]
    assert found["seconds"] < 20


def test_speeds_are_those_of_the_whole_and_of_what_follows_the_first_token() -> None:
    kept: list[pieces.Answer] = []

    def generate(count: int, tokens: int) -> None:
        time.sleep(0.01 + 0.001 * tokens)

    found = pieces.measure(generate, [1, 4], lambda answer: kept.append(json.loads(json.dumps(answer))))
    assert [list(each) for each in kept] == [["1"], ["1", "4"]]
    assert 0.01 < found["4"]["first_s"] < found["1"]["first_s"] + 0.1
    assert found["1"]["tokens_per_s"] < found["1"]["decode_per_s"]


def test_a_table_has_as_many_columns_in_each_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser()
    pieces.add_arguments(parser, {"ours": 1})
    options = parser.parse_args(["--concurrency", "1", "16", "--out", str(tmp_path / "out")])
    speed = {"1": {"first_s": 0.5, "tokens_per_s": 10.0, "decode_per_s": 20.0}}
    written: Any = SimpleNamespace(name="dense", layers=2, limit=float(1 << 30))
    pieces.tell({"speed": speed, "kernels": []}, "engine 1", "ours", written, options)
    line = capsys.readouterr().out.strip()
    assert "| 500 | 10 | 20 | - | - | - |" in line
    assert len({text.count("|") for text in [line, *pieces.heading([1, 16]).splitlines()]}) == 1
    assert json.loads((tmp_path / "out").read_text())["engine"] == "engine 1"


def answer(*log_probabilities: float, tokens: tuple[int, ...] = (1, 2, 3)) -> pieces.Answer:
    said = {str(number): each for number, each in enumerate(log_probabilities)}
    return {"first_tokens": [said], "tokens": [list(tokens)]}


def test_first_tokens_are_compared_where_both_name_them() -> None:
    one = {"first_tokens": [{"1": -1.0, "2": -2.0}, {"5": -1.0}], "tokens": [[1, 2, 3], [5, 5, 5]]}
    other = {"first_tokens": [{"1": -1.5, "3": -2.0}, {"6": -1.0}], "tokens": [[1, 2, 4], [6, 5, 5]]}
    found = comparing.difference(one, other)
    assert (found.mean, found.most, found.largest) == (0.5, 0.5, 1.0)
    assert (found.choices, found.tokens, found.prompts) == (1, 2, 2)


@pytest.mark.parametrize(
    ("ours", "says"), [(-1.25, "0.2500 at most, within"), (-1.3, "0.3000 at most, NOT within")]
)
def test_two_gpus_may_be_twice_as_far_from_one_as_those_of_bf16(
    ours: float, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"bf16": answer(-1.0), "bf16-tp2": answer(-1.125), "ours": answer(-1.0), "ours-tp2": answer(ours)}
    comparing.compare({**found, "ours-ep2": {"error": ["killed"]}})
    said = capsys.readouterr().out
    assert f"ours-tp2: {says} the bound 0.25" in said and "ep2" not in said


def test_variants_on_two_gpus_are_those_of_one_and_whole_experts_need_experts() -> None:
    found = comparing.on_two({"bf16": ({}, {}), "ours": ({"q": 1}, {"V": "1"})}, {"tp": 2}, {"ep": 2})
    assert found["ours-ep2"][0] == {"q": 1, "tp": 2, "ep": 2} and found["bf16-tp2"][0] == {"tp": 2}
    assert found["ours-tp2"][1] == {"V": "1", **comparing.NO_MULTICAST}
    assert [comparing.applies(model, "ours-ep2") for model in ("dense", "moe")] == [False, True]
