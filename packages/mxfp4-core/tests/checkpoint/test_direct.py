"""Reading past the cache: the same bytes as any other way, wherever they lie, or the error that any other way gives."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxfp4_core.checkpoint import direct
from mxfp4_core.checkpoint.direct import PAGE, Span, read_past_cache, room
from mxfp4_core.checkpoint.header import TensorInfo
from mxfp4_core.errors import CheckpointError

SIZE = 5 * PAGE + 77
HEAD = 123
MEMORY = room(SIZE)


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> TensorInfo:
    path = tmp_path_factory.mktemp("direct") / "model.safetensors"
    path.write_bytes(bytes(HEAD) + os.urandom(SIZE))
    return TensorInfo("a", "U8", (SIZE,), path, HEAD, HEAD + SIZE)


def forget(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


@given(first=st.integers(0, SIZE), last=st.integers(0, SIZE), cold=st.booleans())
def test_every_range_is_what_the_file_has(info: TensorInfo, first: int, last: int, cold: bool) -> None:
    start, stop = sorted((first, last))
    if cold:
        forget(info.file)
    at = read_past_cache(info, start, stop - start, MEMORY)
    assert MEMORY[at : at + stop - start] == info.file.read_bytes()[HEAD + start : HEAD + stop]


def test_the_cache_is_left_alone_and_used(info: TensorInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *given: calls.append(1) or preadv(*given))
    descriptor = os.open(info.file, os.O_RDONLY)
    try:
        info.file.read_bytes()
        assert direct._is_cached(descriptor, 0, HEAD + SIZE)
        read_past_cache(info, 0, SIZE, MEMORY)
        assert not calls
        forget(info.file)
        read_past_cache(info, 0, SIZE, MEMORY)
        on_disk = os.major(os.fstat(descriptor).st_dev) != 0  # other file systems are read as usual
        assert bool(calls) == on_disk == (not direct._is_cached(descriptor, 0, HEAD + SIZE))
    finally:
        os.close(descriptor)


def test_a_system_without_such_reads(info: TensorInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> int:
        raise OSError(22, "Invalid argument")

    forget(info.file)
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", refuse)
        at = read_past_cache(info, 5, 100, MEMORY)
    assert MEMORY[at : at + 100] == info.file.read_bytes()[HEAD + 5 : HEAD + 105]
    monkeypatch.setattr(direct, "_DIRECT", 0)
    memory = room(100)
    assert read_past_cache(info, 5, 100, memory) == at
    assert memory[at : at + 100] == MEMORY[at : at + 100]


@pytest.mark.parametrize("cold", [False, True])
def test_a_file_that_shrank_and_a_range_outside(tmp_path: Path, cold: bool) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(3 * PAGE))
    short = TensorInfo("a", "U8", (4 * PAGE,), path, 0, 4 * PAGE)
    if cold:
        forget(path)
    with pytest.raises(CheckpointError, match="end of file in tensor 'a'"):
        read_past_cache(short, PAGE, 3 * PAGE, room(4 * PAGE))
    with pytest.raises(CheckpointError, match="ranges lie inside the tensor"):
        read_past_cache(short, PAGE, 4 * PAGE, room(4 * PAGE))
    path.unlink()
    with pytest.raises(CheckpointError, match="No such file"):
        read_past_cache(short, 0, PAGE, room(PAGE))


@given(rows=st.integers(0, 50), row=st.integers(1, 40), most=st.integers(1, 300))
def test_a_span_is_cut_into_whole_rows(rows: int, row: int, most: int) -> None:
    info = TensorInfo("a", "U8", (rows, row), Path("a"), 9, 9 + rows * row)
    cut = list(Span(info, row, max(most, row)).chunks(1000))
    assert [start for _, [(_, start, _)] in cut] == [
        sum(size for size, _ in cut[:n]) for n in range(len(cut))
    ]
    assert sum(size for size, _ in cut) == info.nbytes
    assert all(size == count and size % row == 0 and size <= max(most, row) for size, [(_, _, count)] in cut)
