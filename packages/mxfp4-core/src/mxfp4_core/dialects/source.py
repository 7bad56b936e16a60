"""What a dialect sees of a checkpoint: config, headers, and further JSON documents, read when they are asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mxfp4_core.checkpoint.files import read_json_file, read_small_file
from mxfp4_core.checkpoint.gguf import SUFFIX, GgufHeader, read_gguf
from mxfp4_core.checkpoint.header import damaged, read_header
from mxfp4_core.dialects.raw import misfit
from mxfp4_core.dialects.recipes import Read, Recipe

if TYPE_CHECKING:
    from mxfp4_core.checkpoint.reader import Checkpoint

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]
"""Name to (safetensors dtype, shape), as headers give it."""


@dataclass(frozen=True)
class Source:
    """A checkpoint as a dialect sees it; no data of tensors.

    Args:
        config: content of ``config.json``.
        tensors: what the headers say, in the order of the files.
        files: other files that belong to the model, relative to the folder, with ``/``.
        folder: where they are; None if there are none.
        weights: the weight files.
    """

    config: Mapping[str, Any]
    tensors: Shapes
    files: frozenset[str] = frozenset()
    folder: Path | None = None
    weights: tuple[Path, ...] = ()
    _read: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Source:
        """Return what there is to see of an open checkpoint."""
        folder = checkpoint.path if checkpoint.path.is_dir() else None
        tensors = {name: (info.dtype, info.shape) for name, info in checkpoint.tensors.items()}
        files = frozenset(path.as_posix() for path in checkpoint.other_files)
        return cls(checkpoint.config, tensors, files, folder, tuple(checkpoint.files))

    @property
    def described(self) -> Mapping[str, Any]:
        """``quantization_config`` of ``config.json``, empty where there is none or it is no object."""
        found = self.config.get("quantization_config")
        return found if isinstance(found, dict) else {}

    def document(self, name: str) -> Mapping[str, Any] | None:
        """Read another JSON file of the folder, for example ``quant_model_description.json``.

        Returns:
            Its object, None where there is no such file. It is read once.

        Raises:
            CheckpointError: it leads out of the folder, cannot be read, is too large or is no JSON object.
        """
        if name not in self.files or self.folder is None:
            return None
        if name not in self._read:
            self._read[name] = read_json_file(self.folder / name, self.folder)
        return self._read[name]

    def text(self, name: str) -> str | None:
        """Read another file of the folder as text.

        Returns:
            Its text, None where there is no such file.

        Raises:
            CheckpointError: it leads out of the folder, cannot be read, is too large or is no UTF-8.
        """
        if name not in self.files or self.folder is None:
            return None
        try:
            return read_small_file(self.folder / name, self.folder).decode("utf-8")
        except UnicodeDecodeError as error:
            damaged(self.folder / name, f"byte {error.start}: {error.reason}", "the text is UTF-8")

    def metadata(self) -> Mapping[str, str]:
        """Read the ``__metadata__`` of all weight files as one; the first file has the last word."""
        found: dict[str, str] = {}
        for path in reversed(self.weights):
            if path.suffix != SUFFIX:
                found |= read_header(path)[1]
        return found

    def gguf(self) -> list[GgufHeader]:
        """Read what the headers of GGUF files say; none where weights are in other files."""
        return [read_gguf(path) for path in self.weights if path.suffix == SUFFIX]

    def tensor(self, name: str) -> Recipe:
        """Return the recipe that reads a stored tensor as it is.

        Raises:
            DialectError: there is no such tensor.
        """
        if name not in self.tensors:
            misfit(f"no tensor {name!r}", "a recipe reads tensors of the checkpoint")
        dtype, shape = self.tensors[name]
        return Read(dtype, shape, name)

    def rest(self, used: Collection[str]) -> dict[str, Recipe]:
        """Return the tensors that are not ``used``, each as it is, in the order of the files."""
        return {name: self.tensor(name) for name in self.tensors if name not in used}


__all__ = ["Shapes", "Source"]
