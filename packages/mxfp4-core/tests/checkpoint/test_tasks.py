from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from mxfp4_core.checkpoint import reader
from mxfp4_core.checkpoint import tasks as tasks_module
from mxfp4_core.checkpoint.assemble import write_checkpoint
from mxfp4_core.checkpoint.reader import open_checkpoint
from mxfp4_core.checkpoint.staging import STAGING
from mxfp4_core.checkpoint.tasks import run_tasks
from mxfp4_core.errors import CheckpointError, FormatError, OutputError
from mxfp4_core.jobs.workers import processes

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # workers get this path, and find the units there

import slow_units  # noqa: E402

Save = Callable[..., Path]
Contents = Callable[[Path], dict[str, bytes]]
GOOD = dict.fromkeys(("a", "b", "c", "d"), "good")


@pytest.fixture
def signs(tmp_path: Path) -> Path:
    folder = tmp_path / "signs"
    folder.mkdir()
    return folder


@pytest.fixture
def straight(tmp_path: Path, signs: Path) -> Path:
    """Return what one process writes without an interruption."""
    (signs / "go").touch()
    slow_units.write(tmp_path / "straight", signs, GOOD, 1)
    (signs / "go").unlink()
    for path in signs.iterdir():
        path.unlink()
    return tmp_path / "straight"


