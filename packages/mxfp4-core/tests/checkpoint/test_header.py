from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save

from mxfp4_core.checkpoint.header import MAX_HEADER_BYTES, read_header
from mxfp4_core.errors import CheckpointError

GOOD = save({"a": torch.arange(6, dtype=torch.int16).reshape(2, 3), "b": torch.zeros(0), "c": torch.ones(())})


def file_of(tmp_path: Path, raw: bytes) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw)
    return path


def with_header(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: Any = "U8", shape: Any = (4,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_reads_what_safetensors_writes(tmp_path: Path) -> None:
    path = file_of(tmp_path, GOOD)
    tensors, metadata, digest = read_header(path)
    length = int.from_bytes(GOOD[:8], "little")
    assert {name: (info.dtype, info.shape) for name, info in tensors.items()} == {
        "a": ("I16", (2, 3)),
        "b": ("F32", (0,)),
        "c": ("F32", ()),
    }
    info = tensors["a"]
    assert GOOD[info.start : info.stop] == bytes([0, 0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0])
    assert (info.row_bytes, tensors["c"].row_bytes, tensors["b"].nbytes) == (6, 4, 0)
    assert metadata == {}
    assert digest == hashlib.sha256(GOOD[8 : 8 + length]).hexdigest()


BAD: dict[str, bytes] = {
    "empty file": b"",
    "shorter than a length": b"\x01\x02",
    "length beyond the file": (1000).to_bytes(8, "little") + b"{}",
    "length that overflows": b"\xff" * 8 + b"{}",
    "length zero": (0).to_bytes(8, "little") + b"{}",
    "no JSON": with_header(b"{nothing}"),
    "no UTF-8": with_header(b'{"\xff":1}'),
    "an array": with_header(b"[]"),
    "leading space": with_header(b' {"a":1}'),
    "padded with zeros": with_header(b"{}\0\0\0\0"),
    "padded with vertical tabs": with_header(b"{}\v\v"),
    "garbage behind the object": with_header(b'{} "x"'),
    "NaN": with_header(b'{"a":NaN}'),
    "minus zero": with_header(b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[-0,2]}}', b"ab"),
    "a number out of range": with_header(b'{"a":1e999}'),
    "a key twice": with_header(
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"x",
    ),
    "an inner key twice": with_header(
        b'{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"
    ),
    "a lone surrogate": with_header(b'{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"),
    "nested without end": with_header(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "an endless number": with_header(b'{"a":' + b"9" * 100_000 + b"}"),
    "metadata of numbers": with_header({"__metadata__": {"a": 1}}),
    "metadata that is a list": with_header({"__metadata__": []}),
    "a tensor that is a number": with_header({"a": 1}),
    "a missing key": with_header({"a": {"dtype": "U8", "shape": [1]}}, b"x"),
    "an extra key": with_header({"a": {**entry(), "stride": [1]}}, b"abcd"),
    "an unknown dtype": with_header({"a": entry(dtype="Q4")}, b"abcd"),
    "a dtype that is a list": with_header({"a": entry(dtype=["U8"])}, b"abcd"),
    "a negative size": with_header({"a": entry(shape=[-2, -2])}, b"abcd"),
    "a size that is a float": with_header({"a": entry(shape=[4.0])}, b"abcd"),
    "a size that is true": with_header({"a": entry(shape=[True, 4])}, b"abcd"),
    "a product beyond 64 bits": with_header({"a": entry(shape=[2**62, 2**62, 4])}, b"abcd"),
    "a size beyond 63 bits": with_header({"a": entry(shape=[2**63, 0], offsets=[0, 0])}),
    "too many axes": with_header({"a": entry(shape=[1] * 17, offsets=[0, 1])}, b"a"),
    "offsets that are reversed": with_header({"a": entry(offsets=[4, 0])}, b"abcd"),
    "one offset": with_header({"a": entry(offsets=[4])}, b"abcd"),
    "a negative offset": with_header({"a": entry(offsets=[-4, 0])}, b"abcd"),
    "offsets of another size": with_header({"a": entry(shape=[3])}, b"abcd"),
    "half a byte": with_header({"a": entry(dtype="F4", shape=[3], offsets=[0, 1])}, b"a"),
    "a gap at the start": with_header({"a": entry(offsets=[2, 6])}, b"abcdef"),
    "a gap between": with_header({"a": entry(), "b": entry(offsets=[5, 9])}, b"abcdefghi"),
    "an overlap": with_header({"a": entry(), "b": entry(offsets=[2, 6])}, b"abcdef"),
    "data cut short": with_header({"a": entry()}, b"abc"),
    "data left over": with_header({"a": entry()}, b"abcde"),
}


@pytest.mark.parametrize("raw", BAD.values(), ids=BAD.keys())
def test_refuses(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_header(file_of(tmp_path, raw))
    assert "model.safetensors" in caught.value.what
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("tail", [b"\n\n\n", b"\t \r\n"])
@pytest.mark.parametrize("metadata", [{}, {"__metadata__": None}, {"__metadata__": {"format": "pt"}}])
def test_reads_what_safetensors_reads(tmp_path: Path, metadata: dict[str, Any], tail: bytes) -> None:
    raw = with_header(json.dumps({**metadata, "a": entry()}).encode() + tail, b"abcd")
    path = file_of(tmp_path, raw)
    with safe_open(path, "pt") as opened:
        assert list(opened.keys()) == ["a"]
    tensors, found, _ = read_header(path)
    assert (tensors["a"].stop, found) == (len(raw), metadata.get("__metadata__") or {})


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456\n"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (LFS, "Git LFS pointer"),
        (b"<!DOCTYPE html>\n<html>", "a web page"),
        (b'{\n  "model_type": "llama"\n}', "a text, such as a config"),
        (b"# A model\n\nIt speaks.", "a text, such as a config"),
        (b"PK\x03\x04\x00\x00\x08\x08archive/data.pkl", "torch.save"),
        (b"\x80\x02}q\x00X\x01\x00\x00\x00aq", "a pickle"),
        (b"GGUF\x03\x00\x00\x00\x10\x00\x00\x00", "GGUF"),
    ],
)
def test_says_what_a_file_is_instead(tmp_path: Path, raw: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(file_of(tmp_path, raw))
    assert "get the file again" not in caught.value.fix


def test_a_huge_header_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with open(path, "wb") as file:
        file.write((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
        file.truncate(MAX_HEADER_BYTES + 100)  # sparse: takes no room
    with pytest.raises(CheckpointError, match="header length 100000001"):
        read_header(path)


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_header(tmp_path / "model.safetensors")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        read_header(tmp_path / "model.safetensors")


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_change_to_a_file_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        action = data.draw(st.sampled_from(["set", "insert", "delete", "cut", "digit"]))
        if action == "set":
            raw[at] = data.draw(st.integers(0, 255))
        elif action == "insert":
            raw[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        elif action == "delete" and len(raw) > 1:
            del raw[at]
        elif action == "cut" and at:
            del raw[at:]
        elif action == "digit":
            raw[at : at + 1] = data.draw(
                st.sampled_from([b"-", b"9", b"[", b"}", b'"', b"1e9", b"\\u", b"null"])
            )
    path = file_of(tmp_path, bytes(raw))
    try:
        tensors, _, _ = read_header(path)
    except CheckpointError:
        return
    for info in tensors.values():
        assert 8 <= info.start <= info.stop <= len(raw)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    header=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["U8", "BF16"]),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(["a", "dtype", "shape", "data_offsets", "__metadata__"]), inner)
        ),
        max_leaves=12,
    )
)
def test_any_json_is_read_or_refused(tmp_path: Path, header: Any) -> None:
    path = file_of(tmp_path, with_header(json.dumps(header).encode(), b"abcd"))
    with suppress(CheckpointError):
        read_header(path)
