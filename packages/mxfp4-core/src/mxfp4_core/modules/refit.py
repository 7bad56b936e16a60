"""New weights for a module that computes: they get in whole, in the memory of the old ones, or not at all."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mxfp4_core.arithmetic.formats.base import Format
from mxfp4_core.backend.problem import Matrix, Problem
from mxfp4_core.backend.protocol import Backend, Packed
from mxfp4_core.errors import FormatError, LoadError, Mxfp4Error, ShapeError

Kept = tuple[str, tuple[tuple[str, str], ...], tuple[int, ...]]
"""What is known of a packed weight beside its tensors: layout, name and buffer of each tensor, physical shape."""


@dataclass(frozen=True)
class Snapshot:
    """What a prepared module was before somebody began to write other weights.

    Attributes:
        backend: who computed.
        problem: what it was prepared for.
        profile: by which its bytes were made.
        packed: what is known of each packed weight.
        buffers: all buffers by name.
        volatile: names of the buffers that are not saved.
        biases: copies of the biases by name of the buffer; loaders write them in place.
        device: where the weights were.
    """

    backend: Backend
    problem: Problem
    profile: str
    packed: Mapping[Matrix, Kept]
    buffers: Mapping[str, Tensor | None]
    volatile: frozenset[str]
    biases: Mapping[str, Tensor]
    device: torch.device


def alike(one: Tensor | None, other: Tensor) -> bool:
    """Return whether the bytes of one tensor can be written over those of the other."""
    return one is not None and (one.shape, one.dtype, one.device, one.stride()) == (
        (other.shape, other.dtype, other.device, other.stride())
    )


def write(old: Tensor, new: Tensor) -> Tensor:
    """Copy new bytes into the memory of the old ones, unless they are there, and return the old tensor."""
    return old if old.data_ptr() == new.data_ptr() else old.copy_(new)


def check_same(name: str, old: Packed, new: Packed) -> None:
    """Check that a weight which was packed again fits the memory of the old one.

    Raises:
        LoadError: it does not; whoever holds the old addresses, such as a captured graph, would compute with them.
    """
    same = old.layout == new.layout and old.tensors.keys() == new.tensors.keys()
    if same and all(alike(old.tensors[key], tensor) for key, tensor in new.tensors.items()):
        return
    raise LoadError(
        f"{name} cannot be loaded again in place",
        seen=f"{_words(new)}; before it was {_words(old)}",
        rule="new weights go into the memory of the old ones, so the device layout has the same shapes for both",
        fix="build and prepare a new module for these weights, and capture graphs again",
    )


def _words(packed: Packed) -> str:
    tensors = (f"{key} {each.dtype} {tuple(each.shape)}" for key, each in packed.tensors.items())
    return f"layout {packed.layout} with {', '.join(tensors)}"


def check_state(
    state: MutableMapping[str, Tensor], names: Mapping[str, str], format: Format, shape: tuple[int, ...]
) -> bool:
    """Check the parts that a ``state_dict`` has for one weight.

    Args:
        state: tensors by full name; torch's own dtypes for the same bits become those of the format.
        names: full name of each part, by name of the part.
        format: of the module.
        shape: logical shape of the weight.

    Returns:
        Whether the weight is there.

    Raises:
        LoadError: some parts of the weight are there and others are not.
        FormatError: a part of another dtype.
        ShapeError: a part of another shape.
    """
    there = [name for name in names.values() if name in state]
    lacking = [name for name in names.values() if name not in state]
    if there and lacking:
        raise LoadError(
            f"{there[0]} cannot be loaded",
            seen=f"{', '.join(there)} without {', '.join(lacking)}",
            rule=f"the parts of a weight ({', '.join(names)}) belong together: one is worth nothing without the others",
            fix="load all parts of the weight, or none of them",
        )
    for part, want in zip(format.parts, format.shapes(shape).values(), strict=True) if there else ():
        name = names[part.name]
        state[name] = part.raw(state[name])
        if state[name].dtype != getattr(torch, part.dtype):
            raise FormatError(
                f"{name} cannot be loaded",
                seen=f"{state[name].dtype} {tuple(state[name].shape)}",
                rule=f"{part.name} of {format.name} are {part.dtype}",
                fix="quantise the weight first, or load it through mxfp4_core.loader.LoadSession",
            )
        if tuple(state[name].shape) != want:
            raise ShapeError(
                f"{name} cannot be loaded",
                seen=f"shape {tuple(state[name].shape)}",
                rule=f"{part.name} of a weight {tuple(shape)} are {want}",
                fix="use the checkpoint that belongs to this model, cut for this rank",
            )
    return bool(there)


def named(error: Mxfp4Error, name: str) -> Mxfp4Error:
    """Return the same error, which says first which tensor it is about, unless it does so by itself."""
    if error.what.startswith(name):
        return error
    return type(error)(f"{name}: {error.what}", seen=error.seen, rule=error.rule, fix=error.fix)


__all__ = ["Kept", "Snapshot", "alike", "check_same", "check_state", "named", "write"]
