"""Run tasks on a Ray cluster: paths go out, facts come back, and a task whose worker or node was lost is done again.

Every node sees the same files under the same names (a shared file system, or a bucket) and has the same release of
this package, so that the bytes do not depend on where a task ran. No tensor passes through Ray's object store.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, Future
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, TypeVar, cast

from mxfp4_core._extras import say_what_to_install
from mxfp4_core.checkpoint.tasks import Channel, Progress, Stopped
from mxfp4_core.errors import ConfigError, Mxfp4Error

R = TypeVar("R")

RETRIES = 3
"""How often a task is given to another worker when its own is lost."""

TELL_SECONDS = 0.5
"""How often a worker says how far it is."""

CONNECT_SECONDS = 10.0

_DISTRIBUTION = "mxfp4-core"


class RayExecutor:
    """Submits calls to a Ray cluster; made by `ray_cluster`.

    Args:
        ray: the module.
        retries: how often a call is repeated when its worker is lost; an error that it raises is never repeated.
        cpus: processors that a call occupies.
    """

    def __init__(self, ray: Any, retries: int, cpus: float) -> None:
        self._ray = ray
        self._call = ray.remote(_call).options(
            max_retries=retries, num_cpus=cpus, scheduling_strategy="SPREAD", name="mxfp4"
        )

    def submit(self, fn: Callable[..., R], /, *args: Any) -> Future[R]:
        """Call ``fn(*args)`` on some node."""
        future: _RayFuture = _RayFuture(self._ray, self._call.remote(version(_DISTRIBUTION), fn, args))
        return cast("Future[R]", future)

    def channel(self) -> Channel:
        """Return a channel over an actor on this node, which does not go with another one."""
        here = self._ray.get_runtime_context().get_node_id()
        strategy = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
        board = self._ray.remote(_Board).options(num_cpus=0, scheduling_strategy=strategy).remote()
        return _BoardChannel(board)


class _RayFuture(Future[Any]):
    """The future of a call; what Ray raises becomes an error of executors."""

    def __init__(self, ray: Any, reference: Any) -> None:
        super().__init__()
        self._ray, self._reference = ray, reference
        reference.future().add_done_callback(self._ended)

    def cancel(self) -> bool:
        """Take a call back that has not begun; one that runs hears through its channel that it ends."""
        if not self.done():
            self._ray.cancel(self._reference, force=False, recursive=False)
        return False

    def _ended(self, inner: Future[Any]) -> None:
        error = inner.exception()
        if error is None:
            succeeded, value = inner.result()
            self.set_result(value) if succeeded else self.set_exception(value)
        elif isinstance(error, self._ray.exceptions.TaskCancelledError):
            self.set_exception(Stopped())
        elif isinstance(error, self._ray.exceptions.RayTaskError):
            self.set_exception(_cannot_run(error))
        else:
            broken = BrokenExecutor(str(error).strip().partition("\n")[0])
            broken.__cause__ = error
            self.set_exception(broken)


def _call(release: str, fn: Callable[..., Any], args: tuple[Any, ...]) -> tuple[bool, Any]:
    """Run a call on a node; an error of it is a value, so that Ray repeats only what it has lost."""
    if version(_DISTRIBUTION) != release:
        return False, ConfigError(
            "a node of the cluster cannot take part",
            seen=f"{_DISTRIBUTION} {version(_DISTRIBUTION)} on {os.uname().nodename}",
            rule=f"all nodes have the release of the run, {release}, so that they write the same bytes",
            fix="install that release on the node",
        )
    try:
        return True, fn(*args)
    except Exception as error:
        return False, error


def _cannot_run(error: BaseException) -> Mxfp4Error:
    last = [line for line in str(error).splitlines() if line.strip()][-1:]
    return ConfigError(
        "a node of the cluster cannot take part",
        seen="".join(last).strip() or type(error).__name__,
        rule=f"all nodes have {_DISTRIBUTION} {version(_DISTRIBUTION)} and what it needs",
        fix="install it on each node, or start the nodes in an environment that has it",
    )


class _Board:
    """The actor on which workers write how far they are."""

    def __init__(self) -> None:
        self._done: dict[int, int] = {}
        self._stopped = False

    def tell(self, number: int, done: int) -> bool:
        """Note the bytes of a task, and return whether the run has ended."""
        self._done[number] = done
        return self._stopped

    def heard(self) -> dict[int, int]:
        """Return the bytes of all tasks."""
        return self._done

    def stop(self) -> None:
        """Let all tasks end."""
        self._stopped = True


class _BoardChannel:
    """Workers and the run, over a `_Board`."""

    def __init__(self, board: Any) -> None:
        self._board = board

    @contextmanager
    def telling(self, number: int) -> Iterator[Progress]:
        import ray

        told, answer = float("-inf"), Future[bool]()
        answer.set_result(False)

        def tell(done: int) -> None:
            nonlocal told, answer
            # Nobody waits for an answer: a task that waits gives its processor up to another one.
            if not answer.done() or time.monotonic() - told < TELL_SECONDS:
                return
            error = answer.exception()  # of the run's end, and its board's
            if isinstance(error, ray.exceptions.RayActorError) or (error is None and answer.result()):
                raise Stopped
            told, answer = time.monotonic(), self._board.tell.remote(number, done).future()

        yield tell

    def heard(self) -> Mapping[int, int]:
        import ray

        heard: dict[int, int] = ray.get(self._board.heard.remote())
        return heard

    def stop(self) -> None:
        import ray

        ray.get(self._board.stop.remote())

    def close(self) -> None:
        import ray

        ray.kill(self._board)


def _check_address(address: str) -> None:
    """Refuse an address at which nobody answers; Ray would try it for minutes and then end the process."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:  # a word that Ray knows
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise _no_cluster(address, str(error)) from error


def _no_cluster(address: str, seen: str) -> ConfigError:
    return ConfigError(
        f"no connection to the Ray cluster {address!r}",
        seen=seen.strip().partition("\n")[0],
        rule="the address is that of a running cluster: auto, HOST:PORT or ray://HOST:PORT",
        fix="start it with `ray start --head`, or pass its address",
    )


@contextmanager
def ray_cluster(address: str = "auto", *, retries: int = RETRIES, cpus: float = 1) -> Iterator[RayExecutor]:
    """Connect to a Ray cluster, for the ``executor=`` of a job.

    Args:
        address: as `ray.init` takes it: ``auto`` for the cluster of this machine, ``HOST:PORT``, ``ray://HOST:PORT``,
            or ``local`` for one that lives as long as the context. A connection that is there already is used.
        retries: how often a task whose worker or node is lost is given to another one.
        cpus: processors that a task occupies.

    Raises:
        ConfigError: Ray is not installed, there is no such cluster, or a number that makes no sense.
    """
    if retries < 0 or cpus <= 0:
        raise ConfigError(
            "the cluster cannot be used",
            seen=f"retries = {retries}, cpus = {cpus}",
            rule="retries are 0 or more, and a task occupies a part of a processor",
            fix=f"leave them out: {RETRIES} retries, one processor",
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.util.scheduling_strategies
    except ModuleNotFoundError as error:
        say_what_to_install("the work cannot be spread over a Ray cluster", error)
        raise
    connected = ray.is_initialized()
    if not connected:
        _check_address(address)
        try:
            ray.init(address, logging_level="ERROR", log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError, AssertionError) as error:
            raise _no_cluster(address, str(error)) from error
    try:
        yield RayExecutor(ray, retries, cpus)
    finally:
        if not connected:
            ray.shutdown()


__all__ = ["RETRIES", "RayExecutor", "ray_cluster"]