def wait_for(found: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (result := found()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return result


def begun(signs: Path) -> list[int]:
    """Return the processes that are in the middle of a shard."""
    return [int(path.name.rsplit("-", 1)[1]) for path in signs.glob("?-*")]


def alive(process: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


@pytest.fixture
def running(tmp_path: Path, signs: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a run of two workers in a group of its own, each of which is in the middle of a shard."""
    command = [
        sys.executable,
        str(HERE / "slow_units.py"),
        str(tmp_path / "target"),
        str(signs),
        "a,b,c,d",
        "2",
    ]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        wait_for(lambda: len(begun(signs)) == 2)
        yield child
    finally:
        for process in (child.pid, *begun(signs)):
            if alive(process):
                os.kill(process, signal.SIGKILL)
        child.communicate()


@pytest.mark.parametrize("jobs", [2, 4])
def test_the_bytes_do_not_depend_on_the_number_of_workers(
    tmp_path: Path, signs: Path, straight: Path, contents: Contents, jobs: int
) -> None:
    (signs / "go").touch()
    written = slow_units.write(tmp_path / "target", signs, GOOD, jobs)
    assert contents(tmp_path / "target") == contents(straight)
    assert written.resumed == 0
    assert os.getpid() not in begun(signs)


def test_any_executor_with_submit_will_do(
    tmp_path: Path, signs: Path, straight: Path, contents: Contents
) -> None:
    (signs / "go").touch()
    with ThreadPoolExecutor(3) as executor:
        content = slow_units.content(signs, GOOD)
        write_checkpoint(tmp_path / "target", content, max_shard_bytes=1, executor=executor)
    assert contents(tmp_path / "target") == contents(straight)


def test_progress_adds_up_and_is_seen_before_a_task_ends(
    signs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks_module, "POLL_SECONDS", 0.01)
    seen: list[int] = []

    def progress(nbytes: int) -> None:
        seen.append(nbytes)
        if sum(seen) == 3 * slow_units.SIZE // 2:  # all three wait in the middle
            (signs / "go").touch()

    kinds = dict.fromkeys(("a", "b", "c"), "good")
    with ThreadPoolExecutor(3) as executor:
        content = slow_units.content(signs, kinds)
        write_checkpoint(tmp_path / "t", content, max_shard_bytes=1, executor=executor, progress=progress)
    assert sum(seen) == 3 * slow_units.SIZE
    assert min(seen) > 0


@pytest.mark.parametrize("jobs", [1, 3])
def test_an_error_of_one_task_ends_all_and_leaves_nothing(tmp_path: Path, signs: Path, jobs: int) -> None:
    (signs / "go").touch()
    with pytest.raises(FormatError, match="b is bad"):
        slow_units.write(
            tmp_path / "target", signs, {"a": "good", "b": "bad", "c": "good", "d": "good"}, jobs
        )
    assert not (tmp_path / "target").exists()


def test_of_several_errors_the_first_in_order_is_told() -> None:
    class Fails:
        source_bytes = 1

        def __init__(self, number: int) -> None:
            self.number = number

        def run(self, progress: Callable[[int], None]) -> None:
            raise ValueError(self.number)

    class Backwards:
        """An executor whose last future is done first."""

        def __init__(self) -> None:
            self.calls: list[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = []

        def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
            self.calls.append((Future(), fn, args))
            if len(self.calls) == 3:
                for future, function, arguments in reversed(self.calls):
                    try:
                        function(*arguments)
                    except ValueError as error:
                        future.set_exception(error)
            return self.calls[-1][0]

    with pytest.raises(ValueError, match="0"):
        run_tasks({str(n): Fails(n) for n in range(3)}, lambda name, facts: None, executor=Backwards())


def test_a_worker_that_dies_is_told_and_what_is_finished_counts(
    tmp_path: Path, signs: Path, straight: Path, contents: Contents
) -> None:
    (signs / "go").touch()
    target = tmp_path / "target"
    with pytest.raises(OutputError, match="worker process ended") as caught:
        slow_units.write(target, signs, {**GOOD, "d": "dead"}, 2)
    assert "--jobs" in caught.value.fix
    left = set(contents(target))
    assert all(name.startswith(f"{STAGING}/") and not name.endswith(".partial") for name in left)
    written = slow_units.write(target, signs, GOOD, 2)
    # The other worker may have finished a file whose facts were lost with the pool: it is written again.
    assert 1 <= written.resumed <= len(left) - 1
    assert contents(target) == contents(straight)


def test_a_worker_that_is_killed(
    tmp_path: Path, signs: Path, straight: Path, contents: Contents, running: subprocess.Popen[str]
) -> None:
    os.kill(begun(signs)[0], signal.SIGKILL)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "OutputError: the work was not finished" in err
    assert not (tmp_path / "target").exists()  # nothing was finished, so nothing is there
    (signs / "go").touch()
    slow_units.write(tmp_path / "target", signs, GOOD, 2)
    assert contents(tmp_path / "target") == contents(straight)


def test_an_interruption_from_the_keyboard(
    tmp_path: Path, signs: Path, contents: Contents, running: subprocess.Popen[str]
) -> None:
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to all of the group
    _, err = running.communicate(timeout=60)
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert err.count("Traceback") == 1  # of this process; the workers say nothing
    assert not any(alive(process) for process in begun(signs))
    assert not (tmp_path / "target").exists()


def test_workers_go_when_their_parent_is_killed(signs: Path, running: subprocess.Popen[str]) -> None:
    workers = begun(signs)
    running.kill()
    wait_for(lambda: not any(alive(process) for process in workers))


def test_a_checkpoint_is_pickled_as_paths(save: Save, dense: dict[str, torch.Tensor]) -> None:
    folder = save(dense, config={"model_type": "llama"})
    checkpoint = open_checkpoint(folder)
    raw = pickle.dumps(checkpoint)
    assert len(raw) < 1000  # nothing of the tensors
    again = pickle.loads(raw)
    assert (again.tensors, again.files, again.config) == (
        checkpoint.tensors,
        checkpoint.files,
        checkpoint.config,
    )
    save({"other.weight": torch.ones(2)})
    reader._tensors.cache_clear()  # as in a worker that has not seen it before
    with pytest.raises(CheckpointError, match="does not change"):
        pickle.loads(raw)


def test_one_worker_is_this_process() -> None:
    with processes(1) as executor:
        assert executor is None
