"""Faults and hostile files around a run that writes: links, changes, leftovers, damage to what a run keeps."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from mxfp4_core.checkpoint.assemble import ShardTask
from mxfp4_core.checkpoint.manifest import read_manifest
from mxfp4_core.checkpoint.staging import STAGING
from mxfp4_core.checkpoint.tasks import Progress
from mxfp4_core.errors import CheckpointError, Mxfp4Error, OutputError
from mxfp4_core.jobs import plan_checkpoint, quantize_checkpoint, verify_checkpoint

Save = Callable[..., Path]
Contents = Callable[[Path], dict[str, bytes]]
SMALL = 3000
JOURNAL = f"{STAGING}/journal.jsonl"


@pytest.fixture
def source(save: Save, dense: dict[str, torch.Tensor]) -> Path:
    folder = save(dense, config={"model_type": "llama"})
    (folder / "tokenizer.json").write_text("{}")
    (folder / "sub").mkdir()
    (folder / "sub" / "vocab.txt").write_text("words")
    return folder


@pytest.fixture
def target(source: Path) -> Path:
    return source.parent / "target"


@pytest.fixture
def victim(source: Path) -> Path:
    folder = source.parent / "victim"
    folder.mkdir()
    (folder / "journal.jsonl").write_text("mine")
    (folder / "model.safetensors").write_text("mine")
    return folder


def stopped(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch, shards: int = 2) -> None:
    """Run until some shards are finished, as before an interruption."""
    write, done = ShardTask.run, 0

    def stop_later(task: ShardTask, progress: Progress) -> dict[str, Any]:
        nonlocal done
        if done == shards:
            raise KeyboardInterrupt
        done += 1
        return write(task, progress)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ShardTask, "run", stop_later)
        quantize_checkpoint(source, target, max_shard_bytes=SMALL)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("place", [STAGING, JOURNAL])
def test_no_link_is_followed_to_what_a_run_keeps(
    source: Path, target: Path, victim: Path, contents: Contents, place: str, force: bool
) -> None:
    before = contents(victim)
    (target / place).parent.mkdir(parents=True)
    (target / place).symlink_to(victim if place == STAGING else victim / "journal.jsonl")
    with pytest.raises(OutputError, match="follows no links"):
        quantize_checkpoint(source, target, force=force)
    assert contents(victim) == before


def test_links_among_unfinished_files_are_removed_and_not_followed(
    source: Path, target: Path, victim: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(victim)
    stopped(source, target, monkeypatch)
    first = next((target / STAGING).glob("*.safetensors"))
    first.unlink()
    first.symlink_to(victim / "model.safetensors")
    for name in ("config.json.partial", "copies", "model-00003-of-00009.safetensors.partial"):
        (target / STAGING / name).symlink_to(victim if name == "copies" else victim / "model.safetensors")
    assert quantize_checkpoint(source, target, max_shard_bytes=SMALL).resumed == 1
    assert contents(victim) == before
    assert verify_checkpoint(target, source).ok


def test_a_folder_of_the_target_that_is_a_link(
    source: Path, target: Path, victim: Path, contents: Contents
) -> None:
    before = contents(victim)
    target.mkdir()
    (target / "sub").symlink_to(victim)
    with pytest.raises(OutputError, match="a link to a folder"):
        quantize_checkpoint(source, target, force=True)
    assert contents(victim) == before


def test_a_source_that_changes_during_the_run(
    source: Path, target: Path, dense: dict[str, torch.Tensor], save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = save({name: tensor + 1 for name, tensor in dense.items()}, name="other")
    write, done = ShardTask.run, 0

    def replace_later(task: ShardTask, progress: Progress) -> dict[str, Any]:
        nonlocal done
        done += 1
        if done == 3:
            os.replace(other / "model.safetensors", source / "model.safetensors")
        return write(task, progress)

    with monkeypatch.context() as patch:
        patch.setattr(ShardTask, "run", replace_later)
        with pytest.raises(CheckpointError, match="replaced or written to while it was read"):
            quantize_checkpoint(source, target, max_shard_bytes=SMALL)
    assert not target.exists()
    assert quantize_checkpoint(source, target, max_shard_bytes=SMALL).resumed == 0


def test_a_source_that_changes_between_two_runs(
    source: Path, target: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fingerprint knows 4 KiB of each tensor; the time of the file knows the rest."""
    stopped(source, target, monkeypatch)
    with open(source / "model.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x3e")
    os.utime(source / "model.safetensors", ns=(1, 1))
    monkeypatch.setattr("mxfp4_core.jobs.quantize.source_fingerprint", lambda checkpoint: "same")
    stopped(source, target.with_name("other"), monkeypatch)
    os.utime(source / "model.safetensors", ns=(2, 2))
    assert quantize_checkpoint(source, target.with_name("other"), max_shard_bytes=SMALL).resumed == 0


