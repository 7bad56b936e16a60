"""Write a whole checkpoint from units: shards, index, documents, copied files, manifest.

A unit is the smallest piece of work: it knows what it will write before it reads anything, and needs nothing
of the others. So shards are planned from headers, and each is a task that any process may run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mxfp4_core._text import disk_text
from mxfp4_core.checkpoint.bucket import Bucket
from mxfp4_core.checkpoint.copied import copied
from mxfp4_core.checkpoint.files import INDEX_SUFFIX, MANIFEST, MARK
from mxfp4_core.checkpoint.gguf_writer import header_of
from mxfp4_core.checkpoint.header import DTYPE_BITS, damaged
from mxfp4_core.checkpoint.layout import OF_TRANSFORMERS, Layout
from mxfp4_core.checkpoint.manifest import Manifest
from mxfp4_core.checkpoint.places import Identity, identity
from mxfp4_core.checkpoint.remote import RemotePath
from mxfp4_core.checkpoint.shard import ShardTask, Unit
from mxfp4_core.checkpoint.staging import Destination
from mxfp4_core.checkpoint.tasks import Executor, Progress, run_tasks
from mxfp4_core.checkpoint.writer import TensorSpec, library_key
from mxfp4_core.errors import ConfigError, OutputError, check_type

DEFAULT_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class Content:
    """All that a checkpoint is to consist of.

    Args:
        units: the tensors, in the order of the source.
        documents: small files by name, such as ``config.json``.
        copies: files to copy, by path inside the folder.
        manifest: the manifest without files and tensors.
        seen: what tells each file of the source from one that takes its place while the checkpoint is written.
        metadata: what the header of each weight file says beside its tensors, where the layout has a place for it.
        layout: how the files are named and written.
        file: name of the only weight file, where it is no safetensors file.
        samples: what tells the tensors of the source from others of their names, for units that say what they do.
    """

    units: Sequence[Unit]
    documents: Mapping[str, bytes]
    copies: Mapping[str, Path]
    manifest: Manifest
    seen: Mapping[Path, Identity] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    layout: Layout = OF_TRANSFORMERS
    file: str = ""
    samples: Mapping[str, str] = field(default_factory=dict)

    def files(self, max_shard_bytes: int) -> dict[str, list[Unit]]:
        """Return the names of the weight files, each with what goes into it; a ConfigError for a size that is none."""
        check_type(max_shard_bytes, (int, float), "max_shard_bytes")
        if not max_shard_bytes > 0:
            raise ConfigError(
                "max_shard_bytes is no size",
                seen=f"{max_shard_bytes}",
                rule="it is above 0",
                fix="leave it out",
            )
        if self.file:
            return {self.file: list(self.units)}
        return plan_shards(self.units, max_shard_bytes, self.layout)


@dataclass(frozen=True)
class Written:
    """What was written.

    Args:
        manifest: as it is on disk.
        resumed: shards that an earlier run had finished.
    """

    manifest: Manifest
    resumed: int


def plan_shards(
    units: Sequence[Unit], max_shard_bytes: int, layout: Layout = OF_TRANSFORMERS
) -> dict[str, list[Unit]]:
    """Distribute units over files in order; a file holds ``max_shard_bytes`` of data or a single unit.

    Args:
        units: in order.
        max_shard_bytes: see above.
        layout: how the files are named, and whether tensors lie as the library of safetensors has them.

    Returns:
        File names to units; inside a file wide elements go first, so that every tensor is aligned.
    """
    shards: list[list[Unit]] = [[]]
    size = 0
    for unit in units:
        nbytes = sum(spec.nbytes for spec in unit.specs)
        if shards[-1] and size + nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(unit)
        size += nbytes
    stem = layout.stem
    ordered = [
        sorted(shard, key=_first) if layout.bare else sorted(shard, key=_width, reverse=True)
        for shard in shards
    ]
    if len(ordered) == 1:
        return {f"{stem}.safetensors": ordered[0]}
    return {f"{stem}-{i:05}-of-{len(ordered):05}.safetensors": shard for i, shard in enumerate(ordered, 1)}


def write_checkpoint(
    folder: Path,
    content: Content,
    *,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    force: bool = False,
    update: bool = False,
    executor: Executor | None = None,
    progress: Progress = lambda nbytes: None,
) -> Written:
    """Write a checkpoint, or go on with one that was interrupted. Its bytes do not depend on who writes the shards.

    Args:
        folder: where it appears, complete or not at all.
        content: what it consists of.
        max_shard_bytes: most bytes of data in one file; a single unit may exceed it.
        force: replace a checkpoint that is there.
        update: as force, and keep the files, of it or of another run, that would come out the same.
        executor: who writes the shards; this process if None.
        progress: called with the number of source bytes since the last call.

    Raises:
        OutputError: a destination that exists, is full, cannot be written or belongs to another run.
        CheckpointError: a file of the source was changed while it was read.
        Mxfp4Error: whatever a unit raises; the folder is then as it was before.
    """
    bare = content.layout.bare
    metadata = None if bare else {**content.metadata, MARK: MANIFEST}
    shards = content.files(max_shard_bytes)
    specs = {name: [spec for unit in units for spec in unit.specs] for name, units in shards.items()}
    headers = [header_of(name, each, metadata) for name, each in specs.items()]
    layout = hashlib.sha256(b"".join(headers)).hexdigest()
    run = {
        "release": version("mxfp4-core"),
        "config": content.manifest.config_sha256,
        "source": content.manifest.source,
        "layout": layout,
    }
    beside = any("/" not in name for name in content.copies if name.endswith(".safetensors"))
    documents = {**content.documents, **_index(specs, beside, content)}
    if bare:
        documents[MARK] = f"{MANIFEST}\n".encode()
    names = {*specs, *documents, *content.copies, MANIFEST}
    opened: type[Destination] | type[Bucket] = Bucket if isinstance(folder, RemotePath) else Destination
    where: Any = folder
    works = {
        name: _work(units, header, content)
        for (name, units), header in zip(shards.items(), headers, strict=True)
    }
    with opened(
        where,
        run,
        names,
        copies=content.copies,
        seen=_when(content.seen),
        force=force,
        works=works if update else None,
    ) as destination:
        if destination.complete is not None:
            progress(sum(unit.source_bytes for unit in content.units))
            return Written(destination.complete, len(shards))
        resumed = len(destination.finished)
        _check_room(destination, specs, content.copies)
        said = None if metadata is None else tuple(metadata.items())
        tasks = {
            name: ShardTask(destination.place(name), tuple(units), said) for name, units in shards.items()
        }
        for name in destination.finished:
            progress(tasks.pop(name).source_bytes)
        run_tasks(
            tasks,
            lambda name, facts: destination.record(name, {**facts, "work": works[name]}),
            executor=executor,
            progress=progress,
        )
        files: dict[str, dict[str, Any]] = {}
        for name, facts in destination.finished.items():
            files[name] = {"size": facts["size"], "sha256": facts["sha256"], "work": works[name]}
        for name, data in documents.items():
            files[name] = {"size": len(data), "sha256": destination.put(name, data)}
        for name, source in content.copies.items():
            files[name] = copied(source, destination.place(name))
        _check_unchanged(content.seen, destination)
        manifest = replace(
            content.manifest, run=destination.run, files=files, tensors=_tensor_table(destination, specs)
        )
        destination.put(MANIFEST, manifest.to_bytes())
        destination.commit()
    return Written(manifest, resumed)


def _work(units: Sequence[Unit], header: bytes, content: Content) -> str:
    """Return a hash that is the same where the same bytes come out; empty where a unit does not say what it does."""
    digest = hashlib.sha256(f"{version('mxfp4-core')} ".encode() + header)
    for unit in units:
        told: Callable[[Mapping[str, str]], str] | None = getattr(unit, "work", None)
        try:
            text = told(content.samples) if told is not None else ""
        except KeyError:  # a source that is no checkpoint
            text = ""
        if not text:
            return ""
        digest.update(text.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


def _tensor_table(
    destination: Destination | Bucket, specs: Mapping[str, Sequence[TensorSpec]]
) -> dict[str, dict[str, object]]:
    return {
        spec.name: {
            "file": name,
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "sha256": destination.finished[name]["tensors"][spec.name],
        }
        for name, each in specs.items()
        for spec in each
    }


def _width(unit: Unit) -> int:
    return max(DTYPE_BITS[spec.dtype] for spec in unit.specs)


def _first(unit: Unit) -> tuple[int, str]:
    return min(library_key(spec) for spec in unit.specs)


def _index(specs: Mapping[str, Sequence[TensorSpec]], beside: bool, content: Content) -> dict[str, bytes]:
    """Return the index; one file needs none, unless other weights lie beside it that are not to be read with it."""
    if len(specs) == 1 and not beside:
        return {}
    weight_map = {spec.name: name for name, each in specs.items() for spec in each}
    total = sum(spec.nbytes for each in specs.values() for spec in each)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return {f"{content.layout.stem}{INDEX_SUFFIX}": content.layout.text(index)}


def _check_room(
    destination: Destination | Bucket, specs: Mapping[str, Sequence[TensorSpec]], copies: Mapping[str, Path]
) -> None:
    """Fail before the work rather than after it where the disk cannot hold the result."""
    missing = [spec for name, each in specs.items() if name not in destination.finished for spec in each]
    needed = sum(spec.nbytes for spec in missing) + sum(path.stat().st_size for path in copies.values())
    free = destination.room()
    if free is not None and needed > free:
        raise OutputError(
            f"cannot write into {destination.folder}",
            seen=f"{disk_text(free)} free",
            rule=f"the result needs another {disk_text(needed)}",
            fix="free space there, or choose another destination",
        )


def _when(seen: Mapping[Path, Identity]) -> str:
    """Return a hash that differs when a file of the source was written since; a folder that was moved is the same."""
    facts = [(path.name, size, when) for path, (_, size, when) in seen.items()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _check_unchanged(seen: Mapping[Path, Identity], destination: Destination | Bucket) -> None:
    for path, before in seen.items():
        if identity(path) != before:
            destination.forget()
            damaged(
                path,
                "a file that was replaced or written to while it was read",
                "the source does not change during the run",
                "run it again when nothing writes to the source; what was made of it is discarded",
            )


__all__ = [
    "DEFAULT_SHARD_BYTES", "Content", "Progress", "ShardTask", "Unit", "Written", "plan_shards", "write_checkpoint",
]  # fmt: skip
