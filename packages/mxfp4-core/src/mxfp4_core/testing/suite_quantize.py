"""Quantising on the device: the bytes of the core, for every profile that the backend names."""

from __future__ import annotations

import pytest
import torch

from mxfp4_core import quantize
from mxfp4_core.arithmetic import resolve
from mxfp4_core.backend import Backend, Device, Problem, calls
from mxfp4_core.testing.cases import BLOCKS
from mxfp4_core.testing.fixtures import Fixtures, takes

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


class QuantizeSuite(Fixtures):
    """Canonical codes and scales from a weight on the device."""

    def check(self, backend: Backend, device: torch.device, weight: torch.Tensor) -> None:
        """Compare all profiles that take the dtype of the weight with the core, byte for byte."""
        for profile in sorted(backend.numerics.profiles):
            allowed = resolve(profile).dtypes
            if allowed and weight.dtype not in allowed:
                continue
            want = quantize(weight, profile=profile, nonfinite="nan")
            got = calls.quantize(backend, weight.to(device), profile=profile).to("cpu")
            assert torch.equal(got.scales, want.scales), f"{profile}: scales differ"
            assert torch.equal(got.codes, want.codes), f"{profile}: codes differ"
            assert got.shape == weight.shape and got.profile == want.profile

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_quantize_named_blocks(
        self, backend: Backend, here: Device, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Zeros, ties, saturation, subnormals, the ends of the range."""
        if takes(backend, Problem(op="quantize", n=1, k=32, dtype=str(dtype)[6:], device=here)):
            blocks = torch.stack([block.weight for block in BLOCKS]).to(dtype)
            self.check(backend, device, blocks)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("shape", [(1, 32), (7, 96), (3, 130, 2880)], ids=str)
    def test_quantize_random_weights(
        self, backend: Backend, here: Device, device: torch.device, shape: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        """Normal weights with outliers, in two and three dimensions."""
        *_, n, k = shape
        if takes(backend, Problem(op="quantize", n=n, k=k, dtype=str(dtype)[6:], device=here)):
            generator = torch.Generator().manual_seed(0)
            weight = (
                torch.randn(shape, generator=generator)
                * torch.randn(*shape[:-1], 1, generator=generator).exp2()
            )
            self.check(backend, device, weight.to(dtype))

    def test_quantize_non_finite_blocks(self, backend: Backend, here: Device, device: torch.device) -> None:
        """NaN and infinity make their own block byte 255, and no other."""
        if takes(backend, Problem(op="quantize", n=4, k=96, device=here)):
            weight = torch.randn(4, 96, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
            weight[0, 40], weight[2, 0], weight[3, 95] = torch.nan, torch.inf, -torch.inf
            self.check(backend, device, weight)

    def test_quantize_strides(self, backend: Backend, here: Device, device: torch.device) -> None:
        """A view with gaps quantises like its copy."""
        if takes(backend, Problem(op="quantize", n=48, k=64, device=here)):
            weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
            self.check(backend, device, weight.T[::2])
