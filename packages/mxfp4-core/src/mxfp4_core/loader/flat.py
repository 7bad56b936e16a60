"""Quantise rows as they lie in a file: those of all experts one below the other, in chunks that end anywhere."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mxfp4_core.errors import ShapeError
from mxfp4_core.loader.keys import THE_WEIGHT
from mxfp4_core.loader.regions import Region
from mxfp4_core.loader.target import QuantTarget


def quantize_rows(target: QuantTarget, source: torch.Tensor, start: int) -> None:
    """Quantise whole rows of a weight and count them, in one call of the quantizer whatever experts they belong to.

    Args:
        target: where they go; its K is a multiple of its format's block.
        source: ``[rows, K]`` in the dtype and on the device of the target.
        start: the first of them, counted over all experts: ``expert * N + row``.

    Raises:
        ShapeError: the rows are not those of the weight.
        NonFiniteError: NaN or infinity in the source, by the target's policy; the index counts from `source`.
    """
    (n, k), stop = target.shape[-2:], start + source.shape[0]
    total = target.shape[:-1].numel()
    if source.shape[1:] != (k,) or k % target.format.block or not 0 <= start <= stop <= total:
        raise ShapeError(
            f"rows of {target.name} cannot be quantised",
            seen=f"{list(source.shape)} from row {start} on",
            rule=f"the weight has {total} rows of {k}, in whole blocks of {target.format.block}",
            fix="pass whole rows, or use QuantTarget.quantize",
        )
    how = target.arithmetic
    rows = {
        part.name: target.parts[part.name].flatten(0, -2)[start:stop] for part in target.format.weight_parts
    }
    writes = [target.ledger.begin(THE_WEIGHT, region) for region in _regions(start, stop, n, k)]
    try:
        how.quantizers.of(how.profile, source.dtype, source.device, target.format).into(
            source, rows, nonfinite=how.nonfinite, threads=how.threads, name=target.name
        )
    except BaseException as error:
        target.ledger.fail(THE_WEIGHT, error)
        raise
    target.ledger.commit(THE_WEIGHT, writes)


def _regions(start: int, stop: int, n: int, k: int) -> Iterator[Region]:
    """Yield the end of one expert, whole experts, and the beginning of another, as far as there are any."""
    while start < stop:
        expert, first = divmod(start, n)
        whole = (stop - start) // n if first == 0 else 0
        if whole:
            yield Region((expert, expert + whole), (0, n), (0, k))
            start += whole * n
        else:
            last = min(n, first + stop - start)
            yield Region((expert, expert + 1), (first, last), (0, k))
            start += last - first


__all__ = ["quantize_rows"]
