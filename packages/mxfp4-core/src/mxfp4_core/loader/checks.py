"""Whether a target can be, and whether what is to be written into it fits."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from mxfp4_core.arithmetic.fast.blocks import WEIGHT_DTYPES
from mxfp4_core.arithmetic.formats.base import Format
from mxfp4_core.arithmetic.shapes import padded
from mxfp4_core.errors import FormatError, LoadError, ShapeError
from mxfp4_core.loader.regions import Region
from mxfp4_core.parallel.ranges import legal_parts


def check_given(
    parts: Mapping[str, torch.Tensor], format: Format, shape: torch.Size, name: str
) -> dict[str, torch.Tensor]:
    """Return existing parts of a weight, checked.

    Raises:
        ShapeError: a part has another shape.
        FormatError: parts are missing or too many, or not of the format's dtypes on one real device.
    """
    shapes, parts = format.shapes(shape), format.raw(parts)
    if parts.keys() != shapes.keys():
        raise FormatError(
            f"the parts of {name} do not fit",
            seen=f"parts {', '.join(parts) or 'none'}",
            rule=f"format {format.name} has {', '.join(shapes)}",
            fix="pass all of them, or let the target allocate them",
        )
    device = parts[format.parts[0].name].device
    for part in format.parts:
        tensor, want = parts[part.name], shapes[part.name]
        if tuple(tensor.shape) != want:
            raise ShapeError(
                f"{part.name} of {name} do not fit",
                seen=f"shape {tuple(tensor.shape)}",
                rule=f"{part.name} of a weight {tuple(shape)} are {want}",
                fix="allocate them in that shape, or let the target allocate them",
            )
        if tensor.dtype != getattr(torch, part.dtype) or tensor.is_meta or tensor.device != device:
            raise FormatError(
                f"{part.name} of {name} cannot be filled",
                seen=f"{tensor.dtype} on {tensor.device}",
                rule=f"{part.name} are {part.dtype} on a real device, all parts on the same one",
                fix="materialise them before the load, or let the target allocate them",
            )
    return dict(parts)


def check_cut(
    region: Region,
    shape: torch.Size,
    format: Format,
    name: str,
    *,
    zero_tail: bool = False,
    loaded_k: int = 0,
) -> None:
    """Check that a region cuts no block.

    Args:
        region: of the weight.
        shape: of the weight.
        format: says how long a block is.
        name: of the weight.
        zero_tail: the region may end inside a block whose rest is known to be zero.
        loaded_k: k of the tensor in the checkpoint, if known; only for the message.

    Raises:
        ShapeError: it begins or ends inside a block, and not where K ends.
    """
    start, stop = region.cols
    k, block = shape[-1], format.block
    if start % block == 0 and (stop % block == 0 or stop == k or zero_tail):
        return
    width = stop - start
    near = sorted({width // block * block, padded(width, block)} - {0})
    parts, rest = divmod(loaded_k, width)
    cut = f"; the source has k = {loaded_k}, so TP size {parts} cuts it" if parts > 1 and not rest else ""
    legal = ", ".join(map(str, legal_parts(loaded_k, block))) if cut else ""
    raise ShapeError(
        f"{name} cannot be quantised from this shard",
        seen=f"the loader fills {region.describe(len(shape) == 3)} of k = {k}{cut}",
        rule=f"a shard begins and ends between blocks of {block} along k, or ends where k ends",
        fix=f"use shards of k = {' or '.join(map(str, near))}{f' (TP size {legal})' if legal else ''}, "
        "or keep this weight in high precision",
    )


def check_target(shape: torch.Size, dtype: torch.dtype, name: str) -> None:
    """Check what a target is made for.

    Raises:
        ShapeError: not two or three axes, or an empty one.
        FormatError: a dtype that cannot be quantised.
    """
    if len(shape) not in (2, 3) or 0 in shape:
        raise ShapeError(
            f"{name} cannot be a target",
            seen=f"shape {tuple(shape)}",
            rule="a weight is [N, K], or [E, N, K] for stacked experts, and not empty",
            fix="keep it in high precision, or reshape the parameter",
        )
    if dtype not in WEIGHT_DTYPES:
        raise FormatError(
            f"{name} cannot be a target",
            seen=str(dtype),
            rule=f"the engine's parameter is one of {', '.join(map(str, WEIGHT_DTYPES))}",
            fix="pass the dtype in which the model would run without quantisation",
        )


def sized(tensor: torch.Tensor, region: Region, columns: int, name: str) -> torch.Tensor:
    """Return a piece for a region as ``[experts, rows, columns]``; leading axes of size 1 may be left out.

    Raises:
        ShapeError: it has other sizes.
    """
    experts, rows = (stop - start for start, stop in region.ranges[:2])
    want = (experts, rows, columns)
    allowed = [want, *([want[1:]] if experts == 1 else []), *([want[2:]] if experts == rows == 1 else [])]
    if tuple(tensor.shape) not in allowed:
        raise ShapeError(
            f"{name} does not fit its place",
            seen=f"shape {tuple(tensor.shape)}",
            rule=f"at {region.describe(True)} it is {want}",
            fix="give the sizes of the region",
        )
    return tensor.reshape(want)


def check_inside(region: Region, box: tuple[int, int, int], name: str) -> None:
    """Check that a region lies in a weight.

    Raises:
        LoadError: it is empty, or ends beyond the weight.
    """
    if all(0 <= start < stop <= size for (start, stop), size in zip(region.ranges, box, strict=True)):
        return
    raise LoadError(
        f"a piece of {name} cannot be placed",
        seen=region.describe(True),
        rule=f"a piece lies in {box[0]} experts, {box[1]} rows, k = {box[2]}, and is not empty",
        fix="give the ranges of this rank's own weight",
    )


__all__ = ["check_cut", "check_given", "check_inside", "check_target", "sized"]
