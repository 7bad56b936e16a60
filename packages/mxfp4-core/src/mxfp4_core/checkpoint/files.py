"""Find the files of a checkpoint that hold weights, and read its documents; none outside of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NoReturn

from mxfp4_core.checkpoint.cache import blobs_of, cache_folder, hub_name
from mxfp4_core.checkpoint.families import SINGLES, check_complete, chosen_files, family, gguf_files
from mxfp4_core.checkpoint.header import MAX_HEADER_BYTES, damaged, parse_json
from mxfp4_core.checkpoint.places import is_file, is_folder, is_there, names_in
from mxfp4_core.checkpoint.remote import RemotePath

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
INDEX_SUFFIX = ".safetensors.index.json"
MANIFEST = "mxfp4_manifest.json"
MARK = "mxfp4.manifest"
"""Key that the header of a weight file of ours has, with the name of the manifest, which is written after it; and the
name of the file that says so where weight files are as others write them."""
STAGING = ".mxfp4-partial"
"""Folder in a destination in which files are finished."""

GGUF = ".gguf"
"""Suffix of the one kind of weight files that is read beside safetensors."""

PIPELINE = "model_index.json"
"""What diffusers writes into the folder around the models of a pipeline."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""Suffixes of pickles, which can run any code when they are opened."""


def locate_weights(root: Path) -> tuple[list[Path], dict[str, str] | None]:
    """Find the weight files of a folder or accept a single file.

    Returns:
        The files in order of their names, and the ``weight_map`` of the index if there is one.

    Raises:
        CheckpointError: no such path, no model, several of them, a shard that is missing, or an index that is damaged
            or leaves the folder.
    """
    if is_file(root):
        return [root], None
    if not is_folder(root):
        _nothing_there(root)
    present = _names(root)
    if PIPELINE in present:
        parts = ", ".join(folders_with_weights(root)) or "none"
        damaged(
            root,
            f"{PIPELINE}: a pipeline of several models (folders with weights: {parts})",
            "weights are read, quantised and checked model by model",
            "pass the folder of a component, such as the transformer; `mxfp4 plan` takes the whole pipeline",
        )
    found = [name for name in present if name.endswith(".safetensors")]
    if index := index_of(root):
        weight_map = _weight_map(index, root)
        files = sorted(set(weight_map.values()))
        if WEIGHTS in found and WEIGHTS not in files:
            seen = f"{WEIGHTS} beside {index.name}, which does not list it"
            damaged(root, seen, "it is clear which files are the model", f"remove {WEIGHTS} or the index")
        families = {family(name) for name in files} - {None}
        check_complete(root, [name for name in found if family(name) in families])
        return [inside(root / name, root) for name in files], weight_map
    if not found:
        if other := [name for name in present if name.endswith(GGUF)]:
            return [inside(root / name, root) for name in gguf_files(root, other)], None
        _no_safetensors(root, present)
    return [inside(root / name, root) for name in chosen_files(root, found)], None


def index_of(root: Path) -> Path | None:
    """Return the index that says which files are the model; None where there is none.

    Raises:
        CheckpointError: there are several, and none has a name that is looked for first.
    """
    present = [name for name in _names(root) if name.endswith(INDEX_SUFFIX)]
    first = [f"{name}.index.json" for name in SINGLES if f"{name}.index.json" in present]
    if not first and len(present) > 1:
        damaged(
            root, f"several indices: {' '.join(present)}", "a checkpoint has one index", "keep one of them"
        )
    return next((root / name for name in (*first, *present)), None)


def folders_with_weights(root: Path) -> list[str]:
    """Return the folders directly in this one that hold safetensors files; in a cache of the Hub, its revisions."""
    found = []
    for above in ("", "snapshots/"):
        names = _names(root / above) if not above or is_folder(root / above) else []
        found += [f"{above}{name}" for name in names if not name.startswith(".")]
    return [
        name
        for name in found
        if is_folder(root / name) and any(each.endswith(".safetensors") for each in _names(root / name))
    ]


def read_json_file(path: Path, root: Path) -> dict[str, Any]:
    """Read a JSON object from a file of the checkpoint.

    Raises:
        CheckpointError: outside of the folder, unreadable, too large, or no JSON object.
    """
    return parse_json(read_small_file(path, root), path, constants=True)


