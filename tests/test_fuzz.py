"""The fuzzing tool finds what it is there to find."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

import pytest
from fuzzing import crashes, flips, inputs, material, table
from fuzzing.mutate import changed
from fuzzing.readers import Reader
from safetensors.torch import load_file, save_file

from mxfp4_core.errors import CheckpointError


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return material.smallest(tmp_path_factory.mktemp("small"))["mxfp4-core"]


def test_equal_numbers_make_equal_inputs() -> None:
    seed = b'{"a": [1, 2, {"b": "c"}], "d": null}'
    made = [[changed(random.Random(number), seed, b"other") for number in range(300)] for _ in range(2)]
    assert made[0] == made[1]
    assert len(set(made[0])) > 200


@pytest.mark.parametrize("fault", ["foreign", "hang", "memory", "ours", "none"])
def test_a_reader_that_is_wrong_is_told(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(_: int, data: bytes) -> None:
        if fault == "foreign":
            {}[data]
        elif fault == "hang":
            time.sleep(5)
        elif fault == "memory":
            bytearray(4 << 30)
        elif fault == "ours":
            raise CheckpointError("a", seen="b", rule="c", fix="d")

    monkeypatch.setattr(inputs, "SECONDS", 0.05)
    outcome = inputs.feed("wrong", Reader((b"{}",), read), seed=3, first=7, count=1, seconds=60)
    assert outcome.inputs == 1
    assert outcome.failed == (fault not in ("ours", "none"))
    assert (outcome.accepted, outcome.refused["CheckpointError"]) == (fault == "none", fault == "ours")
    if outcome.failed:
        assert "--seed 3 --reader wrong --first 7 --count 1" in outcome.failures[0]
        assert {"foreign": "KeyError", "hang": "Hang", "memory": "MemoryError"}[fault] in outcome.failures[0]
    assert f"| wrong | 1 | {int(fault == 'none')} |" in table.inputs_table([outcome])


def test_flips_that_nothing_finds_are_told(small: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in small.rglob("*") if path.is_file()}
    assert flips.flip("good", small, most=40, seed=1).missed == []
    assert {path: path.read_bytes() for path in before} == before
    shutil.copytree(small, tmp_path / "bare")
    (tmp_path / "bare" / "mxfp4_manifest.json").unlink()
    for file in (tmp_path / "bare").glob("*.safetensors"):
        save_file(
            load_file(file), file
        )  # what the header says of a manifest goes, else its absence is found each time
    assert flips.flip("bare", tmp_path / "bare", most=40, seed=1).missed


def test_a_command_that_leaves_half_of_its_work_is_told(tmp_path: Path) -> None:
    target = tmp_path / "target"

    def careless() -> None:
        target.mkdir()
        for name in ("a", "b"):
            (target / f"{name}.new").write_text(name)
            os.replace(target / f"{name}.new", target / name)

    careless()
    whole = crashes.contents(target)
    shutil.rmtree(target)
    outcome = crashes.at_every_call("careless", careless, target, whole, most=99, seed=1)
    assert (outcome.points, outcome.kills) == (3, 3)
    assert len(outcome.failures) == 2  # not before the first call
    assert "ends with 3" in outcome.failures[0]
    assert "| careless, every call | 3 | 3 | 2 | 2 |" in table.kills_table([outcome])
