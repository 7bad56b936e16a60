"""The C library's heap, and where it is left alone."""

from __future__ import annotations

import gc

import pytest
import torch
from torch.nn import Parameter

from mxfp4_core.errors import LoadError
from mxfp4_core.loader import LoadSession, memory
from mxfp4_core.loader.memory import Heap

torch.set_num_threads(1)


class Spy(Heap):
    """A heap that notes its settings instead of making them."""

    def __init__(self) -> None:
        super().__init__()
        self.settings: list[tuple[int, int]] = []

    def _set(self, parameter: int, value: int) -> None:
        self.settings.append((parameter, value))


@pytest.fixture
def heap(monkeypatch: pytest.MonkeyPatch) -> Spy:
    gc.collect()  # sessions of other tests let go of the real heap first
    spy = Spy()
    monkeypatch.setattr("mxfp4_core.loader.session.HEAP", spy)
    return spy


HELD, RELEASED = [(-3, 1 << 20)], [(-3, 32 << 20), (-1, 64 << 20)]


def copy_whole(param: Parameter, loaded_weight: torch.Tensor) -> None:
    param.data.copy_(loaded_weight)


def load_one(session: LoadSession, name: str = "w") -> None:
    target = session.target(name, (1, 32), dtype=torch.bfloat16)
    session.wrap(name, copy_whole)(Parameter(target.codes, requires_grad=False), torch.ones(1, 32))


def test_held_from_the_first_target_to_the_close(heap: Spy) -> None:
    session = LoadSession()
    assert heap.settings == []
    load_one(session)
    load_one(session, "v")
    assert heap.settings == HELD
    session.close()
    assert heap.settings == HELD + RELEASED
    session.begin(subset=True)
    session.close()
    assert heap.settings == (HELD + RELEASED) * 2


def test_overlapping_sessions_release_once(heap: Spy) -> None:
    first, second = LoadSession(), LoadSession()
    load_one(first)
    load_one(second)
    first.close()
    assert heap.settings == HELD
    second.close()
    assert heap.settings == HELD + RELEASED


def test_released_when_the_load_fails_or_is_dropped(heap: Spy) -> None:
    session = LoadSession()
    session.target("w", (1, 32), dtype=torch.bfloat16)
    with pytest.raises(LoadError):
        session.close()
    assert heap.settings == HELD + RELEASED
    load_one(session, "v")
    del session
    gc.collect()
    assert heap.settings == (HELD + RELEASED) * 2


@pytest.mark.parametrize(
    "variable", ["MALLOC_MMAP_THRESHOLD_=65536", "GLIBC_TUNABLES=glibc.malloc.mmap_threshold=65536"]
)
def test_what_the_user_set_is_left_alone(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(name: object) -> None:
        raise AssertionError("the C library was asked")

    monkeypatch.setattr(memory.ctypes, "CDLL", forbidden)
    with pytest.raises(AssertionError, match="was asked"):
        Heap().hold()
    monkeypatch.setenv(*variable.split("=", 1))
    heap = Heap()
    heap.hold()
    heap.release()


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    heap = Heap()
    heap.hold()
    heap.release()
