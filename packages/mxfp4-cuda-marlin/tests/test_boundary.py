"""Scales in every form that checkpoints use."""

from __future__ import annotations

import pytest
import torch

from mxfp4_core.errors import FormatError
from mxfp4_cuda_marlin import find_scales, scale_bytes

ALL = torch.arange(256, dtype=torch.int32).to(torch.uint8)


def test_bytes_and_float8_share_memory() -> None:
    assert scale_bytes(ALL) is ALL
    assert scale_bytes(ALL.view(torch.float8_e8m0fnu)).data_ptr() == ALL.data_ptr()


def test_every_byte_survives_as_float32() -> None:
    values = torch.exp2(torch.arange(-127, 128, dtype=torch.float64)).to(torch.float32)
    assert torch.equal(scale_bytes(torch.cat((values, torch.tensor([torch.nan])))), ALL)


@pytest.mark.parametrize("value", [0.0, -1.0, 3.0, torch.inf, 2.0**-128, 2.0**-149, 1.0 + 2**-23])
def test_what_is_no_power_of_two_is_refused(value: float) -> None:
    with pytest.raises(FormatError, match="w_scale"):
        scale_bytes(torch.tensor([1.0, value]), "w_scale")


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.float8_e4m3fn]
)
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(FormatError, match=str(dtype)):
        scale_bytes(torch.ones(4).to(dtype))


@pytest.mark.parametrize("suffix", ["_scale", "_scale_inv"])
def test_scales_are_found_by_either_name(suffix: str) -> None:
    assert find_scales({"w13_weight": ALL, f"w13_weight{suffix}": ALL}, "w13_weight") is ALL


@pytest.mark.parametrize("names", [[], ["w_scale", "w_scale_inv"]])
def test_no_scales_or_two_are_refused(names: list[str]) -> None:
    with pytest.raises(FormatError, match=f"{len(names)} of w_scale, w_scale_inv"):
        find_scales(dict.fromkeys(names, ALL), "w")
