"""Quantize a weight, with the fastest path that gives the bytes of the judge."""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn.functional import pad

from mxfp4_core.arithmetic.fast.blocks import check_weight, choice, quantize_into, run_profile
from mxfp4_core.arithmetic.fast.pages import empty
from mxfp4_core.arithmetic.format import BLOCK
from mxfp4_core.arithmetic.profiles import resolve
from mxfp4_core.arithmetic.tensor import MxTensor
from mxfp4_core.errors import ShapeError


def quantize(
    weight: torch.Tensor,
    *,
    profile: str | None = None,
    rule: str | None = None,
    ties: str | None = None,
    tail: Literal["refuse", "pad"] = "refuse",
    nonfinite: Literal["refuse", "nan"] = "refuse",
    name: str = "weight",
    threads: int | None = None,
) -> MxTensor:
    """Quantize a weight to MXFP4.

    Args:
        weight: bfloat16, float16 or float32 ``[..., K]``, any strides, any device. Blocks run along the last axis.
        profile: a named profile (see :func:`mxfp4_core.profiles`) or a pair such as ``even/even``.
        rule: a scale rule, instead of a profile; ``even`` if neither is given.
        ties: a tie rule, instead of a profile; ``even`` if not given.
        tail: what to do when K is no multiple of 32: refuse, or pad with zeros (exact: the product is unchanged).
        nonfinite: what to do about NaN and infinity: refuse, or make their blocks NaN (byte 255).
        name: name of the weight in messages.
        threads: CPU threads to use; torch's number if None.

    Returns:
        Codes uint8 ``[..., Kp / 2]`` and scales uint8 ``[..., Kp / 32]`` on the device of the weight, Kp being K
        padded to whole blocks.

    Raises:
        FormatError: a dtype that cannot be quantised, or that the profile's peer does not take.
        ShapeError: K is no multiple of 32 and ``tail`` is ``refuse``, or the weight has no axis.
        NonFiniteError: NaN or infinity, and ``nonfinite`` is ``refuse``.
        ConfigError: unknown names.

    Example:
        >>> import torch, mxfp4_core
        >>> mxfp4_core.quantize(torch.arange(32.0)).dequantize(torch.float32)[:6].tolist()
        [0.0, 0.0, 2.0, 4.0, 4.0, 4.0]
    """
    check_weight(weight, name)
    weight = weight.detach()
    shape = weight.shape
    if shape[-1] % BLOCK:
        if choice("tail", tail, ("refuse", "pad")) == "refuse":
            raise ShapeError(
                f"{name} cannot be quantised",
                seen=f"k = {shape[-1]} in shape {tuple(shape)}",
                rule=f"the last axis is cut into blocks of {BLOCK}",
                fix="pass tail='pad' to pad with zeros, which is exact",
            )
        weight = pad(weight, (0, -shape[-1] % BLOCK))
    codes = empty((*shape[:-1], weight.shape[-1] // 2), torch.uint8, weight.device)
    scales = empty((*shape[:-1], weight.shape[-1] // BLOCK), torch.uint8, weight.device)
    chosen = resolve(profile, rule=rule, ties=ties)
    run_profile(weight, codes, scales, chosen, nonfinite, name, threads)
    return MxTensor(codes, scales, shape, chosen.name)


__all__ = ["quantize", "quantize_into"]
