from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from mxfp4_core.checkpoint import sinks
from mxfp4_core.checkpoint.assemble import Progress, plan_shards
from mxfp4_core.checkpoint.header import read_header
from mxfp4_core.checkpoint.sinks import write_file
from mxfp4_core.checkpoint.writer import ShardWriter, TensorSpec, header_bytes
from mxfp4_core.errors import OutputError

SPECS = [TensorSpec("w", "BF16", (2, 3)), TensorSpec("none", "U8", (0, 4)), TensorSpec("s", "U8", (5,))]
W = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)


def w_bytes() -> bytes:
    return bytes(W.view(torch.uint8).flatten().tolist())


def test_writes_what_safetensors_reads(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with ShardWriter(path, SPECS) as writer:
        writer.write("w", w_bytes()[:5])
        writer.write("w", memoryview(w_bytes())[5:])
        writer.write("s", b"abcde")
        assert not path.exists()
    loaded = load_file(path)
    assert torch.equal(loaded["w"], W)
    assert loaded["s"].tolist() == list(b"abcde")
    assert loaded["none"].shape == (0, 4)
    assert writer.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert writer.tensor_sha256 == {
        "w": hashlib.sha256(w_bytes()).hexdigest(),
        "none": hashlib.sha256(b"").hexdigest(),
        "s": hashlib.sha256(b"abcde").hexdigest(),
    }
    assert list(tmp_path.iterdir()) == [path]


def test_large_pieces_are_hashed_and_the_disk_begins_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, begun = os.urandom(5 << 20), list[tuple[int, int]]()
    monkeypatch.setattr(sinks, "_BEGIN_BYTES", 2 << 20)
    monkeypatch.setattr(sinks, "begin_writing", lambda file, start, count: begun.append((start, count)))
    path, specs = tmp_path / "model.safetensors", [TensorSpec("a", "U8", (len(data),))]
    with ShardWriter(path, specs) as writer:
        for start in range(0, len(data), 1 << 20):
            writer.write("a", memoryview(data)[start : start + (1 << 20)])
    written = path.read_bytes()
    assert written.endswith(data)
    assert writer.tensor_sha256 == {"a": hashlib.sha256(data).hexdigest()}
    assert writer.sha256 == hashlib.sha256(written).hexdigest()
    assert [start for start, _ in begun] == [0, begun[0][1]]
    assert begun[0][1] >= 2 << 20


def test_the_header_is_aligned_and_names_the_framework() -> None:
    raw = header_bytes(SPECS)
    assert len(raw) % 8 == 0
    assert json.loads(raw[8:])["__metadata__"] == {"format": "pt"}
    assert raw == header_bytes(list(SPECS))


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([("s", b"abcde")], "not due now"),
        ([("w", b"x" * 13)], "not due now"),
        ([("w", b"x" * 12), ("s", b"abcde"), ("s", b"f")], "not due now"),
        ([("w", b"x" * 11)], "lacks bytes of 'w'"),
        ([("w", b"x" * 12)], "lacks bytes of 's'"),
    ],
)
def test_a_caller_that_is_wrong_leaves_nothing(
    tmp_path: Path, pieces: list[tuple[str, bytes]], message: str
) -> None:
    with pytest.raises(ValueError, match=message), ShardWriter(tmp_path / "x.safetensors", SPECS) as writer:
        for name, piece in pieces:
            writer.write(name, piece)
    assert not list(tmp_path.iterdir())


def test_an_error_outside_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), ShardWriter(tmp_path / "x.safetensors", SPECS) as writer:
        writer.write("w", w_bytes())
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="free space"), ShardWriter(tmp_path / "x", SPECS) as writer:
        writer.write("w", w_bytes())
        writer.write("s", b"abcde")
    with pytest.raises(OutputError, match="No space left"):
        write_file(tmp_path / "y", b"text")
    assert not list(tmp_path.iterdir())


def test_a_device_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "x.safetensors"
    (tmp_path / "x.partial").symlink_to("/dev/full")
    monkeypatch.setattr(sinks, "temporary_of", lambda path: tmp_path / "x.partial")
    with pytest.raises(OutputError, match="No space left"), ShardWriter(target, SPECS):
        pass
    assert not target.exists()


class Piece:
    def __init__(self, number: int, dtype: str, size: int) -> None:
        self.specs = (TensorSpec(f"t{number}", dtype, (size,)),)
        self.source_bytes = 0

    def stream(self, progress: Progress) -> Iterator[tuple[str, memoryview]]:
        yield self.specs[0].name, memoryview(bytes(self.specs[0].nbytes))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    parts=st.lists(st.tuples(st.sampled_from(["U8", "BF16", "F32", "I64"]), st.integers(0, 9)), max_size=8),
    limit=st.integers(1, 60),
)
def test_shards_hold_all_in_order_within_the_limit_and_aligned(
    tmp_path: Path, parts: list[tuple[str, int]], limit: int
) -> None:
    units = [Piece(number, dtype, size) for number, (dtype, size) in enumerate(parts)]
    shards = plan_shards(units, limit)
    names = [[unit.specs[0].name for unit in shard] for shard in shards.values()]
    assert [name for shard in names for name in sorted(shard)] == [f"t{n}" for n in range(len(parts))]
    for number, (file, shard) in enumerate(shards.items(), 1):
        total = sum(unit.specs[0].nbytes for unit in shard)
        assert total <= limit or len(shard) == 1 or sum(u.specs[0].nbytes > 0 for u in shard) == 1
        expected = (
            f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
        )
        assert file == expected
        with ShardWriter(tmp_path / "model.safetensors", [unit.specs[0] for unit in shard]) as writer:
            for unit in shard:
                for name, data in unit.stream(lambda nbytes: None):
                    writer.write(name, data)
        for info in read_header(tmp_path / "model.safetensors")[0].values():
            width = {"U8": 1, "BF16": 2, "F32": 4, "I64": 8}[info.dtype]
            assert info.start % width == 0
