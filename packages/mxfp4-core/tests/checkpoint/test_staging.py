from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mxfp4_core import Mxfp4Config
from mxfp4_core.checkpoint.assemble import ShardTask
from mxfp4_core.checkpoint.staging import STAGING
from mxfp4_core.checkpoint.tasks import Progress
from mxfp4_core.checkpoint.writer import ShardWriter
from mxfp4_core.errors import CheckpointError, OutputError
from mxfp4_core.jobs.quantize import quantize_checkpoint

Save = Callable[..., Path]
Contents = Callable[[Path], dict[str, bytes]]
SMALL = 3000


@pytest.fixture
def source(save: Save, dense: dict[str, torch.Tensor]) -> Path:
    folder = save(dense, config={"model_type": "llama"})
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def target(source: Path) -> Path:
    return source.parent / "target"


def test_a_target_with_files_is_refused(source: Path, target: Path, contents: Contents) -> None:
    target.mkdir()
    quantize_checkpoint(source, target, max_shard_bytes=SMALL)
    before = contents(target)
    with pytest.raises(OutputError, match="--force"):
        quantize_checkpoint(source, target, max_shard_bytes=SMALL)
    assert contents(target) == before


def test_force_replaces_its_own_files_and_no_others(source: Path, target: Path, contents: Contents) -> None:
    quantize_checkpoint(source, target, max_shard_bytes=SMALL)
    (target / "notes.md").write_text("mine")
    (target / "old").mkdir()
    (target / "old" / "x.safetensors").write_text("mine too")
    quantize_checkpoint(source, target, force=True)
    written = contents(target)
    assert set(written) == {
        "config.json",
        "model.safetensors",
        "mxfp4_manifest.json",
        "notes.md",
        "old/x.safetensors",
        "tokenizer.json",
    }
    assert written["notes.md"] == b"mine"


def test_force_leaves_what_was_edited(source: Path, target: Path) -> None:
    (source / "README.md").write_text("card")
    (source / "LICENSE").write_text("terms")
    quantize_checkpoint(source, target)
    (target / "README.md").write_text("my own words")
    (source / "README.md").unlink()
    (source / "LICENSE").unlink()
    quantize_checkpoint(source, target, Mxfp4Config.from_dict({"rule": "floor"}), force=True)
    assert (target / "README.md").read_text() == "my own words"
    assert not (target / "LICENSE").exists()


def test_a_hostile_manifest_removes_nothing(source: Path, target: Path) -> None:
    quantize_checkpoint(source, target)
    victim = target.parent / "victim.safetensors"
    victim.write_text("x")
    manifest = json.loads((target / "mxfp4_manifest.json").read_text())
    manifest["files"]["../victim.safetensors"] = {"size": 1, "sha256": ""}
    (target / "mxfp4_manifest.json").write_text(json.dumps(manifest))
    quantize_checkpoint(source, target, Mxfp4Config.from_dict({"rule": "floor"}), force=True)
    assert victim.exists()


def test_force_does_not_mix_with_weights_of_others(source: Path, target: Path, contents: Contents) -> None:
    shutil.copytree(source, target)
    before = contents(target)
    with pytest.raises(OutputError, match="weights that mxfp4 did not write"):
        quantize_checkpoint(source, target, max_shard_bytes=SMALL, force=True)
    assert contents(target) == before


def test_a_file_in_place_of_the_target(source: Path, target: Path) -> None:
    target.write_text("x")
    with pytest.raises(OutputError, match="a folder"):
        quantize_checkpoint(source, target)
    with pytest.raises(OutputError, match="Not a directory"):
        quantize_checkpoint(source, target / "below")
    assert target.read_text() == "x"


def test_a_place_that_cannot_be_written(source: Path) -> None:
    with pytest.raises(OutputError, match="cannot write /proc/mxfp4"):
        quantize_checkpoint(source, "/proc/mxfp4/target")


