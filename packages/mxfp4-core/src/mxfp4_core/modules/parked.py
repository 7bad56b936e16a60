"""Weights that do not lie where they are computed with: in memory of the host, or in files.

A model may be larger than its device. What is parked is no buffer of its module, so whoever moves the tensors of a
model to a device, as accelerate does, does not find it. A call of the module copies the weight to the device and lets
the copy go; where the device is the CPU, it computes with what lies there.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mxfp4_core.arithmetic.formats.base import Format, Parts
from mxfp4_core.errors import BackendError, OutputError


@dataclass(frozen=True)
class Parking:
    """Where weights lie while nobody computes with them.

    Attributes:
        device: where they are computed with.
        folder: of files that hold them; None for memory of the host, which is pinned if the device is another one. The
            files have no name, so nothing of them is left when the process ends.
    """

    device: torch.device
    folder: Path | None = None

    def empty(self, format: Format, shape: tuple[int, ...]) -> Parts:
        """Return the parts of a weight with unspecified bytes.

        Args:
            format: which parts there are.
            shape: logical shape of the weight.

        Raises:
            OutputError: the disk has no room.
        """
        made = {name: self._like(part) for name, part in format.empty(shape, "meta").items()}
        for part in format.parts:
            if part.operand == "input":
                made[part.name].fill_(part.fill)
        return made

    def put(self, tensor: Tensor) -> Tensor:
        """Return a copy of a tensor that lies here, with its strides.

        Raises:
            OutputError: the disk has no room.
        """
        return self._like(tensor).copy_(tensor)

    def fetch(self, tensor: Tensor) -> Tensor:
        """Return what lies here on the device; itself where it is there."""
        return tensor.to(self.device, non_blocking=True)

    def _like(self, tensor: Tensor) -> Tensor:
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        elements = 1 + sum((size - 1) * stride for size, stride in steps) if tensor.numel() else 0
        if self.folder is None:
            flat = torch.empty(
                elements, dtype=tensor.dtype, device="cpu", pin_memory=self.device.type != "cpu"
            )
        else:
            flat = _in_file(self.folder, elements * tensor.dtype.itemsize).view(tensor.dtype)
        return flat.as_strided(tensor.shape, tensor.stride())


@dataclass
class Parked:
    """What a module has parked: its weights, canonical or as a backend made them, by the name of the buffer.

    Attributes:
        parking: where.
        tensors: what.
    """

    parking: Parking
    tensors: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def fetch(self, name: str) -> Tensor:
        """Return a tensor on the device."""
        return self.parking.fetch(self.tensors[name])

    def parts(self, names: Mapping[str, str], format: Format, shape: tuple[int, ...]) -> Parts:
        """Return the parts of a weight for a loader to fill; they get memory when they are asked for.

        Args:
            names: of the tensors, by name of the part.
            format: which parts there are.
            shape: logical.
        """
        if any(name not in self.tensors for name in names.values()):
            made = self.parking.empty(format, shape)
            self.tensors |= {name: made[part] for part, name in names.items()}
        return {part: self.tensors[name] for part, name in names.items()}

    def keep(
        self, given: Mapping[str, Tensor], packed: Mapping[str, Tensor], *, changed: bool
    ) -> dict[str, Tensor]:
        """Return what a backend made of parts, each where it lies or is now put.

        Args:
            given: the parts that it was given, by the name of what lies here.
            packed: what it made, by name.
            changed: it may have written over the parts.
        """
        here = {each.untyped_storage().data_ptr() for each in self.tensors.values()}
        same = {} if changed else {_place(part): self.tensors[name] for name, part in given.items()}
        found: dict[str, Tensor] = {}
        for name, tensor in packed.items():
            if tensor.untyped_storage().data_ptr() in here:
                found[name] = tensor
            else:
                found[name] = same[_place(tensor)] if _place(tensor) in same else self.parking.put(tensor)
        return found

    def __getstate__(self) -> dict[str, Any]:
        # torch cannot pickle the storage of its 8-bit floats, so they go as bytes.
        stored = {name: (tensor.dtype, _as_bytes(tensor)) for name, tensor in self.tensors.items()}
        return {"parking": self.parking, "tensors": stored}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.parking = state["parking"]
        self.tensors = {name: stored.view(dtype) for name, (dtype, stored) in state["tensors"].items()}


def _in_file(folder: Path, nbytes: int) -> Tensor:
    """Return bytes that lie in a file without a name.

    Raises:
        OutputError: the disk has no room for it, or the folder cannot be written.
    """
    if not nbytes:
        return torch.empty(0, dtype=torch.uint8)
    try:
        with tempfile.NamedTemporaryFile(prefix=".mxfp4-", dir=folder, delete=True) as file:
            os.posix_fallocate(file.fileno(), 0, nbytes)  # a hole would be a crash when somebody writes there
            return torch.from_file(file.name, shared=True, size=nbytes, dtype=torch.uint8)
    except OSError as error:
        raise OutputError(
            f"weights cannot be parked in {folder}",
            seen=str(error),
            rule=f"the folder takes files of {nbytes} bytes and more",
            fix="make room, or name another folder with the environment variable TMPDIR",
        ) from error


def parked_for_good(what: str, seen: str) -> BackendError:
    """Return the error about who wants to change, move or reload weights that are parked."""
    return BackendError(
        f"{what} cannot be changed",
        seen=seen,
        rule="weights that are parked away from their device are loaded once, and stay where they lie",
        fix="load the model without parts on the CPU or the disk, where it is to be changed",
    )


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.view(torch.uint8) if tensor.is_floating_point() and tensor.dtype.itemsize == 1 else tensor


def _place(tensor: Tensor) -> tuple[object, ...]:
    return (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device)


__all__ = ["Parked", "Parking", "parked_for_good"]
