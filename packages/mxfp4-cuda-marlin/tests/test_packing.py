"""Packing on the GPU equals packing on the CPU; the kernel also runs under Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from mxfp4_core.testing.samples import random_weight
from mxfp4_cuda_marlin import packing
from mxfp4_cuda_marlin.layout import Sm90Layout

SCRIPT = """
import torch
from mxfp4_core.tensor import MxTensor
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
