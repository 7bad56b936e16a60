"""Open a checkpoint of safetensors files and read ranges of rows; only `rows` and `load` import torch.

All checks on the files happen when the checkpoint is opened, from headers alone. Data is read into
fresh memory and never mapped, so the resident size of a process is what it holds and not what it has looked at.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

from mxfp4_core._text import nearest
from mxfp4_core.checkpoint.adapters import refuse_adapter
from mxfp4_core.checkpoint.cache import local_path
from mxfp4_core.checkpoint.files import locate_weights, read_json_file
from mxfp4_core.checkpoint.gguf import SUFFIX, read_gguf
from mxfp4_core.checkpoint.header import (
    DTYPE_BITS,
    TensorInfo,
    damaged,
    read_bytes,
    read_header,
)
from mxfp4_core.checkpoint.others import Others, look_around
from mxfp4_core.checkpoint.places import Identity, identity, is_folder, is_there
from mxfp4_core.errors import CheckpointError, check_type

if TYPE_CHECKING:
    import torch

TORCH_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32",
    "I32": "int32", "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32",
    "F64": "float64", "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F4": "float4_e2m1fn_x2",
}  # fmt: skip
"""Names of torch dtypes by the words of safetensors."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose headers have been checked.

    Args:
        path: the folder, or the single file that was opened.
        tensors: every tensor, file by file and in the order of its data.
        files: sha256 of the header of every weight file, by path, in order.
        config: content of ``config.json``, empty when there is none.
        other_files: files that belong to the model beside its weights, relative to ``path``.
        left: files in its folder that are no part of it, or that nobody opens, and why.
        seen: what tells each weight file from one that takes its place later.
    """

    path: Path
    tensors: Mapping[str, TensorInfo]
    files: Mapping[Path, str]
    config: dict[str, Any]
    other_files: tuple[Path, ...]
    left: Mapping[str, str] = field(default_factory=dict)
    seen: Mapping[Path, Identity] = field(default_factory=dict)

    def __reduce__(self) -> tuple[object, ...]:
        # As paths and the hashes of headers: a task for another process stays small, whatever the model.
        files = tuple((file.absolute(), header) for file, header in self.files.items())
        return _reopened, (self.path.absolute(), files, self.config, self.other_files)

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        """Fill a writable buffer of bytes with the tensor's data from byte ``start`` on.

        Raises:
            CheckpointError: no such tensor, a range outside of it, or a file that shrank since it was opened.
        """
        read_bytes(self._info(name), start, buffer)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read the indices ``start`` to ``stop`` of the first axis.

        Returns:
            A new contiguous CPU tensor ``[stop - start, *shape[1:]]`` in the dtype of the file; F4 is
            float4_e2m1fn_x2, two values an element, with half the last axis.

        Raises:
            CheckpointError: no such tensor, no first axis, a range outside of it, a dtype that torch lacks.
        """
        info = self._info(name)
        if not info.shape or not 0 <= start <= stop <= info.shape[0]:
            seen = f"rows {start} to {stop} of tensor {name!r} with shape {list(info.shape)}"
            damaged(info.file, seen, "the range lies inside the first axis", "pass a range inside the shape")
        return self._read(info, _offset(info, info.shape[0], start), (stop - start, *info.shape[1:]))

    def matrix_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read rows of a tensor ``[..., K]`` seen as a matrix, all axes but the last counting as rows.

        Returns:
            A new contiguous CPU tensor ``[stop - start, K]`` in the dtype of the file.

        Raises:
            CheckpointError: no such tensor, no axis, a range outside of it, or a dtype that torch lacks.
        """
        info = self._info(name)
        rows = math.prod(info.shape[:-1])
        if not info.shape or not 0 <= start <= stop <= rows:
            seen = f"rows {start} to {stop} of tensor {name!r} with shape {list(info.shape)}"
            damaged(info.file, seen, "the range lies inside the tensor", "pass a range inside the shape")
        return self._read(info, _offset(info, rows, start), (stop - start, info.shape[-1]))

    def load(self, name: str) -> torch.Tensor:
        """Read a whole tensor.

        Returns:
            A new contiguous CPU tensor in the shape and dtype of the file.

        Raises:
            CheckpointError: no such tensor, or a dtype that torch lacks.
        """
        info = self._info(name)
        return self._read(info, 0, info.shape)

    def _info(self, name: str) -> TensorInfo:
        if name in self.tensors:
            return self.tensors[name]
        near = nearest(name, self.tensors)
        raise CheckpointError(
            f"cannot read tensor {name!r} of {self.path}",
            seen=f"no such name among {len(self.tensors)} tensors",
            rule="a tensor is read by its name in the file",
            fix=f"did you mean {' or '.join(map(repr, near))}?"
            if near
            else "list the names with `mxfp4 plan`",
        )

    def _read(self, info: TensorInfo, start: int, shape: tuple[int, ...]) -> torch.Tensor:
        import torch

        if info.dtype not in TORCH_DTYPES:
            damaged(
                info.file,
                f"tensor {info.name!r} of dtype {info.dtype}",
                "torch has the dtype",
                "store it as U8",
            )
        dtype: torch.dtype = getattr(torch, TORCH_DTYPES[info.dtype])
        if info.dtype == "F4":
            if not shape or shape[-1] % 2:
                _cut(info, f"{shape[-1] if shape else 1} values")
            shape = (*shape[:-1], shape[-1] // 2)
        data = torch.empty(math.prod(shape) * dtype.itemsize, dtype=torch.uint8)
        if data.numel():
            self.read_into(info.name, start, data.numpy().data)
        return data.view(dtype).reshape(shape)


def _header(file: Path) -> tuple[Mapping[str, TensorInfo], str]:
    """Return the tensors of a file, and the hash of its header."""
    if file.suffix == SUFFIX:
        found = read_gguf(file)
        return found.tensors, found.sha256
    tensors, _, header = read_header(file)
    return tensors, header


def _reopened(
    path: Path, files: tuple[tuple[Path, str], ...], config: dict[str, Any], others: tuple[Path, ...]
) -> Checkpoint:
    return Checkpoint(path, _tensors(files), MappingProxyType(dict(files)), config, others)


@functools.lru_cache(maxsize=4)  # a worker gets one task after the other from the same checkpoint
def _tensors(files: tuple[tuple[Path, str], ...]) -> Mapping[str, TensorInfo]:
    """Read the headers again that another process has checked.

    Raises:
        CheckpointError: a file changed since then.
    """
    tensors: dict[str, TensorInfo] = {}
    for file, expected in files:
        found, header = _header(file)
        if header != expected:
            rule = f"the file does not change while it is read; its header had sha256 {expected}"
            damaged(file, f"a header with sha256 {header}", rule, "let nothing write to it, and run it again")
        tensors.update(found)
    return MappingProxyType(tensors)


def _offset(info: TensorInfo, rows: int, row: int) -> int:
    """Return the byte at which one of so many rows starts."""
    bits = DTYPE_BITS[info.dtype] * (math.prod(info.shape) // rows if rows else 0) * row
    if bits % 8:
        _cut(info, f"row {row}, which starts inside a byte")
    return bits // 8


def _cut(info: TensorInfo, seen: str) -> NoReturn:
    damaged(
        info.file,
        f"{seen} of tensor {info.name!r} of dtype {info.dtype}, shape {list(info.shape)}",
        "a range of values starts and ends with a byte",
        "read the whole tensor, or pass an even range",
    )


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a folder with safetensors files, or one such file, and check every header.

    Args:
        path: the folder or file, also a remote one such as ``s3://bucket/model``;
            or the name of a model on the Hub, as far as it is in the cache of this machine.

    Raises:
        CheckpointError: nothing to read, only pickles, an adapter, files of two models, a shard that is missing, a
            damaged or hostile file or index, a tensor twice.
    """
    check_type(path, (str, os.PathLike), "the path of a checkpoint")
    root = local_path(path)
    files, weight_map = locate_weights(root)
    tensors: dict[str, TensorInfo] = {}
    places: dict[str, str] = {}
    headers: dict[Path, str] = {}
    identities: dict[Path, Identity] = {}
    for file in files:
        identities[file] = identity(file)
        found, headers[file] = _header(file)
        twice = next((name for name in found if name in tensors), None)
        if twice is not None:
            damaged(
                root,
                f"tensor {twice!r} is in {tensors[twice].file.name} and in {file.name}",
                "each tensor is stored once",
                "remove the copy that does not belong to the model",
            )
        tensors.update(found)
        places.update(dict.fromkeys(found, file.name))
    if weight_map is not None and weight_map != places:
        _check_weight_map(root, weight_map, tensors)
    folder = root if is_folder(root) else root.parent
    config_file = folder / "config.json"
    config = read_json_file(config_file, folder) if is_there(config_file) else {}
    refuse_adapter(root, tensors)
    others = look_around(root, frozenset(files), tensors.keys()) if is_folder(root) else Others()
    checked = MappingProxyType(tensors), MappingProxyType(headers)
    return Checkpoint(root, *checked, config, tuple(others.carried), others.left, identities)


def _check_weight_map(root: Path, weight_map: Mapping[str, str], tensors: Mapping[str, TensorInfo]) -> None:
    fix = "rebuild the index, or get the files again"
    for name, file in weight_map.items():
        if name not in tensors or tensors[name].file.name != file:
            where = tensors[name].file.name if name in tensors else "no file"
            damaged(root, f"index has {name!r} in {file}, it is in {where}", "index and files agree", fix)
    for name, info in tensors.items():
        if name not in weight_map:
            damaged(root, f"{info.file.name} has {name!r}, the index has not", "index and files agree", fix)


__all__ = ["Checkpoint", "TensorInfo", "open_checkpoint"]
