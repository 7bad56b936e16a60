"""FP8 weights with scales for a tensor, for rows, or for blocks of both, by the names under which they are public.

``X.weight`` F8_E4M3 ``[N, K]`` beside ``X.weight_scale_inv`` (DeepSeek, transformers) or ``X.weight_scale``
(compressed-tensors, ModelOpt), in floats or E8M0. The shape of the scales tells the block: one number for the tensor,
``[N]`` or ``[N, 1]`` for rows, ``[ceil(N/r), ceil(K/c)]`` for the block that the description names.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from mxfp4_core.dialects.beside import Beside, Narrow
from mxfp4_core.dialects.pairs import contradiction
from mxfp4_core.dialects.recipes import Recipe
from mxfp4_core.dialects.source import Source

FP8: Final = "F8_E4M3"
_ENDS: Final = ("_scale_inv", "_scale")


def fp8_weights(
    dialect: str, source: Source, block: object, without: Collection[str] = ()
) -> dict[str, Narrow]:
    """Return the weights in FP8, by canonical name.

    Args:
        dialect: name for messages.
        source: the checkpoint.
        block: what its description says about blocks: a list of two sizes, or anything else where it has none.
        without: tensors that are known to be something else.

    Raises:
        DialectError: values without scales, or scales of a shape that fits no block.
    """
    sizes = block if _is_block(block) else None
    found: dict[str, Narrow] = {}
    for name, (dtype, shape) in source.tensors.items():
        if dtype != FP8 or len(shape) < 2 or name in without:
            continue
        scales = next((f"{name}{end}" for end in _ENDS if f"{name}{end}" in source.tensors), None)
        if scales is None:
            contradiction(dialect, f"FP8 values {name!r} without scales", "each weight in FP8 has its scales")
        recipe, blocks = _grid(source.tensor(scales), shape, sizes)
        if recipe is None:
            seen = f"{name!r} {list(shape)} with scales {list(source.tensors[scales][1])}, block {str(block)[:40]}"
            contradiction(
                dialect, seen, "scales are for the tensor, for its rows, or for the blocks described"
            )
        found[name] = Beside(name, source.tensor(name), recipe, blocks)
    return found


def _is_block(block: object) -> bool:
    return (
        isinstance(block, list) and len(block) == 2 and all(type(size) is int and size > 0 for size in block)
    )


def _grid(scales: Recipe, shape: tuple[int, ...], block: object) -> tuple[Recipe | None, tuple[int, int]]:
    """Return the scales as ``[..., N / rows, K / columns]``, and rows and columns; None where no block fits."""
    *lead, n, k = shape
    if isinstance(block, Sequence):
        rows, columns = block
        if scales.shape == (*lead, -(-n // rows), -(-k // columns)):
            return scales, (rows, columns)
    if scales.shape in ((*lead, n, 1), (*lead, n)):
        return scales.reshape(*lead, n, 1), (1, k)
    if scales.shape in ((), (1,), (1, 1)) and not lead and n and k:
        return scales.reshape(1, 1), (n, k)
    return None, (0, 0)


__all__ = ["FP8", "fp8_weights"]
