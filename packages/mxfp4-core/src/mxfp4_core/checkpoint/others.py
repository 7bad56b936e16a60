"""What lies beside the weights of a model: what a new checkpoint takes over, what it leaves behind, and why.

Everything that belongs to the model is taken over byte for byte: documents at any depth, and weights that the index
does not list, or that lie in subfolders, such as ``2_Dense`` of sentence-transformers. Nothing is left behind without
a word.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from mxfp4_core._text import printable
from mxfp4_core.checkpoint.families import family, is_makers_own
from mxfp4_core.checkpoint.files import INDEX_SUFFIX, MANIFEST, MARK, PICKLES, index_of, inside
from mxfp4_core.checkpoint.header import damaged, read_header
from mxfp4_core.checkpoint.magic import LFS, LFS_BYTES, recognised
from mxfp4_core.checkpoint.places import pieces_of, walk

_FOREIGN = (".gguf", ".h5", ".msgpack", ".npz", ".onnx", ".onnx_data", ".tflite")
_INDEX = (INDEX_SUFFIX, *(f"{suffix}.index.json" for suffix in PICKLES))
HIDDEN = "hidden"
_TRAINING = re.compile(r"(checkpoint|global_step|epoch|step)[-_]?\d+")
_AGAIN = "the model once more"
_WRITTEN_ANEW = frozenset({"config.json", MANIFEST, MARK})


@dataclass
class Others:
    """Files beside the weights of a model.

    Attributes:
        carried: what is taken over, relative to the folder.
        left: what is not, a folder with ``/`` at the end, and why.
    """

    carried: list[Path] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)


def look_around(root: Path, weights: Collection[Path], tensors: Set[str]) -> Others:
    """Look at everything in the folder of a model but the files that it is read from.

    Args:
        root: the folder.
        weights: its weight files, which are not looked at.
        tensors: names of the tensors in them.

    Raises:
        CheckpointError: a link that leads out of the folder, a Git LFS pointer, damaged weights, a name that is no
            UTF-8.
    """
    found = Others()
    kinds = {kind for path in weights if (kind := family(path.name))}
    indices: list[Path] = []
    for path, is_folder in _walk(root, found.left):
        name = path.relative_to(root).as_posix()
        if is_folder:
            found.left[f"{name}/"] = "a link to a folder"
        elif path in weights or name in _WRITTEN_ANEW:
            continue
        elif name.endswith(_INDEX):
            indices.append(path)
        elif reason := _stays(path, root, kinds, tensors):
            found.left[name] = reason
        else:
            _check_fetched(inside(path, root))
            found.carried.append(Path(name))
    _sort_indices(root, indices, found)
    found.carried.sort(key=lambda path: path.as_posix())
    found.left = dict(sorted(found.left.items()))
    return found


def _walk(root: Path, left: dict[str, str]) -> Iterator[tuple[Path, bool]]:
    """Yield files, and links to folders; note what is hidden, and what a trainer wrote on its way."""
    for below, folders, names in walk(root):
        for name in sorted((*folders, *names)):
            path, is_folder = below / name, name in folders
            if is_folder and _TRAINING.fullmatch(name):
                left[path.relative_to(root).as_posix() + "/"] = "a state of training"
                continue
            if name.startswith("."):
                left[printable(path.relative_to(root).as_posix()) + "/" * is_folder] = HIDDEN
                continue
            if not is_folder or path.is_symlink():
                _check_name(path)
                yield path, is_folder
        folders[:] = sorted(n for n in folders if not n.startswith(".") and not _TRAINING.fullmatch(n))


def _stays(path: Path, root: Path, kinds: Collection[object], tensors: Set[str]) -> str | None:
    """Return why a file is left behind; None where it belongs to the model."""
    if path.suffix in PICKLES:
        return "a pickle, which is never opened"
    if path.suffix in _FOREIGN:
        return "in a format that is not read"
    if path.suffix != ".safetensors":
        return None
    if path.parent == root and family(path.name) in kinds:
        return "a shard that the index does not list"
    if is_makers_own(path.name) or "original" in path.relative_to(root).parts[:-1]:
        return f"{_AGAIN}, in the format of its makers"
    names = read_header(inside(path, root))[0].keys()
    if len(names & tensors) * 2 > len(names):
        return f"{_AGAIN}: its tensors have the same names"
    return None


def _sort_indices(root: Path, indices: Sequence[Path], found: Others) -> None:
    """An index goes with the weights that it lists; that of the model itself is written anew."""
    folders = {root / each.parent for each in found.carried if each.suffix == ".safetensors"}
    for path in indices:
        if path.parent in folders - {root} and path.name.endswith(INDEX_SUFFIX):
            found.carried.append(inside(path, root).relative_to(root))
        elif path != index_of(root):
            found.left[path.relative_to(root).as_posix()] = "an index of files that are not taken over"


def _check_name(path: Path) -> None:
    try:
        path.name.encode()
    except UnicodeEncodeError:
        damaged(path, "a file name that is no UTF-8", "names are UTF-8", "rename the file")


def _check_fetched(path: Path) -> None:
    """Refuse a file of which only the Git LFS pointer is here: its copy would be of no use."""
    try:
        if path.stat().st_size > LFS_BYTES:
            return
        start = bytes(next(pieces_of(path), b""))[: len(LFS)]
    except OSError as error:
        damaged(
            path, str(error), "the file can be read", "check the permissions, or remove it from the folder"
        )
    if start == LFS and (told := recognised(start)):
        damaged(path, told[0], "a file of the model is there itself", told[1])


__all__ = ["HIDDEN", "Others", "look_around"]