def test_names_that_meet_those_of_a_run(
    source: Path, target: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("journal.jsonl", "config.json.partial", "mxfp4_manifest.json.partial", "notes.partial", "copies")
    for name in names:
        (source / name).write_text(name)
    stopped(source, target, monkeypatch)
    assert quantize_checkpoint(source, target, max_shard_bytes=SMALL).resumed == 2
    written = contents(target)
    assert all(written[name].decode() == name for name in names)
    assert not any(name.startswith(STAGING) for name in written)
    assert verify_checkpoint(target).ok


@pytest.mark.parametrize("step", ["rmdir", "unlink"])
def test_killed_when_all_was_in_place(
    source: Path, target: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    class Killed(BaseException):
        pass

    do = getattr(Path, step)

    def die(self: Path, *arguments: Any, **keywords: Any) -> None:
        if self in (target / STAGING, target / JOURNAL):
            raise Killed
        do(self, *arguments, **keywords)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, step, die)
        quantize_checkpoint(source, target, max_shard_bytes=SMALL)
    assert (target / STAGING).exists()
    assert verify_checkpoint(target, source).ok
    result = quantize_checkpoint(source, target, max_shard_bytes=SMALL)
    assert result.resumed == len(result.files)
    assert not (target / STAGING).exists()
    quantize_checkpoint(source, target.with_name("straight"), max_shard_bytes=SMALL)
    assert contents(target) == contents(target.with_name("straight"))
    (target / STAGING).mkdir()
    with pytest.raises(OutputError, match="nothing is overwritten"):  # what is there is another result
        quantize_checkpoint(source, target)


@pytest.mark.parametrize("change", ["tensors", "size", "a byte", "a deep one", "a name"])
def test_a_damaged_journal_never_reaches_the_manifest(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    stopped(source, target, monkeypatch, shards=3)
    path = target / JOURNAL
    first, second, *rest = path.read_bytes().splitlines(keepends=True)
    line = json.loads(second)
    if change == "tensors":
        line["tensors"] = dict.fromkeys(line["tensors"], "0" * 64)
    if change == "size":
        line["size"] = "large"
    if change == "a name":
        line["shard"] = ["x"]
    damaged = json.dumps(line).encode() + b"\n"
    if change == "a byte":
        damaged = second.replace(b'"size": ', b'"size":\xff', 1)
    if change == "a deep one":
        damaged = b"[" * 100_000 + b"\n"
    path.write_bytes(b"".join((first, damaged, *rest)))
    assert quantize_checkpoint(source, target, max_shard_bytes=SMALL).resumed == 0
    assert verify_checkpoint(target, source).ok


def test_a_file_of_the_source_that_cannot_be_read(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Any, mode: str = "r", **keywords: Any) -> Any:
        if Path(path) == source / "tokenizer.json" and mode == "rb":
            raise PermissionError(13, "Permission denied", str(path))
        return open(path, mode, **keywords)

    monkeypatch.setattr("mxfp4_core.checkpoint.places.open", refuse, raising=False)
    with pytest.raises(
        CheckpointError, match=r"cannot read .*source/tokenizer\.json\n  seen: Permission denied"
    ):
        quantize_checkpoint(source, target)


def test_names_that_no_system_takes(save: Save, source: Path, target: Path) -> None:
    long = "x" * 300
    for path in (source.parent / long, f"{long}/model.safetensors", "a\0b"):
        with pytest.raises(CheckpointError, match="cannot read"):
            plan_checkpoint(path)
        with pytest.raises(Mxfp4Error):
            quantize_checkpoint(source, path)
    for name in (f"{long}.safetensors", "/".join(["x"] * 4000)):
        index = {"weight_map": {"a": name}}
        (source / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(CheckpointError):
            plan_checkpoint(source)
    (source / "model.safetensors.index.json").unlink()
    with open(os.fsencode(source) + b"/no\xff.txt", "wb"):
        pass
    with pytest.raises(CheckpointError, match=r"no\\udcff\.txt\n.*no UTF-8"):
        plan_checkpoint(source)


@pytest.mark.parametrize("digits", [30, 5000])
def test_numbers_of_layers_from_anyone(save: Save, digits: int) -> None:
    big = "9" * digits
    names = [f"model.layers.{big}.mlp.up_proj.weight", f"model.layers.0.mlp.experts.{big}.up_proj.weight"]
    source = save(
        {name: torch.ones(32, 32) for name in names}, config={"model_type": "x", "num_hidden_layers": 2}
    )
    assert plan_checkpoint(source).findings == []
    quantize_checkpoint(source, source.parent / "target")
    assert verify_checkpoint(source.parent / "target", source).ok


def test_a_circle_of_links(source: Path, target: Path) -> None:
    target.symlink_to(target)
    with pytest.raises(OutputError):
        quantize_checkpoint(source, target)
    with pytest.raises(CheckpointError):
        plan_checkpoint(target)


WRONG: dict[str, Any] = {
    "files": {"config.json": {"size": "1", "sha256": "x"}},
    "tensors": {"a": {"file": "x", "dtype": "U8", "shape": 4, "sha256": "x"}},
    "shape": {"a": {"file": "x", "dtype": "U8", "shape": [[4]], "sha256": "x"}},
    "dtype": {"a": {"file": "x", "dtype": ["U8"], "shape": [4], "sha256": "x"}},
    "left_behind": {"a": 1},
    "config": [],
    "run": 7,
}


@pytest.mark.parametrize("key", WRONG)
def test_a_manifest_of_the_wrong_types(source: Path, target: Path, key: str) -> None:
    quantize_checkpoint(source, target)
    path = target / "mxfp4_manifest.json"
    manifest = json.loads(path.read_text())
    manifest["tensors" if key in ("shape", "dtype") else key] = WRONG[key]
    path.write_text(json.dumps(manifest))
    for read in (read_manifest, verify_checkpoint):
        with pytest.raises(CheckpointError, match="a manifest is complete"):
            read(target)
    quantize_checkpoint(source, target, force=True)
    assert verify_checkpoint(target).ok


def test_what_a_kill_during_commit_leaves_is_not_called_good(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    replace, left = os.replace, 0

    def die(start: Path, end: Path) -> None:
        nonlocal left
        if Path(end).parent == target or (Path(end).parent.parent == target and STAGING not in str(end)):
            if not left:
                raise Killed
            left -= 1
        replace(start, end)

    for moves in range(20):
        left = moves
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", die)
            try:
                quantize_checkpoint(source, target, max_shard_bytes=20_000)
            except Killed:
                verdict: object = "refused"
                with suppress(Mxfp4Error):
                    verdict = verify_checkpoint(target).ok
                assert verdict in (False, "refused"), moves
            else:
                break
        shutil.rmtree(target)
    assert moves > 5
    assert verify_checkpoint(target, source).ok
