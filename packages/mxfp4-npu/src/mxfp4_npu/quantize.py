"""Quantise weights with torch_npu's own quantizers, by the profiles that name what they do.

That an operator makes the bytes of its profile is checked once in each process, on a weight with a tie, a subnormal, a
block of zeros and a value that is not finite: a device on which it does not is no reason to load other weights.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from mxfp4_core import quantize
from mxfp4_core.arithmetic import GROUP, MxTensor
from mxfp4_core.errors import BackendError
from mxfp4_npu import experts, vendor

_MODE_OF: Final = {
    name: (mode, dual) for mode, pair in vendor.MODES.items() for dual, name in enumerate(pair)
}
_PART_NAMES: Final = ("codes", "level0", "scales")


def single(weight: Tensor, profile: str) -> MxTensor:
    """Return a weight [..., k], k a multiple of 32, quantised to one level by a profile of `vendor.MODES`."""
    codes, scales = _checked(weight, profile)
    return MxTensor(codes, scales, weight.shape, profile)


def into(weight: Tensor, parts: Mapping[str, Tensor], profile: str) -> None:
    """Quantise a weight [..., k] into parts that exist: codes and scales, and ``level0`` for two levels.

    Raises:
        BackendError: the device's quantizer does not make the bytes of the profile.
    """
    if "level0" not in parts:
        for name, made in zip(("codes", "scales"), _checked(weight, profile), strict=True):
            parts[name].copy_(made)
        return
    for name, made in zip(_PART_NAMES, _checked(weight, profile), strict=True):
        parts[name].copy_(made)


def _checked(weight: Tensor, profile: str) -> tuple[Tensor, ...]:
    _check(profile, weight.dtype, str(weight.device))
    return _made(weight, profile)


def _made(weight: Tensor, profile: str) -> tuple[Tensor, ...]:
    """Return codes and scales, or codes, level0 and scales, in the shapes of the format."""
    mode, dual = _MODE_OF[profile]
    blocks = weight.shape[-1] // 32
    if not dual:
        codes, scales = experts.quantised(weight, mode)
        return codes, scales.flatten(-2)[..., :blocks]  # the scale that fills the last pair is padding
    codes, level0, scales = vendor.loaded().npu_dynamic_dual_level_mx_quant(
        weight, smooth_scale=None, round_mode=mode
    )
    return codes, level0, scales.flatten(-2)[..., :blocks]


@functools.cache
def _check(profile: str, dtype: torch.dtype, device: str) -> None:
    mode, dual = _MODE_OF[profile]
    probe = torch.linspace(-3, 3, 4 * GROUP).view(4, GROUP)
    probe[1, :64] = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0] * 8)
    probe[2, :32], probe[2, 32:64], probe[3, 40] = 0.0, 6e-8, torch.inf
    probe = probe.to(dtype)
    format = "mxfp4-dual" if dual else "mxfp4"
    want = quantize(probe, format=format, profile=profile, nonfinite="nan").parts
    got = _made(probe.to(device), profile)
    names = _PART_NAMES if dual else ("codes", "scales")
    for name, part in zip(names, got, strict=True):
        here = part.cpu().reshape(want[name].shape)
        if not torch.equal(here, want[name]):
            raise BackendError(
                f"quantising with torch_npu on {device}",
                seen=f"{name} other than those of the profile {profile!r}, first at "
                f"{(here != want[name]).nonzero()[0].tolist()}",
                rule=f"round_mode {mode!r} makes the bytes of that profile, as CANN documents it",
                fix="choose a profile that the core quantises itself, for example 'even/even', and report this "
                "with the versions of torch_npu and CANN",
            )


__all__ = ["into", "single"]
