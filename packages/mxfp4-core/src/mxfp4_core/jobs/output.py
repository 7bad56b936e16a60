"""From units to a folder: what quantising and converting a checkpoint have in common."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from mxfp4_core.checkpoint.assemble import DEFAULT_SHARD_BYTES, Content, Unit, write_checkpoint
from mxfp4_core.checkpoint.cache import local_path
from mxfp4_core.checkpoint.families import stem_for
from mxfp4_core.checkpoint.layout import OF_LIBRARY, Layout
from mxfp4_core.checkpoint.manifest import Manifest, tensor_samples
from mxfp4_core.checkpoint.reader import Checkpoint
from mxfp4_core.checkpoint.tasks import Executor, Progress
from mxfp4_core.config.known import NATIVE_NAME
from mxfp4_core.dialects.base import AUTO_CLASS, Entry
from mxfp4_core.dialects.default import by_adapter
from mxfp4_core.dialects.unread import DESCRIPTIONS
from mxfp4_core.errors import OutputError
from mxfp4_core.jobs.units import CopyUnit
from mxfp4_core.naming.providers import Described

_EMBEDDING = re.compile(r".*embed.*|wte|wpe")
_COMPONENT = "diffusers."


class Loadable(Protocol):
    """How a result is stored: a dialect, or another format."""

    @property
    def components(self) -> bool:
        """Whether diffusers loads a component of a pipeline from it."""
        ...

    @property
    def name(self) -> str:
        """What users call it."""
        ...

    def how_to_load(self, path: str, model: str = AUTO_CLASS) -> str:
        """Return the line of Python or shell that loads it."""
        ...


Report = Callable[[int, int], None]
"""Called with the bytes of the source that are done and their total."""


@dataclass(frozen=True)
class Result:
    """What a run did, or would do.

    Args:
        path: the folder.
        dialect: how the weights are stored.
        profile: resolved profile of the codes, empty when unknown.
        quantized: weights that are quantised now.
        kept: tensors that stay as they were.
        source_bytes: data of the source.
        target_bytes: data of the result.
        files: weight files of the result.
        resumed: weight files that an earlier run had finished.
        seconds: time that it took; 0 for a dry run.
        dry_run: whether nothing was written.
        load: how the result is loaded; empty where the library of the model cannot compute with it.
        kinds: who said what the weights are, in words; empty where nothing was decided.
        notes: what a reader should know though nothing is wrong.
        why: why this dialect.
        copied: weight files that are taken over as they are.
        left: files of the source that the result does not have, and why.
        format: of the weights; several in the order of their names, with commas.
        errors: signal to noise in dB of each weight that was rounded, by name; infinite where nothing was lost.
    """

    path: Path
    dialect: str
    profile: str
    quantized: int
    kept: int
    source_bytes: int
    target_bytes: int
    files: tuple[str, ...]
    resumed: int
    seconds: float
    dry_run: bool
    load: str
    kinds: str = ""
    notes: tuple[str, ...] = ()
    why: str = ""
    copied: tuple[str, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)
    format: str = "mxfp4"
    errors: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        lists = {name: list(getattr(self, name)) for name in ("files", "notes", "copied")}
        return {
            **self.__dict__,
            "path": str(self.path),
            **lists,
            "left": dict(self.left),
            "errors": {n: value if math.isfinite(value) else None for n, value in self.errors.items()},
        }


def check_apart(source: Path, destination: Path) -> None:
    """Raise OutputError where source and destination are one folder or one lies in the other."""
    try:
        a, b = local_path(source).resolve(), destination.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a circle of links; a byte that no name has
        raise OutputError(
            f"cannot write into {destination}",
            seen=str(error),
            rule="source and destination are folders",
            fix="choose a destination that is no link",
        ) from error
    if a == b or a in b.parents or b in a.parents:
        raise OutputError(
            f"cannot write into {destination}",
            seen=f"source {a}, destination {b}",
            rule="source and destination are apart",
            fix="choose a destination outside of the source",
        )


def content_of(
    checkpoint: Checkpoint,
    units: Sequence[Unit],
    documents: Mapping[str, Mapping[str, Any]],
    manifest: Manifest,
    metadata: Mapping[str, Any] | None = None,
    file: str = "",
    layout: Layout = OF_LIBRARY,
) -> Content:
    """Put the parts of the new checkpoint together: tensors, the dialect's JSON documents, files to copy."""
    texts = {name: layout.text(content) for name, content in documents.items()}
    others = [path.as_posix() for path in checkpoint.other_files]
    copies = {name: checkpoint.path / name for name in others if name not in DESCRIPTIONS | texts.keys()}
    old = {name: "describes an earlier quantisation" for name in others if name in DESCRIPTIONS}
    left = replace(manifest, left={**checkpoint.left, **old})
    named = replace(layout, stem=layout.stem or stem_for(checkpoint.config))
    samples = tensor_samples(checkpoint)
    return Content(units, texts, copies, left, checkpoint.seen, metadata or {}, named, file, samples)


