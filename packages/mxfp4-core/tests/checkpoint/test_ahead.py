"""Reading ahead: every byte, in order, in bounded memory, whatever is taken."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from mxfp4_core.checkpoint.ahead import ReadAhead, Rows
from mxfp4_core.checkpoint.header import TensorInfo, read_header
from mxfp4_core.errors import CheckpointError


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], dict[str, TensorInfo]]:
    path = tmp_path_factory.mktemp("ahead") / "model.safetensors"
    tensors = {f"t{rows}": torch.randn(rows, 16).to(torch.bfloat16) for rows in range(1, 30)}
    tensors["stack"] = torch.randn(3, 5, 16).to(torch.bfloat16)
    save_file(tensors, path)
    return tensors, read_header(path)[0]


@given(
    groups=st.lists(st.lists(st.integers(1, 29), min_size=1, max_size=4), max_size=6),
    chunk=st.integers(1, 2000),
    buffers=st.integers(1, 4),
    threads=st.integers(1, 3),
    skipped=st.sets(st.integers(0, 5)),
)
def test_every_byte_comes_once_and_in_order(
    stored: tuple[dict[str, torch.Tensor], dict[str, TensorInfo]],
    groups: list[list[int]],
    chunk: int,
    buffers: int,
    threads: int,
    skipped: set[int],
) -> None:
    tensors, infos = stored
    jobs = [Rows(tuple(infos[f"t{rows}"] for rows in group)) for group in groups]
    reader = ReadAhead(jobs, pinned=False, chunk_bytes=chunk, buffers=buffers, threads=threads)
    for number, (job, group) in enumerate(zip(jobs, groups, strict=True)):
        if number in skipped:
            continue
        chunks = reader.take(job)
        assert chunks is not None
        found = [part.clone() for part in chunks]
        assert all(len(part) % 32 == 0 and len(part) <= max(chunk, 32) for part in found)
        want = torch.cat([tensors[f"t{rows}"] for rows in group])
        assert torch.equal(torch.cat(found).view(torch.bfloat16).view(-1, 16), want)
    reader.close()


def test_a_turn_that_is_over(stored: tuple[dict[str, torch.Tensor], dict[str, TensorInfo]]) -> None:
    infos = stored[1]
    jobs = [Rows((infos["stack"],)), Rows((infos["t3"],)), Rows((infos["t4"],))]
    reader = ReadAhead(jobs, pinned=False, chunk_bytes=32, buffers=2)
    begun = reader.take(jobs[1])
    assert begun is not None and len(next(begun)) == 32
    begun.close()  # an error while it was used
    assert reader.take(jobs[0]) is None and reader.take(jobs[1]) is None
    assert reader.take(Rows((infos["t3"],))) is None
    last = reader.take(jobs[2])
    assert last is not None
    assert torch.equal(torch.cat([part.clone() for part in last]), stored[0]["t4"].view(torch.uint8).view(-1))
    reader.close()
    assert reader.take(jobs[2]) is None


def test_errors_of_the_threads_arrive(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(64, 32), "b": torch.zeros(64, 32)}, path)
    infos = read_header(path)[0]
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - 4096)
    jobs = [Rows((info,)) for info in infos.values()]
    reader = ReadAhead(jobs, pinned=False, chunk_bytes=1024)
    first, second = reader.take(jobs[0]), reader.take(jobs[1])
    assert first is not None and second is not None
    assert sum(len(part) for part in first) == 8192
    with pytest.raises(CheckpointError, match="end of file"):
        list(second)
    reader.close()
