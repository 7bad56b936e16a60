"""Which weight files of a folder are the model, by their names: shards that are complete, one family, or an index."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mxfp4_core.checkpoint.header import damaged

SINGLES = ("model.safetensors", "diffusion_pytorch_model.safetensors")
"""Names under which transformers and diffusers store a whole model."""

_SHARD = re.compile(r"(.+)-(\d{1,9})-of-(\d{1,9})((?:\.\w+)?\.safetensors)")
_PART = re.compile(r"(.+)-(\d{1,9})-of-(\d{1,9})\.gguf")
_MAKERS = re.compile(r"consolidated([.-].*)?\.safetensors")
_KEEP_ONE = "keep the files of one of them, or add the index that says which files are the model"

Family = tuple[str, int, str]


def stem_for(config: Mapping[str, Any]) -> str:
    """Return what the names of weight files begin with for the library that a config.json belongs to."""
    return "diffusion_pytorch_model" if isinstance(config.get("_class_name"), str) else "model"


def family(name: str) -> Family | None:
    """Return what all shards of a model have in common in their names; None for a file that is no shard."""
    match = _SHARD.fullmatch(name)
    return (match[1], int(match[3]), match[4]) if match else None


def is_makers_own(name: str) -> bool:
    """Return whether a file is named as Mistral and Meta name a model in their own format."""
    return _MAKERS.fullmatch(name) is not None


def chosen_files(root: Path, found: Sequence[str]) -> list[str]:
    """Choose the files of a model that has no index.

    Args:
        root: the folder, for messages.
        found: names of all its safetensors files.

    Raises:
        CheckpointError: files of two models or formats, or a shard that is missing.
    """
    singles = [name for name in SINGLES if name in found]
    shards = {kind: name for name in found if (kind := family(name))}
    rivals = [name for kind, name in shards.items() if f"{kind[0]}.safetensors" in singles]
    if len(singles) > 1 or rivals:
        _ambiguous(root, [*singles, *rivals])
    if singles:
        return singles
    others = [name for name in found if not family(name)]
    if shards and (others or len(shards) > 1):
        _ambiguous(root, [*shards.values(), *others])
    makers = [name for name in others if is_makers_own(name)]
    if makers and len(makers) < len(others):
        _ambiguous(root, [makers[0], *(name for name in others if name not in makers)])
    check_complete(root, found)
    return list(found)


def gguf_files(root: Path, found: Sequence[str]) -> list[str]:
    """Choose the GGUF files of a folder that has nothing else: one, or all parts of one.

    Raises:
        CheckpointError: several models, or a part that is missing.
    """
    parts = [match for name in found if (match := _PART.fullmatch(name))]
    if len(found) > 1 and (len(parts) < len(found) or len({(m[1], m[3]) for m in parts}) > 1):
        _ambiguous(root, found)
    if parts and len(parts) != int(parts[0][3]):
        seen = f"{len(parts)} of {int(parts[0][3])} parts of {parts[0][1]}.gguf"
        damaged(root, seen, "a model in N parts has all of them", "get the missing files")
    return list(found)


def check_complete(root: Path, names: Iterable[str]) -> None:
    """Check that of each family of shards all are there, counted from 1 or from 0.

    Raises:
        CheckpointError: a number is missing or there twice.
    """
    numbers: dict[Family, list[int]] = defaultdict(list)
    for name in names:
        if match := _SHARD.fullmatch(name):
            numbers[match[1], int(match[3]), match[4]].append(int(match[2]))
    for (stem, total, _), present in numbers.items():
        there = set(present)
        first = 0 if 0 in there else 1
        if len(there) == len(present) == total and max(there) - first == total - 1:
            continue
        missing = [str(n) for n in range(first, min(first + total, 10**4)) if n not in there]
        twice = [str(number) for number, count in Counter(present).items() if count > 1]
        what = f"number {', '.join(missing[:5])}{' …' if len(missing) > 5 else ''} missing" if missing else ""
        what = what or (f"number {', '.join(twice[:5])} twice" if twice else "numbers beyond the total")
        damaged(
            root,
            f"{len(present)} files {stem}-*-of-{total:05}.safetensors: {what}",
            "a model that is stored in N files has all of them, numbered one by one",
            "get the missing files, or remove those that do not belong to the model",
        )


def _ambiguous(root: Path, names: Sequence[str]) -> None:
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    damaged(root, f"several models or formats side by side: {shown}", "one folder holds one model", _KEEP_ONE)


__all__ = ["SINGLES", "check_complete", "chosen_files", "family", "gguf_files", "is_makers_own", "stem_for"]