def test_a_full_disk_is_noticed_before_the_work(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(OutputError, match="0 bytes free"):
        quantize_checkpoint(source, target)
    assert not target.exists()


def test_a_disk_that_fills_up_keeps_what_is_done(
    source: Path, target: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    write = ShardWriter.write

    def full_later(self: ShardWriter, name: str, data: bytes | memoryview) -> None:
        nonlocal calls
        calls += 1
        if calls == 9:
            monkeypatch.setattr(self, "_put", no_space)
        write(self, name, data)

    def no_space(data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ShardWriter, "write", full_later)
    with pytest.raises(OutputError, match="free space"):
        quantize_checkpoint(source, target, max_shard_bytes=SMALL)
    left = contents(target)
    assert all(name.startswith(f"{STAGING}/") for name in left)
    assert not any(name.endswith(".partial") for name in left)
    monkeypatch.undo()
    result = quantize_checkpoint(source, target, max_shard_bytes=SMALL)
    assert 0 < result.resumed == len(left) - 1 < len(result.files)
    quantize_checkpoint(source, target.with_name("straight"), max_shard_bytes=SMALL)
    assert contents(target) == contents(target.with_name("straight"))


def test_a_limit_on_the_size_of_files(source: Path, target: Path) -> None:
    """The kernel refuses the write itself, in the middle of the first file."""
    code = (
        "import resource, sys\n"
        "from mxfp4_core.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))\n"
        f"main(['quantize', {str(source)!r}, {str(target)!r}, '--quiet'])"
    )
    # Python would keep the bytecode of what is imported here for the first time cut at the limit, for everybody (-B).
    done = subprocess.run([sys.executable, "-B", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not target.exists()


def interrupted(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch, shards: int = 2) -> None:
    """Run until some shards are finished, then stop as an interruption does."""
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


def test_another_run_is_not_continued(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(source, target, monkeypatch)
    with pytest.raises(OutputError, match="another run"):
        quantize_checkpoint(source, target, Mxfp4Config.from_dict({"rule": "floor"}), max_shard_bytes=SMALL)
    with pytest.raises(OutputError, match="another run"):
        quantize_checkpoint(source, target)
    assert quantize_checkpoint(source, target, max_shard_bytes=SMALL).resumed == 2


def test_a_run_that_finished_nothing_stops_nobody(source: Path, target: Path) -> None:
    (target / STAGING).mkdir(parents=True)
    (target / STAGING / "journal.jsonl").write_text('{"run": {"config": "other"}}\n')
    (target / STAGING / "model.safetensors.partial").write_text("x")
    quantize_checkpoint(source, target)
    assert not (target / STAGING).exists()


def test_another_source_is_not_continued(
    source: Path, target: Path, save: Save, dense: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(source, target, monkeypatch)
    dense["model.layers.0.self_attn.o_proj.weight"] += 1  # same names, same shapes
    save(dense)
    with pytest.raises(OutputError, match="2 finished shard"):
        quantize_checkpoint(source, target, max_shard_bytes=SMALL)
    assert quantize_checkpoint(source, target, max_shard_bytes=SMALL, force=True).resumed == 0


def test_a_shard_counts_only_with_its_hash(
    source: Path, target: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(source, target, monkeypatch, shards=3)
    shards = sorted((target / STAGING).glob("*.safetensors"))
    raw = bytearray(shards[0].read_bytes())
    raw[-1] ^= 1
    shards[0].write_bytes(raw)
    shards[1].unlink()
    with open(target / STAGING / "journal.jsonl", "a") as journal:
        journal.write('{"shard": "model-00004-of-000')  # killed while it wrote
    assert quantize_checkpoint(source, target, max_shard_bytes=SMALL).resumed == 1
    quantize_checkpoint(source, target.with_name("straight"), max_shard_bytes=SMALL)
    assert contents(target) == contents(target.with_name("straight"))


def test_a_journal_of_nonsense_starts_over(source: Path, target: Path) -> None:
    (target / STAGING).mkdir(parents=True)
    (target / STAGING / "journal.jsonl").write_bytes(b"\xff\x00[]\n")
    assert quantize_checkpoint(source, target, max_shard_bytes=SMALL).resumed == 0


def test_an_interruption_of_the_last_step(
    source: Path, target: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, moves = os.replace, 0

    def stop_while_moving(start: Path, end: Path) -> None:
        nonlocal moves
        if Path(end).parent == target:
            moves += 1
            if moves == 3:
                raise KeyboardInterrupt
        replace(start, end)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", stop_while_moving)
        quantize_checkpoint(source, target, max_shard_bytes=SMALL)
    assert not (target / "mxfp4_manifest.json").exists()
    result = quantize_checkpoint(source, target, max_shard_bytes=SMALL)
    assert result.resumed == len(result.files)
    quantize_checkpoint(source, target.with_name("straight"), max_shard_bytes=SMALL)
    assert contents(target) == contents(target.with_name("straight"))


def test_two_runs_at_once(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(source, target, monkeypatch)
    with open(target / STAGING / "journal.jsonl") as journal:
        fcntl.flock(journal, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another process"):
            quantize_checkpoint(source, target, max_shard_bytes=SMALL)
    assert quantize_checkpoint(source, target, max_shard_bytes=SMALL).resumed == 2


def test_a_source_that_breaks_midway_keeps_what_is_done(
    source: Path, target: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, done = ShardTask.run, 0

    def shrink_later(task: ShardTask, progress: Progress) -> dict[str, Any]:
        nonlocal done
        done += 1
        if done == 3:
            os.truncate(source / "model.safetensors", 5000)
        return write(task, progress)

    monkeypatch.setattr(ShardTask, "run", shrink_later)
    with pytest.raises(CheckpointError, match="end of file"):
        quantize_checkpoint(source, target, max_shard_bytes=SMALL)
    left = sorted(contents(target))
    assert len(left) == 3
    assert left[0] == f"{STAGING}/journal.jsonl"
    assert all(name.startswith(f"{STAGING}/model-0") for name in left[1:])


def test_resume_after_kill_9(save: Save, contents: Contents) -> None:
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(30)]
    source = save({name: torch.randn(256, 1024).bfloat16() for name in names}, config={"model_type": "llama"})
    target = source.parent / "target"
    command = [sys.executable, "-c", "from mxfp4_core.cli import main; main()", "quantize"]
    command += [str(source), str(target), "--max-shard-size", "140KB", "--json"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    journal = target / STAGING / "journal.jsonl"
    while not journal.exists() or journal.read_bytes().count(b"\n") < 3:
        assert running.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    running.kill()
    running.wait()
    left = contents(target)
    assert left.keys() and all(name.startswith(f"{STAGING}/") for name in left)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert 0 < result["resumed"] < len(result["files"]) == 30
    quantize_checkpoint(source, target.with_name("straight"), max_shard_bytes=140_000)
    assert contents(target) == contents(target.with_name("straight"))
