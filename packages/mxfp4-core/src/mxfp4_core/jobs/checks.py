"""The checks of one weight file: its hashes, its scale bytes and padding, and its weights against their source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mxfp4_core.arithmetic.format import BLOCK, E8M0_NAN
from mxfp4_core.checkpoint.hashing import file_sha256, tensor_pieces, tensor_sha256
from mxfp4_core.checkpoint.reader import Checkpoint
from mxfp4_core.checkpoint.tasks import Progress
from mxfp4_core.dialects.base import Entry
from mxfp4_core.jobs.units import QuantizeUnit

_NAN_BYTE = bytes([E8M0_NAN])


@dataclass(frozen=True)
class Finding:
    """Something that is wrong in a checkpoint.

    Attributes:
        check: what was checked: ``manifest``, ``scales``, ``padding`` or ``source``.
        where: the file or tensor.
        found: what was found there, in words.
    """

    check: str
    where: str
    found: str


@dataclass(frozen=True)
class FileFacts:
    """What a `FileCheck` found: what is wrong, and what is unusual and allowed."""

    findings: tuple[Finding, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class FileCheck:
    """Check one weight file.

    Args:
        checkpoint: the checkpoint that it belongs to.
        file: its path.
        entries: the quantised weights whose codes it holds.
        sha256: hash of the file in the manifest, None where there is no manifest.
        tensors: hashes of its tensors in the manifest, by name.
        nan_allowed: whether a block may be NaN.
        weights: for each weight that is compared, how its source is quantised again.
        copies: tensors that are compared byte for byte with those of ``original``.
        original: the source of the copies.
    """

    checkpoint: Checkpoint
    file: Path
    entries: tuple[Entry, ...]
    sha256: str | None
    tensors: Mapping[str, str]
    nan_allowed: bool
    weights: tuple[QuantizeUnit, ...] = ()
    copies: tuple[str, ...] = ()
    original: Checkpoint | None = None

    @property
    def source_bytes(self) -> int:
        """Bytes that are read, those of a comparison counted once."""
        hashed = 0 if self.sha256 is None else self.file.stat().st_size
        scales = sum(self.checkpoint.tensors[entry.scales].nbytes for entry in self.entries)
        copied = sum(self.checkpoint.tensors[name].nbytes for name in self.copies)
        return hashed + scales + copied + sum(unit.source_bytes for unit in self.weights)

    def run(self, progress: Progress) -> FileFacts:
        """Read the file, once for each kind of check.

        Raises:
            CheckpointError: a file that cannot be read.
        """
        findings, notes = list(self._hashes(progress)), list[str]()
        for entry in self.entries:
            for found in self._bytes(entry, progress):
                if found.check == "scales" and self.nan_allowed:
                    notes.append(f"{entry.weight}: {found.found}, as nonfinite = 'nan' allows")
                else:
                    findings.append(found)
        findings += self._against_source(progress)
        return FileFacts(tuple(findings), tuple(notes))

    def _hashes(self, progress: Progress) -> Iterator[Finding]:
        """Say which tensors differ from the manifest, or that only the header of the file does."""
        if self.sha256 is None or file_sha256(self.file, progress) == self.sha256:
            return
        quiet = True
        for name, expected in self.tensors.items():
            if name not in self.checkpoint.tensors:
                quiet = False
                yield Finding("manifest", name, f"the tensor is missing from {self.file.name}")
            elif tensor_sha256(self.checkpoint, name) != expected:
                quiet = False
                yield Finding("manifest", name, f"the tensor has another sha256, in {self.file.name}")
        if quiet:
            yield Finding("manifest", self.file.name, "the file has another sha256, its tensors have not")

    def _bytes(self, entry: Entry, progress: Progress) -> Iterator[Finding]:
        nan = 0
        for piece in tensor_pieces(self.checkpoint, entry.scales):
            nan += bytes(piece).count(_NAN_BYTE)
            progress(piece.nbytes)
        if nan:
            yield Finding("scales", entry.scales, f"{nan} scale byte(s) 255: their blocks are NaN")
        if entry.shape[-1] % BLOCK and _padding_codes(self.checkpoint, entry):
            yield Finding("padding", entry.codes, "codes behind the end of K that are not zero")

    def _against_source(self, progress: Progress) -> Iterator[Finding]:
        for unit in self.weights:
            if difference := _difference(self.checkpoint, unit, progress):
                yield Finding("source", unit.tensor, difference)
        if self.original is None:
            return
        for name in self.copies:
            if tensor_sha256(self.checkpoint, name, progress) != tensor_sha256(self.original, name):
                yield Finding("source", name, "the tensor differs from the source")


def _padding_codes(checkpoint: Checkpoint, entry: Entry) -> bool:
    row_bytes = checkpoint.tensors[entry.codes].shape[-1]
    used, odd = divmod(entry.shape[-1], 2)
    rows = checkpoint.tensors[entry.codes].nbytes // row_bytes
    tail = memoryview(bytearray(row_bytes - used))
    for row in range(rows):
        checkpoint.read_into(entry.codes, row * row_bytes + used, tail)
        content = bytes(tail)
        first = content[0] >> 4 if odd else content[0]
        if first & 0x77 or any(byte & 0x77 for byte in content[1:]):  # a zero code may carry a sign
            return True
    return False


def _difference(checkpoint: Checkpoint, unit: QuantizeUnit, progress: Progress) -> str | None:
    """Quantise again and return where the first difference is."""
    offsets = dict.fromkeys(unit.names, 0)
    for name, piece in unit.stream(progress):
        expected = piece.tobytes()
        stored = memoryview(bytearray(len(expected)))
        checkpoint.read_into(name, offsets[name], stored)
        if stored != expected:
            at = next(i for i, (a, b) in enumerate(zip(stored, expected, strict=True)) if a != b)
            kind, per_block = ("code", BLOCK // 2) if name == unit.names[0] else ("scale", 1)
            row, byte = divmod(offsets[name] + at, checkpoint.tensors[name].shape[-1])
            values = f"{stored[at]} where the source gives {expected[at]}"
            return f"first difference in {name}, row {row}, block {byte // per_block}: {kind} byte {values}"
        offsets[name] += len(expected)
    return None


__all__ = ["FileCheck", "FileFacts", "Finding"]
