"""Quantise, convert and verify by several processes: the same bytes, findings and errors as by one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from mxfp4_core.checkpoint.assemble import ShardTask
from mxfp4_core.checkpoint.staging import STAGING
from mxfp4_core.checkpoint.tasks import Executor, Progress
from mxfp4_core.errors import ConfigError, NonFiniteError
from mxfp4_core.jobs import (
    convert_checkpoint,
    plan_checkpoint,
    processes,
    quantize_checkpoint,
    verify_checkpoint,
)

Save = Callable[..., Path]
Contents = Callable[[Path], dict[str, bytes]]
SMALL = 6000
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def workers() -> Iterator[Executor]:
    with processes(2) as executor:
        assert executor is not None
        yield executor


@pytest.fixture
def source(save: Save, dense: dict[str, torch.Tensor]) -> Path:
    names = sorted(dense)
    files = ({name: dense[name] for name in names[:5]}, {name: dense[name] for name in names[5:]})
    folder = save(*files, config={"model_type": "llama"})
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_quantise_convert_and_verify(source: Path, contents: Contents, workers: Executor) -> None:
    here, there = source.parent / "here", source.parent / "there"
    done = [
        quantize_checkpoint(source, here, max_shard_bytes=SMALL),
        quantize_checkpoint(source, there, max_shard_bytes=SMALL, executor=workers),
    ]
    assert contents(here) == contents(there)
    assert len(done[1].files) > 2
    assert {**done[0].to_dict(), "path": "", "load": "", "seconds": 0} == {
        **done[1].to_dict(),
        "path": "",
        "load": "",
        "seconds": 0,
    }
    for target, executor in (("one", None), ("two", workers)):
        convert_checkpoint(here, source.parent / target, "quark", max_shard_bytes=SMALL, executor=executor)
    assert contents(source.parent / "one") == contents(source.parent / "two")
    checked = [verify_checkpoint(here, source, executor=executor) for executor in (None, workers)]
    assert checked[0].ok
    assert checked[0].to_dict() == checked[1].to_dict()


def test_findings_come_in_the_order_of_the_files(source: Path, workers: Executor) -> None:
    target = source.parent / "target"
    quantize_checkpoint(source, target, max_shard_bytes=SMALL)
    for path in sorted(target.glob("*.safetensors")):
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(raw)
    found = [verify_checkpoint(target, source, executor=executor) for executor in (None, workers)]
    assert len(found[0].findings) >= 4
    assert found[0].to_dict() == found[1].to_dict()


def test_a_run_goes_on_with_another_number_of_workers(
    source: Path, contents: Contents, workers: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, done = ShardTask.run, 0

    def stop_later(task: ShardTask, progress: Progress) -> dict[str, object]:
        nonlocal done
        done += 1
        if done == 3:
            raise KeyboardInterrupt
        return run(task, progress)

    target = source.parent / "target"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ShardTask, "run", stop_later)
        quantize_checkpoint(source, target, max_shard_bytes=SMALL)
    assert quantize_checkpoint(source, target, max_shard_bytes=SMALL, executor=workers).resumed == 2
    quantize_checkpoint(source, source.parent / "straight", max_shard_bytes=SMALL)
    assert contents(target) == contents(source.parent / "straight")


def test_an_error_in_a_worker_is_the_error_here_and_leaves_nothing(
    save: Save, dense: dict[str, torch.Tensor], workers: Executor
) -> None:
    dense["model.layers.0.mlp.down_proj.weight"][5, 33] = math.inf
    source = save(dense, config={"model_type": "llama"})
    target = source.parent / "target"
    with pytest.raises(NonFiniteError, match=r"down_proj.*\n.*inf at index \[5, 33\]") as caught:
        quantize_checkpoint(source, target, max_shard_bytes=SMALL, executor=workers)
    assert caught.value.fix
    assert not target.exists()


@pytest.mark.parametrize("spread", [False, True])
def test_progress_reaches_the_end_in_all_four(source: Path, workers: Executor, spread: bool) -> None:
    executor = workers if spread else None
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))

    native, quark = source.parent / "native", source.parent / "quark"
    for run in (
        lambda: plan_checkpoint(source, progress=progress),
        lambda: quantize_checkpoint(
            source, native, max_shard_bytes=SMALL, progress=progress, executor=executor
        ),
        lambda: convert_checkpoint(native, quark, "quark", progress=progress, executor=executor),
        lambda: verify_checkpoint(native, source, progress=progress, executor=executor),
    ):
        seen.clear()
        result = run()
        (total,) = {total for _, total in seen}
        assert seen[-1][0] == total > 0
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        json.dumps(result.to_dict())


def test_no_staging_is_left(source: Path, workers: Executor) -> None:
    quantize_checkpoint(source, source.parent / "target", max_shard_bytes=SMALL, executor=workers)
    assert not (source.parent / "target" / STAGING).exists()


def test_a_number_of_workers_that_makes_no_sense() -> None:
    with pytest.raises(ConfigError, match="at least 1"), processes(0):
        pass
