"""Processes that are killed in the middle of their work, and others that take it over; a cluster that is not there."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mxfp4_core.checkpoint import sinks
from mxfp4_core.checkpoint.assemble import write_checkpoint
from mxfp4_core.checkpoint.sinks import wait_for_file
from mxfp4_core.cli import main
from mxfp4_core.errors import ConfigError, OutputError
from mxfp4_core.jobs import processes, ray_cluster

UNITS = Path(__file__).parent.parent / "checkpoint"
sys.path.insert(0, str(UNITS))  # workers get this path, and find the units there

import slow_units  # noqa: E402

Contents = Callable[[Path], dict[str, bytes]]
GOOD = dict.fromkeys("abcd", "good")


def begun(signs: Path) -> list[int]:
    return [int(path.name.rsplit("-", 1)[1]) for path in signs.glob("?-*")]


def test_others_take_over_from_a_process_that_is_killed(tmp_path: Path, contents: Contents) -> None:
    signs = tmp_path / "signs"
    signs.mkdir()

    def kill_one_then_go() -> None:
        while len(begun(signs)) < 2:
            time.sleep(0.01)
        before = set(begun(signs))
        os.kill(min(before), signal.SIGKILL)
        while len(set(begun(signs)) - before) < 2:
            time.sleep(0.01)
        (signs / "go").touch()

    killer = threading.Thread(target=kill_one_then_go, daemon=True)
    killer.start()
    with processes(2, retries=1) as executor:
        content = slow_units.content(signs, GOOD)
        done: list[int] = []
        written = write_checkpoint(
            tmp_path / "target", content, max_shard_bytes=1, executor=executor, progress=done.append
        )
    killer.join()
    slow_units.write(tmp_path / "straight", signs, GOOD, 1)
    assert contents(tmp_path / "target") == contents(tmp_path / "straight")
    assert written.resumed == 0
    assert sum(done) == len(GOOD) * slow_units.SIZE


def test_a_task_that_kills_each_of_its_processes_is_given_up(tmp_path: Path, contents: Contents) -> None:
    signs = tmp_path / "signs"
    signs.mkdir()
    (signs / "go").touch()
    content = slow_units.content(signs, {**GOOD, "a": "dead"})
    with (
        pytest.raises(OutputError, match="worker process ended"),
        processes(2, retries=2) as executor,
    ):
        write_checkpoint(tmp_path / "target", content, max_shard_bytes=1, executor=executor)
    assert sum(path.name.startswith("a-") for path in signs.iterdir()) == 3
    with processes(2) as executor:
        good = slow_units.content(signs, GOOD)
        write_checkpoint(tmp_path / "target", good, max_shard_bytes=1, executor=executor)
    slow_units.write(tmp_path / "straight", signs, GOOD, 1)
    assert contents(tmp_path / "target") == contents(tmp_path / "straight")


def test_what_a_worker_wrote_and_nobody_sees_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "VISIBLE_SECONDS", 0.3)
    late = tmp_path / "late"
    timer = threading.Timer(0.1, late.write_bytes, [b"12345"])
    timer.start()
    wait_for_file(late, 5)
    timer.join()
    with pytest.raises(OutputError, match="it is not here"):
        wait_for_file(tmp_path / "never", 5)
    with pytest.raises(OutputError, match="it is not here"):
        wait_for_file(late, 6)


def test_numbers_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match="retries are 0 or more"), processes(2, retries=-1):
        pass
    with pytest.raises(ConfigError, match="retries are 0 or more"), ray_cluster(retries=-1):
        pass


def test_ray_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(ConfigError, match=r"the extra 'ray' of mxfp4-core.*\n.*mxfp4-core\[ray\]"),
        ray_cluster(),
    ):
        pass


def test_processes_and_a_cluster_cannot_both_do_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(tmp_path), "--jobs", "2", "--ray", "auto"])
    assert ended.value.code == 2
    assert "--jobs and --ray cannot be used together" in capsys.readouterr().err
