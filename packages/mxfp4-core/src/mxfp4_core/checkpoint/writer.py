"""Write one safetensors file as a stream: sizes first, then the data in order, hashed on the way.

All shapes are known before the first byte of data, so the header is final when it is written and nothing is
held back. The file appears under its name only when it is complete and on disk.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self

from mxfp4_core.checkpoint.header import DTYPE_BITS
from mxfp4_core.checkpoint.sinks import Sink, output_failed, sink_for

NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})

_WORTH_A_THREAD = 1 << 18
"""Bytes that take longer to hash than to hand over."""

_WIDTHS: Final = (
    "BOOL", "F4", "F6_E2M3", "F6_E3M2", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ",
    "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "C64", "F64", "I64", "U64",
)  # fmt: skip
"""Dtypes in the order of the library of safetensors, the narrowest first (``Dtype`` in its ``tensor.rs``, 0.8.0)."""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that is to be written: its name, safetensors dtype and shape in elements."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Return the size of the data in bytes."""
        return math.prod(self.shape) * DTYPE_BITS[self.dtype] // 8


def aligned(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Order tensors so that each starts at a multiple of its element size, as readers that map the file need.

    Wider elements go first; the order is otherwise kept.
    """
    return sorted(specs, key=lambda spec: -DTYPE_BITS[spec.dtype])


def library_key(spec: TensorSpec) -> tuple[int, str]:
    """Return what the library of safetensors sorts tensors by: their dtype, the widest first, and their name."""
    return -_WIDTHS.index(spec.dtype), spec.name


def header_bytes(specs: Iterable[TensorSpec], metadata: Mapping[str, Any] | None = NOTHING) -> bytes:
    """Return the length prefix and the header, padded to 8 bytes, for tensors stored in this order.

    Equal input gives equal bytes: no time, no host, no version.

    Args:
        specs: the tensors.
        metadata: what the header says beside them; None for a header without a place for that.
    """
    table: dict[str, object] = {} if metadata is None else {"__metadata__": {"format": "pt", **metadata}}
    offset = 0
    for spec in specs:
        table[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.nbytes],
        }
        offset += spec.nbytes
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class ShardWriter:
    """Stream tensors into one file; a context manager that leaves either the whole file or nothing.

    Args:
        path: where the file appears when all is written.
        specs: the tensors in the order in which their data comes.
        metadata: what the header says beside them; None for a header without a place for that.
    """

    def __init__(
        self, path: Path, specs: Sequence[TensorSpec], metadata: Mapping[str, Any] | None = NOTHING
    ) -> None:
        self.path = path
        self.tensor_sha256: dict[str, str] = {}
        self._specs, self._metadata = list(specs), metadata
        self._file_hash = hashlib.sha256()
        self._tensor_hash = hashlib.sha256()
        self._helper: ThreadPoolExecutor | None = None
        self._next = 0
        self._done = 0

    @property
    def sha256(self) -> str:
        """Return the hash of all bytes written so far; of the file, once it is closed."""
        return self._file_hash.hexdigest()

    def __enter__(self) -> Self:
        header = self._header()
        self._sink = self._opened(len(header) + sum(spec.nbytes for spec in self._specs))
        try:
            self._put(header)
        except BaseException as error:
            self._sink.discard()
            if isinstance(error, OSError):
                output_failed(self.path, error)
            raise
        return self

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Append bytes of a tensor; a tensor may come in pieces, the tensors come in the order of the specs.

        Raises:
            OutputError: the disk is full or the file cannot be written.
            ValueError: bytes that are not due now; a mistake in the caller.
        """
        piece = memoryview(data)
        if not piece.nbytes:
            return
        self._skip_empty()
        due = self._specs[self._next] if self._next < len(self._specs) else None
        if due is None or due.name != name or self._done + piece.nbytes > due.nbytes:
            raise ValueError(f"{piece.nbytes} bytes of {name!r} are not due now in {self.path.name}")
        try:
            with self._hashed(piece):
                self._put(piece)
        except OSError as error:
            output_failed(self.path, error)
        self._done += piece.nbytes
        if self._done == due.nbytes:
            self._close_tensor()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except OSError as failure:
            output_failed(self.path, failure)
        finally:
            if self._helper is not None:
                self._helper.shutdown()
            self._sink.discard()

    @contextmanager
    def _hashed(self, piece: memoryview) -> Iterator[None]:
        """Hash a piece of a tensor, a large one while the body runs: the hash of the file takes as long."""
        if piece.nbytes < _WORTH_A_THREAD:
            yield
            self._tensor_hash.update(piece)
            return
        if self._helper is None:
            self._helper = ThreadPoolExecutor(1, thread_name_prefix="mxfp4-hash")
        done = self._helper.submit(self._tensor_hash.update, piece)
        try:
            yield
        finally:
            done.result()  # the piece may be gone afterwards

    def _header(self) -> bytes:
        return header_bytes(self._specs, self._metadata)

    def _opened(self, nbytes: int) -> Sink:
        return sink_for(self.path, nbytes)

    def _finish(self) -> None:
        self._skip_empty()
        if self._next < len(self._specs):
            raise ValueError(f"{self.path.name} lacks bytes of {self._specs[self._next].name!r}")
        self._complete()

    def _complete(self) -> None:
        """Make the file appear: everything is written."""
        self._sink.finish()

    def _skip_empty(self) -> None:
        while self._next < len(self._specs) and not self._specs[self._next].nbytes:
            self._close_tensor()

    def _close_tensor(self) -> None:
        self.tensor_sha256[self._specs[self._next].name] = self._tensor_hash.hexdigest()
        self._tensor_hash = hashlib.sha256()
        self._next, self._done = self._next + 1, 0

    def _put(self, data: bytes | memoryview) -> None:
        view = memoryview(data).cast("B")
        while len(view):
            written = self._sink.write(view)
            self._written(view[:written])
            view = view[written:]

    def _written(self, data: memoryview) -> None:
        """Take note of bytes that the sink has taken."""
        self._file_hash.update(data)


__all__ = ["NOTHING", "ShardWriter", "TensorSpec", "aligned", "header_bytes", "library_key"]
