"""Packing on the GPU equals packing on the CPU; the kernel also runs under Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from mxfp4_core.backend import Device
from mxfp4_core.errors import BackendError
from mxfp4_core.testing.fixtures import Fixtures
from mxfp4_core.testing.samples import random_weight
from mxfp4_cuda_marlin import packing
from mxfp4_cuda_marlin.layout import Rows, Sm90Layout

SCRIPT = """
import torch
from mxfp4_core.arithmetic.tensor import MxTensor
from mxfp4_core.testing.samples import random_weight
from mxfp4_cuda_marlin import packing
from mxfp4_cuda_marlin.layout import Sm90Layout

for rows in ("plain", "gate-up", "gate-up-interleaved"):
    for shape in ((64, 128), (192, 64), (3, 128, 192)):
        weight = random_weight(*shape, seed=sum(shape), scales=(0, 252))
        layout = Sm90Layout(rows)
        want = layout.pack(weight)
        packing._ON_GPU = {"cpu"}
        for step in (1, 1 << 25):
            packing._STEP_BYTES = step
            copy = MxTensor(weight.codes.clone(), weight.scales.clone(), weight.shape)
            found, over = layout.pack(weight), layout.pack_in_place(copy)
            for name, tensor in want.items():
                assert torch.equal(found[name], tensor), (rows, shape, name)
                assert torch.equal(over[name], tensor), (rows, shape, name, step)
                assert over[name].data_ptr() == getattr(copy, name).data_ptr()
        packing._ON_GPU = {"cuda"}
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernel_equals_the_cpu_under_the_interpreter() -> None:
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_without_a_gpu_nothing_is_overwritten() -> None:
    weight = random_weight(128, 64)
    before = weight.codes.clone()
    packed = Sm90Layout().pack_in_place(weight)
    assert torch.equal(packed["codes"], Sm90Layout().pack(weight)["codes"])
    assert torch.equal(weight.codes, before)
    assert not packing.usable(weight.codes)


def test_a_broken_triton_is_an_error_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    packing._kernels.cache_clear()
    monkeypatch.setitem(sys.modules, "mxfp4_cuda_marlin.packing_kernels", None)
    monkeypatch.setattr(packing, "_ON_GPU", {"cpu"})
    monkeypatch.setattr(packing, "_has_triton", lambda: True)
    with pytest.raises(BackendError, match="or uninstall Triton"):
        Sm90Layout().pack(random_weight(64, 64))


class TestPackingOnTheGpu(Fixtures):
    backend_name = "cuda-marlin"

    @pytest.mark.parametrize("shape", [(64, 64), (2880, 2880), (5, 1536, 192)], ids=str)
    @pytest.mark.parametrize("rows", ["plain", "gate-up", "gate-up-interleaved"])
    def test_the_bytes_are_those_of_the_cpu(
        self,
        here: Device,
        device: torch.device,
        rows: Rows,
        shape: tuple[int, ...],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(packing, "_STEP_BYTES", 1 << 20)
        weight, layout = random_weight(*shape, scales=(0, 252)), Sm90Layout(rows)
        want, there = layout.pack(weight), weight.to(device)
        assert packing.usable(there.codes)
        for packed in (layout.pack(there), layout.pack_in_place(there)):
            assert all(torch.equal(packed[name].cpu(), tensor) for name, tensor in want.items())
        assert packed["codes"].data_ptr() == there.codes.data_ptr()

    def test_in_place_it_takes_a_bounded_buffer(self, here: Device, device: torch.device) -> None:
        weight = random_weight(8, 2048, 8192).to(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        Sm90Layout("gate-up").pack_in_place(weight)
        assert torch.cuda.max_memory_allocated(device) - before < (1 << 25) + (1 << 20)
