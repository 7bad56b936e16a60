"""Files as the library of safetensors writes them, whatever the order in which tensors come."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from mxfp4_core.checkpoint.gguf_writer import header_of, writer_of
from mxfp4_core.checkpoint.header import DTYPE_BITS
from mxfp4_core.checkpoint.placed import PlacedWriter
from mxfp4_core.checkpoint.remote import place
from mxfp4_core.checkpoint.writer import ShardWriter, TensorSpec, library_key
from mxfp4_core.errors import OutputError

DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.float8_e8m0fnu, "I16": torch.int16, "U16": torch.uint16,
    "F16": torch.float16, "BF16": torch.bfloat16, "I32": torch.int32, "U32": torch.uint32, "F32": torch.float32,
    "C64": torch.complex64, "F64": torch.float64, "I64": torch.int64, "U64": torch.uint64,
}  # fmt: skip
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=6).filter(
    lambda name: name != "__metadata__"
)
SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(
        st.tuples(NAMES, st.sampled_from(sorted(DTYPES)), SHAPES), max_size=6, unique_by=lambda row: row[0]
    )
)
def test_it_is_the_file_of_the_library(tmp_path: Path, rows: list[tuple[str, str, tuple[int, ...]]]) -> None:
    tensors, specs = {}, []
    for number, (name, dtype, shape) in enumerate(rows):
        tensors[name] = torch.full(shape, number % 2, dtype=torch.uint8).to(DTYPES[dtype])
        specs.append(TensorSpec(name, dtype, shape))
    path = tmp_path / "model.safetensors"
    with writer_of(path, specs, None) as writer:
        for name, tensor in tensors.items():
            raw = bytes(tensor.reshape(-1).view(torch.uint8).tolist())
            writer.write(name, raw[:3])
            writer.write(name, raw[3:])
    want = save(tensors)
    assert path.read_bytes() == want
    assert header_of(path.name, specs, None) == want[: len(want) - sum(spec.nbytes for spec in specs)]
    assert writer.sha256 == hashlib.sha256(want).hexdigest()
    assert list(tmp_path.iterdir()) == [path]


def test_tensors_in_order_need_no_places(tmp_path: Path) -> None:
    specs = [TensorSpec("b", "F32", (2,)), TensorSpec("a", "U8", (3,))]
    assert type(writer_of(tmp_path / "model.safetensors", specs, None)) is ShardWriter
    assert type(writer_of(tmp_path / "model.safetensors", specs[::-1], None)) is PlacedWriter
    assert type(writer_of(tmp_path / "model.safetensors", specs[::-1], {})) is ShardWriter


def test_every_dtype_has_its_place_among_the_others() -> None:
    order = sorted((TensorSpec("x", dtype, (8,)) for dtype in DTYPE_BITS), key=library_key)
    widths = [DTYPE_BITS[spec.dtype] for spec in order if spec.dtype != "BOOL"]
    assert widths == sorted(widths, reverse=True) and order[-1].dtype == "BOOL"


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([("b", b"12345678")], "not due now"),
        ([("a", b"123")], "lacks bytes of 'b'"),
        ([("c", b"1")], "not due now"),
    ],
)
def test_what_is_missing_or_not_due_leaves_nothing(
    tmp_path: Path, pieces: list[tuple[str, bytes]], message: str
) -> None:
    specs = [TensorSpec("a", "U8", (3,)), TensorSpec("b", "F32", (2,))]
    with (
        pytest.raises(ValueError, match=message),
        writer_of(tmp_path / "m.safetensors", specs, None) as writer,
    ):
        for name, data in pieces:
            writer.write(name, data)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    specs = [TensorSpec("a", "U8", (3,)), TensorSpec("b", "F32", (2,))]
    with pytest.raises(OutputError), writer_of(tmp_path / "no" / "m.safetensors", specs, None):
        pass


def test_in_a_bucket_it_goes_through_a_file_of_this_machine(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    tensors = {
        "a": torch.arange(5_000_000, dtype=torch.int64).to(torch.uint8),
        "b": torch.arange(2_000_000.0),
    }
    specs = [TensorSpec("a", "U8", (5_000_000,)), TensorSpec("b", "F32", (2_000_000,))]
    for name, broken in (("good", False), ("broken", True)):
        path = place(f"memory://placed/{name}.safetensors")
        try:
            with writer_of(path, specs, None) as writer:
                for key, tensor in tensors.items():
                    writer.write(key, memoryview(tensor.view(torch.uint8).numpy()))
                    if broken:
                        raise KeyboardInterrupt
        except KeyboardInterrupt:
            assert broken
        memory = fsspec.filesystem("memory")
        assert memory.exists("/placed/good.safetensors") and not memory.exists("/placed/broken.safetensors")
    assert memory.cat_file("/placed/good.safetensors") == save(tensors)
    memory.rm("/placed", recursive=True)