def linear_modules(kept: Mapping[str, Sequence[int]], entries: Sequence[Entry]) -> list[str]:
    """Return the modules that an engine may take for quantised linears, but that are kept, in order.

    Args:
        kept: shapes of the tensors that are not quantised, by canonical name.
        entries: the quantised weights.
    """
    quantized = {entry.weight for entry in entries}
    names = [
        name.removesuffix(".weight") for name in kept if name.endswith(".weight") and len(kept[name]) == 2
    ]
    found = [name for name in names if not _EMBEDDING.fullmatch(name.rsplit(".", 1)[-1])]
    # A head that is tied to the embedding is a linear without a tensor of its own.
    if not any(
        name.endswith("lm_head") for name in (*found, *(w.removesuffix(".weight") for w in quantized))
    ):
        found.append("lm_head")
    return found


def loading_class(model: Mapping[str, Any], known: Described) -> str:
    """Return the class that loads a model: its own of transformers where it is known, or ``diffusers.`` and its name.

    Args:
        model: contents of config.json. Its ``architectures`` count where nobody could be asked, and no code of the
            checkpoint is to be run.
        known: what the model providers say.

    Returns:
        A name, or nothing where no library loads the model: none has a class for it, or config.json describes none.
    """
    view = known.view
    component = model.get("_class_name")
    if isinstance(component, str) and component.isidentifier():
        return f"{_COMPONENT}{component}"
    if view is not None:
        return view.model if view.provider.startswith("transformers ") else AUTO_CLASS
    named, remote = model.get("architectures"), "auto_map" in model
    name = named[0] if isinstance(named, list) and named else None
    told = isinstance(name, str) and name.isidentifier()
    if known.refused or (known.unknown and not remote and (told or not model.get("model_type"))):
        return ""
    return str(name) if told and not remote else AUTO_CLASS


def write_result(
    folder: Path,
    content: Content,
    dialect: Loadable,
    quantized: int,
    *,
    model: str = AUTO_CLASS,
    read: bool = False,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    force: bool = False,
    update: bool = False,
    dry_run: bool = False,
    progress: Report | None = None,
    executor: Executor | None = None,
) -> Result:
    """Write the content, or say what would be written.

    Args:
        folder: where the checkpoint appears.
        content: what it consists of.
        dialect: how its weights are stored.
        quantized: weights that are MXFP4 in it.
        model: from `loading_class`; empty if none loads it.
        read: code of the model reads quantised weights itself, so that what others load may not run.
        max_shard_bytes: most bytes of data in one file; a single weight may exceed it.
        force: replace a checkpoint in the folder, and discard what another run left there.
        update: as force, and keep the weight files that would come out the same.
        dry_run: write nothing.
        progress: called with the bytes of the source that are done and their total.
        executor: who writes the files; this process if None.

    Raises:
        OutputError: as `write_checkpoint`.
    """
    started = time.monotonic()
    result = Result(
        path=folder,
        dialect=dialect.name,
        profile=content.manifest.profile,
        quantized=quantized,
        kept=sum(isinstance(unit, CopyUnit) for unit in content.units),
        source_bytes=sum(unit.source_bytes for unit in content.units),
        target_bytes=sum(spec.nbytes for unit in content.units for spec in unit.specs),
        files=tuple(content.files(max_shard_bytes)),
        resumed=0,
        seconds=0.0,
        dry_run=dry_run,
        copied=copied_weights(content.copies),
        left=content.manifest.left,
        load=_line(dialect, str(folder), model, read) if model else "",
    )
    if dry_run:
        return result
    written = write_checkpoint(
        folder,
        content,
        max_shard_bytes=max_shard_bytes,
        force=force,
        update=update,
        executor=executor,
        progress=counted(result.source_bytes, progress),
    )
    return replace(result, resumed=written.resumed, seconds=time.monotonic() - started)


def _line(dialect: Loadable, folder: str, model: str, read: bool) -> str:
    if not model.startswith(_COMPONENT):
        apart = read and dialect.name != NATIVE_NAME
        return by_adapter(folder, model) if apart else dialect.how_to_load(folder, model)
    if dialect.components:
        return f"import mxfp4_diffusers, diffusers; {model}.from_pretrained({folder!r})"
    return f"mxfp4 convert {folder} NEW --to mxfp4-core  # diffusers, with mxfp4_diffusers, loads that"


def copied_weights(names: Iterable[str | Path]) -> tuple[str, ...]:
    """Return which of the files that are taken over hold weights."""
    return tuple(str(name) for name in names if str(name).endswith(".safetensors"))


def counted(total: int, report: Report | None) -> Progress:
    """Return what adds up bytes and reports their sum beside the total."""
    done = 0

    def add(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if report is not None:
            report(done, total)

    return add


__all__ = [
    "Loadable",
    "Report",
    "Result",
    "check_apart",
    "content_of",
    "copied_weights",
    "counted",
    "linear_modules",
    "loading_class",
    "write_result",
]
