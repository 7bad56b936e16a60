"""Match codes with their scales and find what contradicts a description; shared by the dialects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from mxfp4_core.arithmetic.format import BLOCK
from mxfp4_core.dialects.base import Entry, Shapes
from mxfp4_core.errors import DialectError


def linear_pairs(
    dialect: str,
    tensors: Shapes,
    *,
    codes_suffix: str,
    scales_suffix: str = ".weight_scale",
    stacked_suffix: str | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    transposed: frozenset[str] = frozenset(),
) -> dict[str, Entry]:
    """Return the entries of a dialect that stores codes and scales side by side, by canonical weight name.

    Args:
        dialect: name for messages.
        tensors: what the headers say.
        codes_suffix: how the name of a linear's codes ends, for example ``".weight_packed"``.
        scales_suffix: how the name of its scales ends.
        stacked_suffix: what names the scales of stacked experts, behind the name of their codes; None if the
            dialect has none.
        shapes: logical shapes of weights that were padded.
        transposed: weights that the model holds as ``[..., K, N]``.

    Raises:
        DialectError: codes without scales, scales without codes, wrong dtypes or shapes, nothing quantised at
            all.
    """
    entries: dict[str, Entry] = {}
    scale_names: set[str] = set()
    for name, (dtype, _) in tensors.items():
        if name.endswith(codes_suffix):
            base = name.removesuffix(codes_suffix)
            weight, scales = f"{base}.weight", f"{base}{scales_suffix}"
        elif stacked_suffix and f"{name}{stacked_suffix}" in tensors:
            weight, scales = name, f"{name}{stacked_suffix}"
        else:
            continue
        # A kept weight may have the name that codes have; scales tell them apart.
        if dtype != "U8" and scales not in tensors and codes_suffix == ".weight":
            continue
        logical = (shapes or {}).get(weight)
        shape = _logical_shape(dialect, tensors, name, scales, logical)
        entries[weight] = Entry(weight, name, scales, shape, weight in transposed)
        scale_names.add(scales)
    for name in tensors:
        orphan = name.endswith((scales_suffix, stacked_suffix or scales_suffix)) and name not in scale_names
        if orphan:
            contradiction(
                dialect, f"scales {name!r} without codes", "each tensor of scales belongs to one of codes"
            )
    if not entries:
        kinds = sorted({dtype for dtype, _ in tensors.values()})
        seen = f"no pair of codes and scales; the tensors are {' '.join(kinds)}"
        contradiction(dialect, seen, "config.json says that weights are quantised, so some are")
    return entries


def name_list(dialect: str, described: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Return a list of names from a description, empty where it is missing or null.

    Raises:
        DialectError: anything but a list of strings.
    """
    value = described.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        contradiction(dialect, f"{key} = {str(value)[:80]}", f"{key} is a list of names")
    return tuple(value)


def shape_table(dialect: str, described: Mapping[str, Any], key: str) -> dict[str, tuple[int, ...]]:
    """Return a table of shapes from a description, empty where it is missing or null.

    Raises:
        DialectError: anything but a mapping to lists of at least two positive integers.
    """
    value = described.get(key)
    if value is None:
        return {}
    for row in value.values() if isinstance(value, dict) else [None]:
        if (
            not isinstance(row, list)
            or len(row) < 2
            or not all(type(size) is int and size > 0 for size in row)
        ):
            contradiction(dialect, f"{key} = {str(value)[:80]}", f"{key} maps names to shapes")
    return {str(name): tuple(row) for name, row in value.items()}


def contradiction(dialect: str, seen: str, rule: str) -> NoReturn:
    """Raise the error for a description and tensors that do not fit each other."""
    raise DialectError(
        f"this is not a valid {dialect} checkpoint",
        seen=seen,
        rule=rule,
        fix="write the checkpoint again, or correct quantization_config in config.json",
    )


def _logical_shape(
    dialect: str, tensors: Shapes, codes: str, scales: str, logical: tuple[int, ...] | None
) -> tuple[int, ...]:
    if scales not in tensors:
        contradiction(dialect, f"codes {codes!r} without {scales!r}", "each tensor of codes has its scales")
    (codes_dtype, codes_shape), (scales_dtype, scales_shape) = tensors[codes], tensors[scales]
    if codes_dtype != "U8" or scales_dtype != "U8":
        seen = f"{codes!r} is {codes_dtype}, {scales!r} is {scales_dtype}"
        contradiction(dialect, seen, "codes and scales are U8 (two E2M1 codes a byte, E8M0 bytes)")
    physical = (*codes_shape[:-1], codes_shape[-1] * 2) if codes_shape else ()
    if len(physical) < 2 or physical[-1] % BLOCK or scales_shape != (*physical[:-1], physical[-1] // BLOCK):
        seen = f"{codes!r} {list(codes_shape)} with {scales!r} {list(scales_shape)}"
        contradiction(dialect, seen, "codes are [..., N, K/2] and scales [..., N, K/32]")
    if logical is None:
        return physical
    if logical[:-1] != physical[:-1] or not physical[-1] - BLOCK < logical[-1] <= physical[-1]:
        seen = f"{codes!r} holds {list(physical)}, the description says {list(logical)}"
        contradiction(dialect, seen, "only K is padded, and to the next multiple of 32")
    return logical


__all__ = ["contradiction", "linear_pairs", "name_list", "shape_table"]
