"""Find the files of a checkpoint: which hold weights, which are carried over, none outside it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mxfp4_core.checkpoint.header import MAX_HEADER_BYTES, damaged, parse_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MANIFEST = "mxfp4_manifest.json"

WEIGHT_SUFFIXES = frozenset({
    ".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".npz", ".onnx", ".pickle", ".pkl", ".pt", ".pth",
    ".safetensors",
})  # fmt: skip
"""Suffixes of files that hold weights (or pickles), which are never carried over."""

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def locate_weights(root: Path) -> tuple[list[Path], dict[str, str] | None]:
    """Find the weight files of a folder or accept a single file.

    Returns:
        The files in order of their names, and the ``weight_map`` of the index if there is one.

    Raises:
        CheckpointError: no such path, no safetensors, an index that is damaged or leaves the folder.
    """
    if root.is_file():
        return [root], None
    if not root.is_dir():
        damaged(
            root, "no such file or folder", "a model is a folder with safetensors files", "check the path"
        )
    present = _names(root)
    found = [name for name in present if name.endswith(".safetensors")]
    indices = [name for name in present if name.endswith(".safetensors.index.json")]
    if INDEX in indices:
        indices = [INDEX]
    if len(indices) > 1:
        damaged(
            root, f"several indices: {' '.join(indices)}", "a checkpoint has one index", "keep one of them"
        )
    if indices:
        weight_map = _weight_map(root / indices[0], root)
        files = sorted(set(weight_map.values()))
        if WEIGHTS in found and WEIGHTS not in files:
            seen = f"{WEIGHTS} beside {indices[0]}, which does not list it"
            damaged(root, seen, "it is clear which files are the model", f"remove {WEIGHTS} or the index")
        return [inside(root / name, root) for name in files], weight_map
    if not found:
        _no_safetensors(root, present)
    names = [WEIGHTS] if WEIGHTS in found else found
    return [inside(root / name, root) for name in names], None


def carried_files(root: Path) -> tuple[Path, ...]:
    """List the files that a new checkpoint takes over unchanged, relative to the folder.

    These are all but weights, index, manifest, hidden files and ``config.json``, which is rewritten. A link
    is listed when it leads to a file of the same model.

    Raises:
        CheckpointError: a link that leads out of the folder.
    """
    result: list[Path] = []
    for folder, folders, names in os.walk(root):  # does not follow links to folders
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            ours = name in ("config.json", MANIFEST) and Path(folder) == root
            if (
                ours
                or name.startswith(".")
                or path.suffix in WEIGHT_SUFFIXES
                or name.endswith(".safetensors.index.json")
            ):
                continue
            result.append(inside(path, root).relative_to(root))
    return tuple(result)


def read_json_file(path: Path, root: Path) -> dict[str, Any]:
    """Read a JSON object from a file of the checkpoint.

    Raises:
        CheckpointError: outside of the folder, unreadable, too large, or no JSON object.
    """
    inside(path, root)
    try:
        size = path.stat().st_size
        if size > MAX_HEADER_BYTES:
            damaged(path, f"{size} bytes", f"JSON files have at most {MAX_HEADER_BYTES} bytes")
        raw = path.read_bytes()
    except OSError as error:
        damaged(path, str(error), "the file can be read", "check the permissions")
    return parse_json(raw, path)


def _weight_map(path: Path, root: Path) -> dict[str, str]:
    weight_map = read_json_file(path, root).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        damaged(path, f"weight_map = {str(weight_map)[:80]}", "weight_map maps tensor names to file names")
    for name, file in weight_map.items():
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
        if not (root / file).exists():
            damaged(
                path,
                f"{where}, which does not exist",
                "every file of the index is there",
                "get the missing file",
            )
    return weight_map


def _names(root: Path) -> list[str]:
    try:
        return sorted(os.listdir(root))
    except OSError as error:
        damaged(root, str(error), "the folder can be read", "check the permissions")


def _no_safetensors(root: Path, present: list[str]) -> None:
    pickles = [name for name in present if name.endswith(_PICKLES)]
    if pickles:
        fix = "where you trust the file, load it and save it again with save_pretrained"
        damaged(
            root,
            f"only pickled weights: {' '.join(pickles[:3])}",
            "pickles run code and are never opened",
            fix,
        )
    damaged(root, "no *.safetensors file", "a model is a folder with safetensors files", "check the path")


def inside(path: Path, root: Path) -> Path:
    """Return the path if it is a regular file of the checkpoint, links resolved.

    Raises:
        CheckpointError: it does not exist, is no regular file, or lies outside of the folder.
    """
    try:
        real, home = path.resolve(strict=True), root.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        damaged(path, str(error), "files and links of a checkpoint exist", "get the missing file")
    # The download cache of huggingface_hub is <model>/snapshots/<revision>/file -> <model>/blobs/<hash>.
    homes = [home, home.parent.parent] if home.parent.name == "snapshots" else [home]
    if not any(real.is_relative_to(each) for each in homes):
        damaged(
            path,
            f"a link to {real}",
            "a checkpoint stays inside its own folder",
            "replace the link by the file",
        )
    if not real.is_file():
        damaged(
            path, "not a regular file", "a checkpoint is made of regular files", "remove it from the folder"
        )
    return path


__all__ = [
    "INDEX", "MANIFEST", "WEIGHTS", "WEIGHT_SUFFIXES", "carried_files", "inside", "locate_weights",
    "read_json_file",
]  # fmt: skip
