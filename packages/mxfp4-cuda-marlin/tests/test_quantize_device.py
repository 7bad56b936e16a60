"""The quantizer on the device, by both of its kernels, against the reference."""

from __future__ import annotations

import pytest
import torch

from mxfp4_core import MxTensor
from mxfp4_core.arithmetic import quantize_triton, reference, resolve
from mxfp4_core.arithmetic.fast.triton import quantize as quantizer
from mxfp4_core.backend import Device
from mxfp4_core.errors import FormatError, ShapeError
from mxfp4_core.testing.fixtures import Fixtures
from mxfp4_cuda_marlin.quantize import PROFILES, quantize


def exact_maxima() -> torch.Tensor:
    """Return bfloat16 [32768, 32]: every magnitude as the maximum of a block, with parts of it beside it."""
    largest = torch.arange(1 << 15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    parts = torch.linspace(-1, 1, 32, dtype=torch.float64)
    blocks = (torch.where(largest.isfinite(), largest, 0).double()[:, None] * parts).to(torch.bfloat16)
    blocks[:, 7] = largest
    return blocks


def hostile_blocks(dtype: torch.dtype) -> torch.Tensor:
    """Return [*, 32]: ties and their neighbours at every scale, any bits at all, subnormals, zeros, not finite."""
    generator = torch.Generator().manual_seed(0)
    size, integer = dtype.itemsize, torch.int32 if dtype.itemsize == 4 else torch.int16
    low, high = (-149, 127) if dtype is not torch.float16 else (-24, 15)
    exponents = torch.arange(low, high).repeat_interleave(8)[:, None]
    quarters = torch.randint(-32, 33, (len(exponents), 32), generator=generator) / 4
    ties = torch.ldexp(quarters.double(), exponents).to(dtype)
    near = ties.view(integer) + torch.randint(-1, 2, ties.shape, generator=generator).to(integer)
    noise = torch.randint(0, 256, (600, 32 * size), generator=generator).to(torch.uint8).view(dtype)
    mild = torch.ldexp(
        torch.randn(2000, 32, generator=generator), exponents[torch.arange(2000) % len(exponents)]
    )
    tiny = torch.randint(-200, 200, (50, 32), generator=generator).to(integer) & torch.iinfo(integer).max
    zeros = torch.zeros(2, 32).copysign(torch.tensor([[1.0], [-1.0]])).to(dtype)
    return torch.cat((ties, near.view(dtype), noise, mild.to(dtype), tiny.view(dtype), zeros))


class TestQuantizeOnTheGpu(Fixtures):
    backend_name = "cuda-marlin"
    target = Device("cuda", "sm_90", "NVIDIA H200")

    @pytest.mark.parametrize("profile", sorted(PROFILES))
    def test_every_maximum(self, here: Device, device: torch.device, profile: str) -> None:
        """Every bfloat16 is the maximum of a block once, subnormals, infinity and NaN too."""
        blocks = exact_maxima()
        want = reference.quantize(blocks, resolve(profile))
        got = quantize(blocks.to(device), profile)
        assert torch.equal(got[1].cpu(), want[1])
        assert torch.equal(got[0].cpu(), want[0])

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
    @pytest.mark.parametrize("profile", sorted(PROFILES))
    def test_by_both_kernels(
        self, here: Device, device: torch.device, profile: str, dtype: torch.dtype
    ) -> None:
        chosen, blocks = resolve(profile), hostile_blocks(dtype)
        want = reference.quantize(blocks, chosen)
        there = blocks.to(device)
        codes = torch.empty(len(blocks), 16, dtype=torch.uint8, device=device)
        scales = torch.empty(len(blocks), 1, dtype=torch.uint8, device=device)
        for packed in {False, quantizer._packs(there)}:
            quantizer._run(there, codes.fill_(99), scales.fill_(99), chosen, packed=packed)
            assert torch.equal(scales.cpu(), want[1]), f"{packed=}"
            assert torch.equal(codes.cpu(), want[0]), f"{packed=}"

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
    def test_more_values_than_32_bits_count(
        self, here: Device, device: torch.device, dtype: torch.dtype
    ) -> None:
        tile = torch.randn(1 << 20, 32, device=device).to(dtype)
        codes, scales = quantize(tile, "even/away")
        times = 65  # 65 * 2^25 values are more than 2^31
        all_codes, all_scales = quantize(tile.repeat(times, 1), "even/away")
        assert bool((all_codes.view(times, -1) == codes.view(-1)).all())
        assert bool((all_scales.view(times, -1) == scales.view(-1)).all())

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
    def test_views(self, here: Device, device: torch.device, dtype: torch.dtype) -> None:
        whole = torch.randn(96, 160, dtype=dtype, device=device)
        for view in (whole[:, 32:128], whole.T, whole[::3], whole[0], whole[:0]):
            want = quantize(view.clone(memory_format=torch.contiguous_format), "even/even")
            got = quantize(view, "even/even")
            assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
    def test_writes_into_what_it_is_given(
        self, here: Device, device: torch.device, dtype: torch.dtype
    ) -> None:
        weight = torch.randn(6, 128, dtype=dtype, device=device)
        want = quantize(weight, "even/even")
        codes = torch.zeros(12, 192, dtype=torch.uint8, device=device)
        scales = torch.zeros(12, 12, dtype=torch.uint8, device=device)
        for out in (
            (codes[:4].view(-1)[:384].view(6, 64), scales[:2].view(-1)[:24].view(6, 4)),
            (codes[::2, 64:128], scales[::2, 4:8]),
        ):
            made = quantize_triton(weight, "even/even", out=out)
            assert made[0].data_ptr() == out[0].data_ptr() and made[1].data_ptr() == out[1].data_ptr()
            assert torch.equal(out[0], want[0]) and torch.equal(out[1], want[1])

    def test_a_contiguous_target_costs_no_memory(self, here: Device, device: torch.device) -> None:
        weight = torch.randn(4096, 4096, dtype=torch.bfloat16, device=device)
        out = quantize(weight, "even/even")
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        quantize_triton(weight, "even/even", out=out)
        torch.cuda.synchronize()
        assert torch.cuda.max_memory_allocated() - before < 1 << 20

    def test_refuses_what_it_cannot_do(self, here: Device, device: torch.device) -> None:
        with pytest.raises(ShapeError, match="blocks of 32"):
            quantize(torch.zeros(2, 48, device=device), "even/even")
        with pytest.raises(FormatError, match="float64"):
            quantize(torch.zeros(2, 32, dtype=torch.float64, device=device), "even/even")
        with pytest.raises(FormatError, match="vllm"):
            quantize(torch.zeros(2, 32, device=device), "vllm")

    def test_odd_addresses(self, here: Device, device: torch.device) -> None:
        blocks = exact_maxima()[16000:16064]
        shifted = torch.empty(64 * 32 + 1, dtype=torch.bfloat16, device=device)[1:].view(64, 32).copy_(blocks)
        assert shifted.data_ptr() % 4
        want = MxTensor(*reference.quantize(blocks, resolve("even/even")), blocks.shape)
        got = quantize(shifted, "even/even")
        assert torch.equal(got[0].cpu(), want.codes) and torch.equal(got[1].cpu(), want.scales)