def read_small_file(path: Path, root: Path) -> bytes:
    """Read a file of the checkpoint that holds a document.

    Raises:
        CheckpointError: outside of the folder, unreadable, or too large.
    """
    inside(path, root)
    try:
        size = path.stat().st_size
        if size > MAX_HEADER_BYTES:
            damaged(path, f"{size} bytes", f"JSON files have at most {MAX_HEADER_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        damaged(path, str(error), "the file can be read", "check the permissions")


def _weight_map(path: Path, root: Path) -> dict[str, str]:
    weight_map = read_json_file(path, root).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        damaged(path, f"weight_map = {str(weight_map)[:80]}", "weight_map maps tensor names to file names")
    seen: set[object] = set()
    for name, file in weight_map.items():
        if isinstance(file, str) and file in seen:  # a hundred thousand names lie in some dozens of files
            continue
        where = f"{name!r} in {file!r}"
        if (
            not isinstance(file, str)
            or file != os.path.basename(file)
            or set(file) & set("/\\\0")
            or file[:1] == "."
        ):
            damaged(
                path,
                where,
                "the index names files of its own folder",
                "do not use this checkpoint: it may be hostile",
            )
        if not file.endswith(".safetensors"):
            damaged(
                path,
                where,
                "weights are safetensors files; pickles are never opened",
                "convert it to safetensors",
            )
        if not _exists(root / file):
            damaged(
                path,
                f"{where}, which does not exist",
                "every file of the index is there",
                "get the missing file",
            )
        seen.add(file)
    return weight_map


def _exists(path: Path) -> bool:
    return path.exists() if isinstance(path, RemotePath) else os.path.exists(path)


def _names(root: Path) -> list[str]:
    try:
        return names_in(root)
    except OSError as error:
        damaged(root, str(error), "the folder can be read", "check the permissions")


def _no_safetensors(root: Path, present: list[str]) -> None:
    pickles = [name for name in present if name.endswith(PICKLES)]
    if pickles:
        fix = "where you trust the file, load it and save it again with save_pretrained"
        damaged(
            root,
            f"only pickled weights: {' '.join(pickles[:3])}",
            "pickles run code and are never opened",
            fix,
        )
    if STAGING in present:
        fix = "run the command that writes it again, and it goes on where it stopped"
        damaged(root, f"{STAGING}, and no weights", "a run that is finished has put its files in place", fix)
    folders = folders_with_weights(root)
    seen = "no *.safetensors file" + (f" here, but some in {', '.join(folders)}" if folders else "")
    fix = "pass one of these folders" if folders else "check the path"
    damaged(root, seen, "a model is a folder with safetensors files", fix)


def _nothing_there(root: Path) -> NoReturn:
    name = hub_name(root)
    seen, fix = "no such file or folder", "check the path"
    if is_there(root):
        seen = "a link to nothing, or no regular file"
    elif name:
        seen += f", and no model {name} in the cache {cache_folder()}"
        fix = f"check the path; a model on the Hub is fetched by `hf download {name}`"
    damaged(root, seen, "a model is a folder with safetensors files", fix)


def inside(path: Path, root: Path) -> Path:
    """Return the path if it is a regular file of the checkpoint, links resolved.

    Raises:
        CheckpointError: it does not exist, is no regular file, or lies outside of the folder.
    """
    if isinstance(path, RemotePath):
        if not path.is_file():
            damaged(path, "no such file", "files of a checkpoint exist", "get the missing file")
        return path
    try:
        real, home = path.resolve(strict=True), root.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        damaged(path, str(error), "files and links of a checkpoint exist", "get the missing file")
    if not real.is_relative_to(home) and not ((blobs := blobs_of(home)) and real.is_relative_to(blobs)):
        damaged(
            path,
            f"a link to {real}",
            "a checkpoint stays inside its own folder, or the blobs of its download cache",
            "replace the link by the file",
        )
    if not real.is_file():
        damaged(
            path, "not a regular file", "a checkpoint is made of regular files", "remove it from the folder"
        )
    return path


__all__ = [
    "INDEX", "INDEX_SUFFIX", "MANIFEST", "MARK", "PICKLES", "PIPELINE", "STAGING", "WEIGHTS", "folders_with_weights",
    "index_of", "inside", "locate_weights", "read_json_file", "read_small_file",
]  # fmt: skip
