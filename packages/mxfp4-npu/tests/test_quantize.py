"""The device's quantizers make the bytes of the profiles that name them, and one that does not is refused."""

from __future__ import annotations

import npu_torch
import pytest
import torch

from mxfp4_core import MxTensor, quantize
from mxfp4_core.arithmetic import get_format
from mxfp4_core.errors import BackendError
from mxfp4_npu import quantize as on_device
from mxfp4_npu import vendor
from mxfp4_npu.backend import NpuBackend

PROFILES = [(profile, dual) for pair in vendor.MODES.values() for dual, profile in enumerate(pair)]


def weights(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return weights [.., 1024] of every size: ordinary, at the ends of the dtype, of zeros, not finite, all ties."""
    generator = torch.Generator().manual_seed(0)
    ordinary = torch.randn(5, 1024, generator=generator)
    ends = ordinary * torch.logspace(-38, 38, 5)[:, None]
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0]).repeat(2, 128)
    zeros = torch.zeros(2, 1024)
    zeros[1, 3::64] = 1.0
    broken = ordinary.clone()
    broken[0, 5], broken[2, 700], broken[3, 0] = torch.nan, torch.inf, -torch.inf
    found = {"ordinary": ordinary, "ends": ends, "ties": ties, "zeros": zeros, "not finite": broken}
    stacked = torch.randn(2, 3, 1024, generator=generator)
    return {name: values.to(dtype) for name, values in {**found, "experts": stacked}.items()}


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("profile", "dual"), PROFILES)
def test_the_bytes_are_those_of_the_core(profile: str, dual: bool, dtype: torch.dtype) -> None:
    format = get_format("mxfp4-dual" if dual else "mxfp4")
    for name, weight in weights(dtype).items():
        want = quantize(weight, format=format.name, profile=profile, nonfinite="nan")
        parts = format.empty(weight.shape, "cpu")
        NpuBackend().quantize_into(weight, parts, profile=profile)
        got = MxTensor.from_parts(format, parts, weight.shape)
        for part in format.parts:
            assert torch.equal(got.parts[part.name], want.parts[part.name]), (name, part.name)


@pytest.mark.usefixtures("emulated")
def test_a_device_that_rounds_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = npu_torch.one_level

    def away(x: torch.Tensor, mode: str) -> tuple[torch.Tensor, torch.Tensor]:
        return right(x, "round")

    monkeypatch.setattr(npu_torch, "one_level", away)
    on_device._check.cache_clear()
    with pytest.raises(BackendError, match="codes other than those of the profile 'ascend-single'"):
        NpuBackend().quantize(torch.ones(1, 64).bfloat16(), profile="ascend-single")
    on_device._check.cache_clear()


@pytest.mark.usefixtures("emulated")
def test_the_documented_vector() -> None:
    """CANN's page: 8.0 throughout gives 1.333333 outside, 127 inside, and 0x77 for each byte."""
    codes, level0, level1 = vendor.loaded().npu_dynamic_dual_level_mx_quant(
        torch.full((1, 512), 8.0).bfloat16()
    )
    assert level0.item() == pytest.approx(8 / 6) and set(codes.flatten().tolist()) == {0x77}
    assert set(level1.flatten().tolist()) == {127}
