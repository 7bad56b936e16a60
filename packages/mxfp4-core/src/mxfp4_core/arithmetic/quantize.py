"""Quantize a weight, with the fastest path that gives the bytes of the judge."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Literal

import torch
from torch.nn.functional import pad

from mxfp4_core.arithmetic.fast.blocks import check_weight, choice
from mxfp4_core.arithmetic.fast.pages import empty
from mxfp4_core.arithmetic.formats.mxfp4 import MXFP4
from mxfp4_core.arithmetic.formats.registry import get
from mxfp4_core.arithmetic.tensor import MxTensor
from mxfp4_core.errors import FormatError, ShapeError, check_type


def quantize(
    weight: torch.Tensor,
    *,
    format: str = "mxfp4",
    profile: str | None = None,
    rule: str | None = None,
    ties: str | None = None,
    tail: Literal["refuse", "pad"] = "refuse",
    nonfinite: Literal["refuse", "nan"] = "refuse",
    name: str = "weight",
    threads: int | None = None,
) -> MxTensor:
    """Quantize a weight to MXFP4, or to another format.

    Args:
        weight: bfloat16, float16 or float32 ``[..., K]``, any strides, any device. Blocks run along the last axis.
        format: name of an installed format: ``mxfp4``, ``mxfp4-dual``, ``mxfp8``, each also with ``+input_scale``.
        profile: a named profile of the format (see its ``profiles``) or a pair such as ``even/even``.
        rule: a scale rule, instead of a profile; the default of the format if neither is given.
        ties: a tie rule, instead of a profile; ``even`` if not given.
        tail: what to do when K is no multiple of the block (32, or 512 for two levels): refuse, or pad with zeros
            (exact: the product is unchanged).
        nonfinite: what to do about NaN and infinity: refuse, or make their blocks NaN (byte 255).
        name: name of the weight in messages.
        threads: CPU threads to use; torch's number if None.

    Returns:
        The parts of the format on the device of the weight, K padded to whole blocks: for ``mxfp4`` codes uint8
        ``[..., Kp / 2]`` and scales uint8 ``[..., Kp / 32]``. Multipliers of the input are 1.

    Raises:
        FormatError: a dtype that cannot be quantised, or that the profile's peer does not take; an unknown format.
        ShapeError: K is no multiple of the block and ``tail`` is ``refuse``, or the weight has no axis.
        NonFiniteError: NaN or infinity, and ``nonfinite`` is ``refuse``.
        ConfigError: unknown names, or a profile that does not make the format.

    Example:
        >>> import torch, mxfp4_core
        >>> mxfp4_core.quantize(torch.arange(32.0)).dequantize(torch.float32)[:6].tolist()
        [0.0, 0.0, 2.0, 4.0, 4.0, 4.0]
    """
    _check_types(format, profile, rule, ties, threads)
    form = MXFP4 if format == "mxfp4" else get(format)
    check_weight(weight, name)
    shape, refused = weight.shape, choice("tail", tail, ("refuse", "pad")) == "refuse"
    if shape[-1] % form.block:
        if refused:
            raise ShapeError(
                f"{name} cannot be quantised",
                seen=f"k = {shape[-1]} in shape {tuple(shape)}",
                rule=f"the last axis is cut into blocks of {form.block}",
                fix="pass tail='pad' to pad with zeros, which is exact",
            )
        weight = pad(weight, (0, -shape[-1] % form.block))
    chosen = form.resolve(profile, rule=rule, ties=ties).name
    parts = {}
    for part in form.parts:
        size = part.shape(weight.shape, weight.shape[-1])
        parts[part.name] = empty(size, part.torch_dtype, weight.device)
        if part.operand == "input":
            parts[part.name].fill_(part.fill)
    form.quantize_into(weight, parts, profile=chosen, nonfinite=nonfinite, name=name, threads=threads)
    return MxTensor.from_parts(form, parts, shape, chosen)


def quantize_into(
    weight: torch.Tensor,
    codes: torch.Tensor | Mapping[str, torch.Tensor],
    scales: torch.Tensor | None = None,
    *,
    format: str = "mxfp4",
    profile: str | None = None,
    rule: str | None = None,
    ties: str | None = None,
    nonfinite: Literal["refuse", "nan"] = "refuse",
    name: str = "weight",
    threads: int | None = None,
) -> None:
    """Quantize whole blocks into tensors that exist, such as slices of a larger parameter.

    Args:
        weight: as for :func:`mxfp4_core.quantize`, K a multiple of the block.
        codes: tensors by the name of their part, for any format; or codes uint8 or float4_e2m1fn_x2 ``[..., K / 2]``
            on the device of the weight, any strides, and scales beside them.
        scales: uint8 or float8_e8m0fnu ``[..., K / 32]``, likewise.
        format: name of an installed format.
        profile: as for :func:`mxfp4_core.quantize`, like all that follow.
        rule: a scale rule.
        ties: a tie rule.
        nonfinite: what to do about NaN and infinity.
        name: name of the weight in messages.
        threads: CPU threads to use.

    Raises:
        FormatError, ShapeError, NonFiniteError, ConfigError: as for :func:`mxfp4_core.quantize`, and for outputs that
            do not fit. After a NonFiniteError the outputs hold unspecified bytes.
    """
    _check_types(format, profile, rule, ties, threads)
    form = MXFP4 if format == "mxfp4" else get(format)
    if isinstance(codes, Mapping):
        if scales is not None:
            raise FormatError(
                f"{name} cannot be quantised",
                seen="tensors by name and scales beside them",
                rule="tensors are passed by the name of their part, or as codes and scales",
                fix="put the scales under 'scales'",
            )
        parts = codes
    else:
        parts = {"codes": codes} if scales is None else {"codes": codes, "scales": scales}
    if missing := [part.name for part in form.weight_parts if part.name not in parts]:
        raise FormatError(
            f"{name} cannot be quantised",
            seen=f"no tensor for {', '.join(missing)}",
            rule=f"format {form.name} writes {', '.join(part.name for part in form.weight_parts)}",
            fix="pass one tensor for each",
        )
    chosen = form.resolve(profile, rule=rule, ties=ties).name
    form.quantize_into(weight, parts, profile=chosen, nonfinite=nonfinite, name=name, threads=threads)


def _check_types(
    format: str, profile: str | None, rule: str | None, ties: str | None, threads: int | None
) -> None:
    check_type(format, str, "format")
    for what, word in (("profile", profile), ("rule", rule), ("ties", ties)):
        check_type(word, (str, NoneType), what)
    check_type(threads, (int, NoneType), "threads")


__all__ = ["quantize", "quantize_into"]
