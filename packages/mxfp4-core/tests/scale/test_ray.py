"""Jobs on a real Ray cluster: a head without processors and two nodes, of which workers and one node are killed."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import slow_units
import torch
from ray.cluster_utils import Cluster

from mxfp4_core.checkpoint.assemble import Written, write_checkpoint
from mxfp4_core.checkpoint.staging import STAGING
from mxfp4_core.errors import ConfigError, FormatError, NonFiniteError, OutputError
from mxfp4_core.jobs import (
    RayExecutor,
    convert_checkpoint,
    quantize_checkpoint,
    ray_cluster,
    verify_checkpoint,
)
from mxfp4_core.jobs import ray as ray_module

Save = Callable[..., Path]
Contents = Callable[[Path], dict[str, bytes]]
SMALL = 6000
GOOD = dict.fromkeys("abcdef", "good")

# Ray leaves sockets to the end of the process, and asks Python for what it will drop.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture(scope="module")
def cluster(nodes: Cluster) -> Iterator[RayExecutor]:
    with ray_cluster(nodes.address) as executor:
        yield executor


@pytest.fixture
def source(save: Save, dense: dict[str, torch.Tensor]) -> Path:
    names = sorted(dense)
    files = ({name: dense[name] for name in names[:5]}, {name: dense[name] for name in names[5:]})
    folder = save(*files, config={"model_type": "llama"})
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def signs(tmp_path: Path) -> Path:
    folder = tmp_path / "signs"
    folder.mkdir()
    return folder


@pytest.fixture
def straight(tmp_path: Path, contents: Contents) -> dict[str, bytes]:
    """Return what one process writes without an interruption."""
    signs = tmp_path / "other-signs"
    signs.mkdir()
    (signs / "go").touch()
    slow_units.write(tmp_path / "straight", signs, GOOD, 1)
    return contents(tmp_path / "straight")


class Run(threading.Thread):
    """A run of slow units in a thread, so that a test can kill what does the work."""

    def __init__(self, target: Path, signs: Path, kinds: dict[str, str], cluster: RayExecutor) -> None:
        super().__init__()
        self.content, self.target, self.cluster = slow_units.content(signs, kinds), target, cluster
        self.written: Written | None = None
        self.error: BaseException | None = None
        self.seen: list[int] = []
        self.start()

    def run(self) -> None:
        try:
            self.written = write_checkpoint(
                self.target, self.content, max_shard_bytes=1, executor=self.cluster, progress=self.seen.append
            )
        except BaseException as error:
            self.error = error

    def ended(self) -> Run:
        self.join(120)
        assert not self.is_alive()
        return self


def wait_for(found: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 90
    while not (result := found()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return result


def begun(signs: Path) -> list[int]:
    """Return the processes that are, or were, in the middle of a shard."""
    return [int(path.name.rsplit("-", 1)[1]) for path in signs.glob("?-*")]


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])


def test_quantise_convert_and_verify(source: Path, contents: Contents, cluster: RayExecutor) -> None:
    here, there = source.parent / "here", source.parent / "there"
    quantize_checkpoint(source, here, max_shard_bytes=SMALL)
    seen: list[tuple[int, int]] = []
    done = quantize_checkpoint(
        source, there, max_shard_bytes=SMALL, executor=cluster, progress=lambda *now: seen.append(now)
    )
    assert len(done.files) > 4
    assert contents(here) == contents(there)
    assert [now for now, _ in seen] == sorted(now for now, _ in seen)
    assert seen[-1][0] == seen[-1][1] > 0
    for target, executor in (("one", None), ("two", cluster)):
        convert_checkpoint(here, source.parent / target, "quark", max_shard_bytes=SMALL, executor=executor)
    assert contents(source.parent / "one") == contents(source.parent / "two")
    checked = [verify_checkpoint(here, source, executor=executor) for executor in (None, cluster)]
    assert checked[0].ok
    assert checked[0].to_dict() == checked[1].to_dict()


def test_the_work_is_spread_over_the_nodes_and_seen_before_it_is_done(
    tmp_path: Path, signs: Path, contents: Contents, straight: dict[str, bytes], cluster: RayExecutor
) -> None:
    run = Run(tmp_path / "target", signs, GOOD, cluster)
    two = wait_for(lambda: len(begun(signs)) == 2 and begun(signs))
    assert len({parent_of(process) for process in two}) == 2  # of each worker, the raylet of its node
    wait_for(lambda: sum(run.seen) > 0)  # half of a file is done, and no file is
    (signs / "go").touch()
    assert run.ended().error is None
    assert sum(run.seen) == len(GOOD) * slow_units.SIZE
    assert contents(tmp_path / "target") == straight


def test_workers_and_a_node_that_are_killed(
    tmp_path: Path,
    signs: Path,
    contents: Contents,
    straight: dict[str, bytes],
    nodes: Cluster,
    cluster: RayExecutor,
) -> None:
    target = tmp_path / "target"
    run = Run(target, signs, GOOD, cluster)
    first, second = wait_for(lambda: len(begun(signs)) == 2 and begun(signs))
    os.kill(first, signal.SIGKILL)
    third = wait_for(lambda: [process for process in begun(signs) if process not in (first, second)])[0]
    (node,) = (
        node
        for node in nodes.list_all_nodes()
        if node.all_processes["raylet"][0].process.pid == parent_of(second)
    )
    nodes.remove_node(node, allow_graceful=False)
    wait_for(lambda: not Path(f"/proc/{second}").exists())
    nodes.add_node(num_cpus=1)
    wait_for(lambda: len(set(begun(signs)) - {first, second, third}) >= 1)
    (signs / "go").touch()
    assert run.ended().error is None
    assert run.written is not None and run.written.resumed == 0
    assert contents(target) == straight


def test_the_run_itself_is_killed_and_goes_on(
    tmp_path: Path, source: Path, contents: Contents, nodes: Cluster, cluster: RayExecutor
) -> None:
    target = tmp_path / "target"
    command = [sys.executable, "-m", "mxfp4_core", "quantize", str(source), str(target), "--models", "none"]
    command += ["--max-shard-size", str(SMALL), "--ray", nodes.address]
    journal = target / STAGING / "journal.jsonl"
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as child:
        wait_for(lambda: journal.exists() and journal.read_bytes().count(b"\n") > 2)
        child.kill()
    assert not list(target.glob("*.json"))
    done = quantize_checkpoint(source, target, max_shard_bytes=SMALL, models="none", executor=cluster)
    assert done.resumed
    quantize_checkpoint(source, tmp_path / "straight", max_shard_bytes=SMALL, models="none")
    assert contents(target) == contents(tmp_path / "straight")


def test_an_error_of_a_task_is_the_error_here_and_ends_the_others(
    tmp_path: Path, signs: Path, cluster: RayExecutor
) -> None:
    run = Run(tmp_path / "target", signs, {**GOOD, "b": "bad"}, cluster)
    wait_for(lambda: len(begun(signs)) == 2)
    (signs / "go").touch()
    error = run.ended().error
    assert isinstance(error, FormatError)
    assert error.what == "b is bad" and error.fix
    assert not (tmp_path / "target").exists()


def test_what_is_wrong_with_a_weight_is_told_here(
    save: Save, dense: dict[str, torch.Tensor], cluster: RayExecutor
) -> None:
    dense["model.layers.0.mlp.down_proj.weight"][5, 33] = math.inf
    source = save(dense, config={"model_type": "llama"})
    with pytest.raises(NonFiniteError, match=r"inf at index \[5, 33\]"):
        quantize_checkpoint(source, source.parent / "target", max_shard_bytes=SMALL, executor=cluster)
    assert not (source.parent / "target").exists()


def test_a_task_that_kills_each_of_its_workers(
    tmp_path: Path, signs: Path, contents: Contents, straight: dict[str, bytes], nodes: Cluster
) -> None:
    (signs / "go").touch()
    target = tmp_path / "target"
    with ray_cluster(nodes.address, retries=1) as cluster:
        error = Run(target, signs, {**GOOD, "f": "dead"}, cluster).ended().error
        assert isinstance(error, OutputError)
        assert "the worker died" in error.seen.lower()
        assert "more memory" in error.fix
        written = Run(target, signs, GOOD, cluster).ended().written
    assert written is not None and written.resumed >= 1
    assert contents(target) == straight


def test_a_node_with_another_release(monkeypatch: pytest.MonkeyPatch, cluster: RayExecutor) -> None:
    monkeypatch.setattr(ray_module, "version", lambda name: "0.0.1")
    with pytest.raises(ConfigError, match=r"the release of the run, 0\.0\.1"):
        cluster.submit(os.getpid).result(60)


ADDRESSES = ("127.0.0.1:1", "ray://127.0.0.1:1", "nowhere.invalid:6379", "a:b")


def test_no_cluster_at_these_addresses() -> None:
    """In a process of its own, since this one has a cluster."""
    code = """
import sys
from mxfp4_core.errors import ConfigError
from mxfp4_core.jobs import ray_cluster

for address in sys.argv[1:]:
    try:
        with ray_cluster(address):
            print("connected")
    except ConfigError as error:
        print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", code, *ADDRESSES], capture_output=True, text=True, check=True, timeout=120
    )
    for address in ADDRESSES:
        assert f"no connection to the Ray cluster '{address}'" in run.stdout, run.stdout
    assert run.stdout.count("ray start --head") == len(ADDRESSES)
