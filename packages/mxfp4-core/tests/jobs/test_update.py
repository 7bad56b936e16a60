"""A checkpoint that is made again with one thing changed: files that come out the same are left alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mxfp4_core import Mxfp4Config
from mxfp4_core.checkpoint.assemble import ShardTask
from mxfp4_core.checkpoint.staging import STAGING
from mxfp4_core.checkpoint.tasks import Progress
from mxfp4_core.errors import OutputError
from mxfp4_core.jobs import convert_checkpoint, quantize_checkpoint, verify_checkpoint

Save = Callable[..., Path]
Contents = Callable[[Path], dict[str, bytes]]
SMALL = 5000
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def source(save: Save, dense: dict[str, torch.Tensor]) -> Path:
    folder = save(*halves(dense), config={"model_type": "llama"})
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def target(source: Path) -> Path:
    quantize_checkpoint(source, source.parent / "target", max_shard_bytes=SMALL)
    return source.parent / "target"


def halves(tensors: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    names = sorted(tensors)
    return [{name: tensors[name] for name in part} for part in (names[:6], names[6:])]


def inodes(folder: Path) -> dict[int, str]:
    return {os.stat(path).st_ino: path.name for path in folder.glob("*.safetensors")}


def fresh(source: Path, contents: Contents, config: Mxfp4Config | None = None) -> dict[str, bytes]:
    folder = source.parent / "fresh"
    quantize_checkpoint(source, folder, config, max_shard_bytes=SMALL)
    return contents(folder)


def written(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> list[str]:
    run, names = ShardTask.run, list[str]()

    def note(task: ShardTask, progress: Progress) -> dict[str, Any]:
        if stop_after == len(names):
            raise KeyboardInterrupt
        names.append(task.path.name)
        return run(task, progress)

    monkeypatch.setattr(ShardTask, "run", note)
    return names


def test_one_option_changed(
    source: Path, target: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = inodes(target)
    config = Mxfp4Config.from_dict({"overrides": [{"pattern": "o_proj", "rule": "floor"}]})
    expected = fresh(source, contents, config)
    with monkeypatch.context() as patch:
        again = written(patch)
        done = quantize_checkpoint(source, target, config, max_shard_bytes=SMALL, update=True)
    assert len(again) == 1
    assert done.resumed == len(done.files) - 1
    assert len(inodes(target).keys() & before.keys()) == len(before) - 1
    assert contents(target) == expected
    assert verify_checkpoint(target, source).ok


def test_one_shard_added(
    save: Save,
    source: Path,
    target: Path,
    dense: dict[str, torch.Tensor],
    contents: Contents,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Files get other numbers, and stay the same files."""
    before = inodes(target)
    more = {"model.layers.1.mlp.up_proj.weight": torch.ones(256, 64).bfloat16()}
    save(*halves(dense), more, config={"model_type": "llama"}, name="source")
    for path in source.glob("*-of-00002.safetensors"):
        path.unlink()
    expected = fresh(source, contents)
    with monkeypatch.context() as patch:
        again = written(patch)
        quantize_checkpoint(source, target, max_shard_bytes=SMALL, update=True)
    after = inodes(target)
    assert len(again) == 1
    assert before.keys() <= after.keys()
    assert {after[each] for each in before}.isdisjoint(before.values())
    assert contents(target) == expected


def test_weights_that_changed_are_made_again(
    save: Save, source: Path, target: Path, dense: dict[str, torch.Tensor], contents: Contents
) -> None:
    dense[Q] = dense[Q] * 2
    save(*halves(dense), config={"model_type": "llama"}, name="source")
    expected = fresh(source, contents)
    done = quantize_checkpoint(source, target, max_shard_bytes=SMALL, update=True)
    assert 0 < done.resumed < len(done.files)
    assert contents(target) == expected


def test_a_file_that_was_damaged_is_made_again(source: Path, target: Path, contents: Contents) -> None:
    expected = contents(target)
    victim = sorted(target.glob("*.safetensors"))[1]
    victim.write_bytes(victim.read_bytes()[:-1] + b"!")
    done = quantize_checkpoint(source, target, max_shard_bytes=SMALL, update=True)
    assert done.resumed == len(done.files) - 1
    assert contents(target) == expected


def test_an_unfinished_run_with_another_option(
    source: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = source.parent / "new"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        written(patch, stop_after=4)
        quantize_checkpoint(source, target, max_shard_bytes=SMALL)
    config = Mxfp4Config.from_dict({"overrides": [{"pattern": "down_proj", "rule": "floor"}]})
    with pytest.raises(OutputError, match="another run"):
        quantize_checkpoint(source, target, config, max_shard_bytes=SMALL)
    done = quantize_checkpoint(source, target, config, max_shard_bytes=SMALL, update=True)
    assert done.resumed >= 3
    assert contents(target) == fresh(source, contents, config)


def test_an_update_that_is_interrupted_leaves_the_old_one_and_goes_on(
    source: Path, target: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(target)
    config = Mxfp4Config.from_dict({"rule": "floor", "overrides": [{"pattern": "o_proj", "rule": "even"}]})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        written(patch, stop_after=2)
        quantize_checkpoint(source, target, config, max_shard_bytes=SMALL, update=True)
    now = contents(target)
    assert {name: now[name] for name in before} == before
    done = quantize_checkpoint(source, target, config, max_shard_bytes=SMALL, update=True)
    assert done.resumed >= 2
    assert contents(target) == fresh(source, contents, config)
    assert not (target / STAGING).exists()


def test_a_conversion_is_updated_too(source: Path, target: Path, contents: Contents) -> None:
    other = source.parent / "quark"
    convert_checkpoint(target, other, "quark", max_shard_bytes=SMALL)
    before = inodes(other)
    done = convert_checkpoint(target, other, "quark", max_shard_bytes=SMALL, update=True)
    assert done.resumed == len(done.files)
    assert inodes(other) == before


def test_files_of_others_are_left_alone(source: Path, target: Path) -> None:
    (target / "notes.md").write_text("mine")
    (target / "other.safetensors").write_text("mine, too")
    with pytest.raises(OutputError, match="weights that mxfp4 did not write"):
        quantize_checkpoint(source, target, max_shard_bytes=SMALL, update=True)
    (target / "other.safetensors").unlink()
    quantize_checkpoint(source, target, max_shard_bytes=SMALL, update=True)
    assert (target / "notes.md").read_text() == "mine"
