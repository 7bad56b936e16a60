"""The checks of one weight file: its hashes, its scale bytes and padding, and its weights against their source."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mxfp4_core.arithmetic.format import E8M0_BIAS, E8M0_NAN
from mxfp4_core.arithmetic.formats import registry as formats
from mxfp4_core.arithmetic.formats.base import Part
from mxfp4_core.checkpoint.hashing import file_sha256, tensor_sha256
from mxfp4_core.checkpoint.reader import TORCH_DTYPES, Checkpoint
from mxfp4_core.checkpoint.tasks import Progress
from mxfp4_core.dialects.base import Contents, Entry
from mxfp4_core.dialects.raw import PIECE
from mxfp4_core.dialects.recipes import Read, Recipe
from mxfp4_core.jobs.pieces import flat, matrix
from mxfp4_core.jobs.units import QuantizeUnit

_NAN_BYTE = bytes([E8M0_NAN])
_EXACT = {(narrow, wide) for wide in ("F32", "F64") for narrow in ("BF16", "F16", "F32") if narrow != wide}


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
    """What a `FileCheck` found: what is wrong, what is unusual and allowed, and scale bytes of 0 by tensor."""

    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    smallest: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class FileCheck:
    """Check one weight file.

    Args:
        checkpoint: the checkpoint that it belongs to.
        file: its path.
        entries: the quantised weights that it holds.
        sha256: hash of the file in the manifest, None where there is no manifest.
        tensors: hashes of its tensors in the manifest, by name.
        nan_allowed: whether a block may be NaN.
        weights: for each weight that is compared, how its source is quantised again.
        copies: what is compared byte for byte with the tensor of that name in ``original``.
        original: the source of the copies.
    """

    checkpoint: Checkpoint
    file: Path
    entries: tuple[Entry, ...]
    sha256: str | None
    tensors: Mapping[str, str]
    nan_allowed: bool
    weights: tuple[QuantizeUnit, ...] = ()
    copies: tuple[tuple[str, Recipe], ...] = ()
    original: Checkpoint | None = None

    @property
    def source_bytes(self) -> int:
        """Bytes that are read, those of a comparison counted once."""
        hashed = 0 if self.sha256 is None else self.file.stat().st_size
        scales = sum(recipe.nbytes for entry in self.entries for recipe in _scales(entry).values())
        copied = sum(recipe.nbytes for _, recipe in self.copies)
        return hashed + scales + copied + sum(unit.source_bytes for unit in self.weights)

    def run(self, progress: Progress) -> FileFacts:
        """Read the file, once for each kind of check.

        Raises:
            CheckpointError: a file that cannot be read.
        """
        findings, notes = list(self._hashes(progress)), list[str]()
        smallest: dict[str, int] = {}
        for entry in self.entries:
            for found in self._bytes(entry, smallest, progress):
                if found.check == "scales" and self.nan_allowed:
                    notes.append(f"{entry.weight}: {found.found}, as nonfinite = 'nan' allows")
                else:
                    findings.append(found)
        findings += self._against_source(progress, notes)
        return FileFacts(tuple(findings), tuple(notes), tuple(smallest.items()))

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

    def _bytes(self, entry: Entry, smallest: dict[str, int], progress: Progress) -> Iterator[Finding]:
        for part, recipe in _scales(entry).items():
            nan, zero, where = 0, 0, _stored_name(entry, part)
            for piece in recipe.pieces(self.checkpoint):
                raw = bytes(piece)
                nan, zero = nan + raw.count(_NAN_BYTE), zero + raw.count(b"\0")
                progress(piece.nbytes)
            if zero:
                smallest[where] = zero
            if nan:
                yield Finding("scales", where, f"{nan} scale byte(s) 255: their blocks are NaN")
        form = formats.get(entry.format)
        if entry.shape[-1] % form.block and _padding_codes(self.checkpoint, entry, form.parts[0]):
            where = _stored_name(entry, form.parts[0].name)
            yield Finding("padding", where, "codes behind the end of K that are not zero")

    def _against_source(self, progress: Progress, notes: list[str]) -> Iterator[Finding]:
        by_name = {entry.weight: entry for entry in self.entries}
        for unit in self.weights:
            if difference := _difference(self.checkpoint, unit, by_name[unit.tensor], progress):
                yield Finding("source", unit.tensor, difference)
        if self.original is None:
            return
        for name, recipe in self.copies:
            digest = hashlib.sha256()
            for piece in recipe.pieces(self.checkpoint):
                digest.update(piece)
                progress(piece.nbytes)
            if digest.hexdigest() == tensor_sha256(self.original, name):
                continue
            stored = self.original.tensors[name].dtype
            if _cast(self.checkpoint, recipe, self.original, name):
                same = (
                    "and the same numbers"
                    if (stored, recipe.dtype) in _EXACT
                    else "rounded, as config.json says"
                )
                notes.append(f"{name}: {recipe.dtype} where the source has {stored}, {same}")
            else:
                yield Finding("source", name, "the tensor differs from the source")


def high_precision(contents: Contents) -> dict[str, Recipe]:
    """Return what a checkpoint holds beside its MXFP4 weights, by canonical name; FP8 counts by its values in BF16."""
    widened = {name: each.widened for name, each in contents.beside.items()}
    return {**contents.tensors, **widened}


def _scales(entry: Entry) -> dict[str, Recipe]:
    """Return the parts that hold E8M0 bytes, of which one is NaN."""
    parts = formats.get(entry.format).parts
    return {
        part.name: entry.parts[part.name]
        for part in parts
        if part.dtype == "uint8" and part.fill == E8M0_BIAS
    }


def _padding_codes(checkpoint: Checkpoint, entry: Entry, part: Part) -> bool:
    """Return whether any code behind the end of K is not zero; a zero code may carry a sign."""
    import torch

    codes = matrix(entry.parts[part.name])
    rows, columns = codes.shape
    used, odd = divmod(entry.shape[-1], part.values)
    magnitude = 0x77 if part.values == 2 else 0x7F
    step = PIECE // max(1, codes.row_bytes)
    for start in range(0, rows, max(1, step)):
        if step:
            tail = codes.load(checkpoint, start, min(start + step, rows)).view(torch.uint8)[:, used:]
        else:
            at = start * columns
            tail = flat(codes).load(checkpoint, at + used, at + columns).view(torch.uint8).reshape(1, -1)
        if odd:
            tail[:, 0] >>= 4
        if (tail & magnitude).any():
            return True
    return False


def _cast(checkpoint: Checkpoint, recipe: Recipe, original: Checkpoint, name: str) -> bool:
    """Say whether a tensor has the numbers of the source in another dtype, as libraries load and save it.

    A wider one holds the same numbers; to the dtype of config.json, in which a library loads the model, F32 is rounded.
    """
    import torch

    info, said = (
        original.tensors[name],
        checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype"),
    )
    rounded = (
        info.dtype == "F32" and said == TORCH_DTYPES.get(recipe.dtype) and recipe.dtype in ("BF16", "F16")
    )
    if recipe.shape != info.shape or not (rounded or (info.dtype, recipe.dtype) in _EXACT):
        return False
    source, stored = flat(Read(info.dtype, info.shape, name)), flat(recipe)
    step = PIECE // stored.row_bytes
    for start in range(0, stored.shape[0], step):
        values = start, min(start + step, stored.shape[0])
        wide = stored.load(checkpoint, *values)
        wanted = source.load(original, *values).to(wide.dtype)
        if not torch.equal(wide.view(torch.uint8), wanted.view(torch.uint8)):
            return False
    return True


def _difference(checkpoint: Checkpoint, unit: QuantizeUnit, entry: Entry, progress: Progress) -> str | None:
    """Quantise again and return where the first difference is."""
    import torch

    done = dict.fromkeys(entry.parts, 0)
    for name, piece in unit.stream(progress):
        expected = torch.frombuffer(piece, dtype=torch.uint8)
        part, recipe = unit.form.part(name), flat(entry.parts[name])
        start = done[name]
        done[name] += len(expected) // part.itemsize
        stored = recipe.load(checkpoint, start, done[name]).view(torch.uint8)
        if not torch.equal(stored, expected):
            at = int((stored != expected).nonzero()[0])
            row, byte = divmod(start * part.itemsize + at, entry.parts[name].shape[-1] * part.itemsize)
            block = byte // part.itemsize * part.values // unit.form.block
            kind = f"{name.removesuffix('s')} byte"
            values = f"{int(stored[at])} where the source gives {int(expected[at])}"
            return (
                f"first difference in {_stored_name(entry, name)}, row {row}, block {block}: {kind} {values}"
            )
    return None


def _stored_name(entry: Entry, part: str) -> str:
    """Return the name of the stored tensor of a part, or of the part where it is made from several."""
    names = entry.parts[part].names
    return names[0] if len(names) == 1 else f"{part} of {entry.weight}"


__all__ = ["FileCheck", "FileFacts", "Finding", "high_precision"]
