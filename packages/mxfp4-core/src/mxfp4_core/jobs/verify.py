"""Check a written checkpoint: files, hashes, description, bytes; and, given its source, every code and scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mxfp4_core import dialects
from mxfp4_core.arithmetic.format import BLOCK, E8M0_NAN
from mxfp4_core.checkpoint.files import MANIFEST, inside
from mxfp4_core.checkpoint.hashing import file_sha256, tensor_pieces, tensor_sha256
from mxfp4_core.checkpoint.manifest import Manifest, read_manifest
from mxfp4_core.checkpoint.reader import Checkpoint, open_checkpoint
from mxfp4_core.checkpoint.staging import STAGING
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.dialects.base import Entry
from mxfp4_core.errors import ConfigError, DialectError
from mxfp4_core.jobs.convert import settings_of
from mxfp4_core.jobs.units import QuantizeUnit
from mxfp4_core.naming.resolver import Resolver

_NAN_BYTE = bytes([E8M0_NAN])


@dataclass(frozen=True)
class Problem:
    """Something that is wrong: what was checked, in which file or tensor, and what was found."""

    check: str
    where: str
    found: str


@dataclass
class Verification:
    """What was checked and what was found.

    Args:
        path: the folder.
        dialect: how its weights are stored.
        profile: profile of the codes, empty when unknown.
        weights: quantised weights.
        checks: what was checked, in words.
        problems: what is wrong; empty for a good checkpoint.
        notes: what could not be checked, or is unusual and allowed.
    """

    path: Path
    dialect: str
    profile: str
    weights: int
    checks: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Return whether nothing is wrong."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        problems = [problem.__dict__ for problem in self.problems]
        return {"ok": self.ok, **self.__dict__, "path": str(self.path), "problems": problems}


def verify_checkpoint(
    path: str | Path, source: str | Path | None = None, *, profile: str | None = None
) -> Verification:
    """Check a checkpoint.

    Args:
        path: folder with an MXFP4 checkpoint.
        source: the checkpoint in high precision that it was made from; its weights are quantised again and
            compared.
        profile: what the codes were made with, for files that do not say.

    Raises:
        CheckpointError: a damaged, incomplete or hostile file, in ``path`` or in ``source``.
        DialectError: no MXFP4 checkpoint, or a description that contradicts the tensors.
        ConfigError: ``source`` is given, and neither the file nor ``profile`` says how the codes were made.
    """
    checkpoint = open_checkpoint(path)
    found = dialects.read(checkpoint)
    if found is None:
        raise DialectError(
            f"cannot verify {checkpoint.path}",
            seen="no quantised weights and no quantization_config",
            rule="verify reads MXFP4 checkpoints",
            fix="`mxfp4 quantize` makes one from high precision",
        )
    dialect, contents = found
    config, known = settings_of(checkpoint, dialect, contents)
    result = Verification(checkpoint.path, dialect.name, known, len(contents.entries))
    result.checks.append(f"headers of {len(checkpoint.files)} file(s) and the {dialect.name} description")
    _check_manifest(checkpoint, result)
    for entry in contents.entries.values():
        _check_bytes(checkpoint, entry, config, result)
    result.checks.append("scale bytes and padding")
    if source is not None:
        if not (profile or known):
            raise ConfigError(
                "cannot quantise the source again",
                seen=f"a {dialect.name} checkpoint that does not say its profile",
                rule="the same profile gives the same bytes",
                fix="pass --profile, for example the name of the tool that wrote it",
            )
        resolver = None if profile else Resolver.for_model(config, checkpoint.config)
        original = open_checkpoint(source)
        _check_source(checkpoint, original, contents.entries, resolver, profile or known, config, result)
    return result


def _check_manifest(checkpoint: Checkpoint, result: Verification) -> None:
    if (checkpoint.path / STAGING).exists():
        result.notes.append(f"{STAGING} holds the work of a run that did not finish")
    manifest = read_manifest(checkpoint.path) if checkpoint.path.is_dir() else None
    if manifest is None:
        result.notes.append(f"no {MANIFEST}: hashes are not checked")
        return
    changed: set[str] = set()
    for name, facts in manifest.files.items():
        file = checkpoint.path / name
        if not file.is_file():
            result.problems.append(Problem("manifest", name, "the file is missing"))
        elif file_sha256(inside(file, checkpoint.path)) != facts["sha256"]:
            changed.add(name)
            if not name.endswith(".safetensors"):
                result.problems.append(Problem("manifest", name, "the file has another sha256"))
    for name in changed:
        result.problems += _changed_tensors(checkpoint, manifest, name)
    for name in checkpoint.tensors.keys() - manifest.tensors.keys():
        result.problems.append(Problem("manifest", name, "the tensor is not in the manifest"))
    result.checks.append(f"sha256 of {len(manifest.files)} files")


def _changed_tensors(checkpoint: Checkpoint, manifest: Manifest, file: str) -> Iterator[Problem]:
    """Say which tensors of a weight file differ, or that only its header does."""
    names = [name for name, row in manifest.tensors.items() if row.get("file") == file]
    if not names:
        return
    quiet = True
    for name in names:
        if name not in checkpoint.tensors:
            quiet = False
            yield Problem("manifest", name, f"the tensor is missing from {file}")
        elif tensor_sha256(checkpoint, name) != manifest.tensors[name]["sha256"]:
            quiet = False
            yield Problem("manifest", name, f"the tensor has another sha256, in {file}")
    if quiet:
        yield Problem("manifest", file, "the file has another sha256, its tensors have not")


def _check_bytes(checkpoint: Checkpoint, entry: Entry, config: Mxfp4Config, result: Verification) -> None:
    nan = sum(bytes(piece).count(_NAN_BYTE) for piece in tensor_pieces(checkpoint, entry.scales))
    if nan:
        found = f"{nan} scale byte(s) 255: their blocks are NaN"
        if config.nonfinite == "nan":
            result.notes.append(f"{entry.weight}: {found}, as nonfinite = 'nan' allows")
        else:
            result.problems.append(Problem("scales", entry.scales, found))
    if entry.shape[-1] % BLOCK and _padding_codes(checkpoint, entry):
        result.problems.append(Problem("padding", entry.codes, "codes behind the end of K that are not zero"))


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


def _check_source(
    checkpoint: Checkpoint,
    original: Checkpoint,
    entries: Mapping[str, Entry],
    resolver: Resolver | None,
    profile: str,
    config: Mxfp4Config,
    result: Verification,
) -> None:
    stored = {name for entry in entries.values() for name in (entry.codes, entry.scales)}
    for name, info in original.tensors.items():
        if name in entries:
            entry = entries[name]
            chosen = (resolver.decide(name, info.shape).profile if resolver else None) or profile
            unit = QuantizeUnit(
                original, name, (entry.codes, entry.scales), chosen, config.nonfinite, entry.transposed
            )
            if unit.shape != entry.shape:
                found = f"shape {list(entry.shape)}, {list(unit.shape)} in the source"
                result.problems.append(Problem("source", name, found))
            elif difference := _difference(checkpoint, unit):
                result.problems.append(Problem("source", name, difference))
        elif name not in checkpoint.tensors:
            result.problems.append(Problem("source", name, "the tensor is missing"))
        elif tensor_sha256(checkpoint, name) != tensor_sha256(original, name):
            result.problems.append(Problem("source", name, "the tensor differs from the source"))
    for name in (entries.keys() | (checkpoint.tensors.keys() - stored)) - original.tensors.keys():
        result.problems.append(Problem("source", name, "the source has no such tensor"))
    result.checks.append(f"{len(original.tensors)} tensors against the source, quantised by {profile}")


def _difference(checkpoint: Checkpoint, unit: QuantizeUnit) -> str | None:
    """Quantise again and return where the first difference is."""
    offsets = dict.fromkeys(unit.names, 0)
    for name, piece in unit.stream(lambda nbytes: None):
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


__all__ = ["Problem", "Verification", "verify_checkpoint"]
