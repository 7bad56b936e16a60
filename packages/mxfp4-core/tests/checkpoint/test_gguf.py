"""Headers of GGUF files: what is good is read, and nothing that a header claims is believed."""

from __future__ import annotations

import resource
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mxfp4_core.checkpoint.gguf import read_gguf
from mxfp4_core.checkpoint.gguf_writer import gguf_header
from mxfp4_core.checkpoint.reader import open_checkpoint
from mxfp4_core.checkpoint.writer import TensorSpec
from mxfp4_core.errors import CheckpointError, Mxfp4Error

SETTINGS: dict[str, Any] = {"general.architecture": "llama", "llama.block_count": 1, "eps": 1e-6, "on": True}
SPECS = [TensorSpec("blk.0.ffn_up.weight", "U8", (4, 2, 17)), TensorSpec("output_norm.weight", "F32", (64,))]


def file_of(specs: list[TensorSpec] = SPECS, settings: dict[str, Any] | None = None) -> bytes:
    header, padding = gguf_header(specs, SETTINGS if settings is None else settings)
    return header + b"".join(
        b"\x11" * spec.nbytes + bytes(pad) for spec, pad in zip(specs, padding, strict=True)
    )


def put(folder: Path, data: bytes, name: str = "model.gguf") -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def crafted(
    *, tensors: int = 1, keys: int = 0, axes: tuple[int, ...] = (64, 4), kind: int = 39, offset: int = 0,
    name: str = "a.weight", data: int = 136, before: bytes = b"",
) -> bytes:  # fmt: skip
    """A header whose every number can be chosen, and data behind it."""
    row = text(name) + struct.pack("<I", len(axes)) + struct.pack(f"<{len(axes)}Q", *axes)
    raw = b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + before + row + struct.pack("<IQ", kind, offset)
    return raw + bytes(-len(raw) % 32) + b"\x11" * data


def test_what_is_written_is_read(tmp_path: Path) -> None:
    found = read_gguf(put(tmp_path, file_of()))
    assert {name: (info.dtype, info.shape) for name, info in found.tensors.items()} == {
        "blk.0.ffn_up.weight": ("U8", (4, 2, 17)),
        "output_norm.weight": ("F32", (64,)),
    }
    assert found.settings["llama.block_count"] == 1 and found.settings["on"] is True
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.load("blk.0.ffn_up.weight").eq(0x11).all()
    assert open_checkpoint(tmp_path / "model.gguf").tensors.keys() == checkpoint.tensors.keys()
    assert read_gguf(put(tmp_path, crafted())).tensors["a.weight"].shape == (4, 2, 17)


def test_the_library_of_ggml_reads_it(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(put(tmp_path, file_of()))
    assert [(t.name, t.tensor_type.name, t.n_bytes) for t in reader.tensors] == [
        ("blk.0.ffn_up.weight", "MXFP4", 136),
        ("output_norm.weight", "F32", 256),
    ]
    assert reader.fields["general.architecture"].contents() == "llama"


BIG = 1 << 62
HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "another magic": b"GGML" + file_of()[4:],
    "big-endian": b"GGUF" + struct.pack(">I", 3) + file_of()[8:],
    "version 1": b"GGUF" + struct.pack("<I", 1) + file_of()[8:],
    "cut in the header": file_of()[:60],
    "cut in the data": file_of()[:-40],
    "bytes behind the end": file_of() + bytes(64),
    "more tensors than bytes": crafted(tensors=1 << 17),
    "tensors without end": crafted(tensors=(1 << 64) - 1),
    "settings without end": crafted(keys=(1 << 64) - 1),
    # CVE-2026-33298: a product of axes, or of values and bytes, that wraps to a small number in 64 bits.
    "a product that wraps to zero": crafted(axes=(1 << 32, 1 << 32)),
    "a product that wraps to what is there": crafted(axes=((1 << 61) + 64, 8, 4)),
    "bytes that wrap": crafted(axes=(BIG, 1), kind=0),
    "an axis of 64 bits": crafted(axes=((1 << 64) - 32, 1)),
    # CVE-2026-7482: axes and offsets that fit each other, and not the file.
    "rows that the file does not have": crafted(axes=(64, 1 << 20)),
    "an offset behind the end": crafted(offset=1 << 40),
    "an offset that wraps": crafted(offset=(1 << 64) - 32),
    "an offset that is not aligned": crafted(offset=8),
    "half a block": crafted(axes=(48, 4)),
    "five axes": crafted(axes=(32, 1, 1, 1, 1)),
    "no axis": crafted(axes=(), kind=39),
    "a type that ggml does not have": crafted(kind=1000),
    "a removed type": crafted(kind=4),
    "a name without end": crafted()[:24] + struct.pack("<Q", (1 << 64) - 1) + crafted()[32:],
    "a name that is no UTF-8": crafted().replace(b"a.weight", b"\xff\xfe.weigh"),
    "no name": crafted(name=""),
    "a text without end": crafted(keys=1, before=text("k") + struct.pack("<IQ", 8, BIG)),
    "a list without end": crafted(keys=1, before=text("k") + struct.pack("<IIQ", 9, 4, BIG)),
    "texts without end": crafted(keys=1, before=text("k") + struct.pack("<IIQ", 9, 8, BIG)),
    "a list of lists": crafted(keys=1, before=text("k") + struct.pack("<IIQ", 9, 9, 1)),
    "a setting of no type": crafted(keys=1, before=text("k") + struct.pack("<I", 77)),
    "a key twice": crafted(keys=2, before=(text("k") + struct.pack("<IB", 0, 1)) * 2),
    "an alignment of zero": crafted(keys=1, before=text("general.alignment") + struct.pack("<II", 4, 0)),
    "an alignment of 48": crafted(keys=1, before=text("general.alignment") + struct.pack("<II", 4, 48)),
    "an alignment that is a text": crafted(
        keys=1, before=text("general.alignment") + struct.pack("<I", 8) + text("x")
    ),
    "a tensor twice": file_of([SPECS[0], SPECS[0]]),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_headers_are_refused_in_little_memory(tmp_path: Path, data: bytes) -> None:
    path = put(tmp_path, data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert path.name in caught.value.what and caught.value.fix
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
    )  # KiB: nothing as large as a claim


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 400), value=st.binary(min_size=1, max_size=9))
def test_any_bytes_in_a_header_are_read_or_refused(tmp_path: Path, at: int, value: bytes) -> None:
    good = file_of()
    at = min(at, len(good) - len(value))
    path = put(tmp_path, good[:at] + value + good[at + len(value) :])
    try:
        found = read_gguf(path)
    except Mxfp4Error:
        return
    for info in found.tensors.values():
        assert 0 <= info.start <= info.stop <= len(good)


def test_parts_of_one_model_belong_together(tmp_path: Path) -> None:
    for number, spec in enumerate(SPECS, 1):
        put(tmp_path, file_of([spec]), f"model-{number:05}-of-00002.gguf")
    assert open_checkpoint(tmp_path).tensors.keys() == {spec.name for spec in SPECS}
    (tmp_path / "model-00001-of-00002.gguf").unlink()
    with pytest.raises(CheckpointError, match="1 of 2 parts"):
        open_checkpoint(tmp_path)
    put(tmp_path, file_of(), "other.gguf")
    with pytest.raises(CheckpointError, match="several models"):
        open_checkpoint(tmp_path)
