"""The tables of the GPU quantizer against the reference, and the portable kernel under Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from mxfp4_core import reference
from mxfp4_core.codec import Ties, encode, pack
from mxfp4_core.errors import BackendError
from mxfp4_core.profile import profiles, resolve
from mxfp4_cuda_marlin import quantize as module
from mxfp4_cuda_marlin.quantize import PROFILES
from mxfp4_cuda_marlin.quantize_tables import bfloat16_tables, fits_bfloat16

PACKED = sorted(name for name in PROFILES if fits_bfloat16(resolve(name)))


def test_every_rule_and_tie_rule_is_offered() -> None:
    assert set(profiles()) < PROFILES
    assert {"even/even", "floor/away", "ceil_d(7.25)/zero"} < PROFILES


@pytest.mark.parametrize("name", [*PACKED, "ceil_d(4.5)/even"])
def test_the_tables_of_bfloat16_hold_for_every_maximum(name: str) -> None:
    """Do what the kernel does, with the tables, in torch: for each of the 32640 finite maxima of a block."""
    profile = resolve(name)
    threshold, state, complete = bfloat16_tables(profile, torch.device("cpu"))
    assert complete, "the kernel would need the reference, and wait for the device"
    largest = torch.arange(0x7F80, dtype=torch.int32)
    values = largest.to(torch.int16).view(torch.bfloat16)
    blocks = (values.double()[:, None] * torch.linspace(-1, 1, 32, dtype=torch.float64)).to(torch.bfloat16)
    row = largest >> 7
    found = state[row + 256 * ((largest & 0x7F) << 16 >= threshold[row])]
    factor = (found >> 16).to(torch.int16).view(torch.bfloat16)
    index = encode((blocks.abs() * factor[:, None]).double(), Ties.EVEN)
    codes = pack((index | (torch.signbit(blocks) * 8)).to(torch.uint8))
    want_codes, want_scales = reference.quantize(blocks, profile)
    assert torch.equal((found & 0xFF).to(torch.uint8), want_scales[:, 0])
    assert torch.equal(codes, want_codes)
    assert bool((state[[255, 511]] & 0xFF == 255).all())


def test_without_triton_there_is_an_error_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    module._kernels.cache_clear()
    monkeypatch.setitem(sys.modules, "mxfp4_cuda_marlin.quantize_kernels", None)
    monkeypatch.delattr("mxfp4_cuda_marlin.quantize_kernels", raising=False)  # if it was imported before
    with pytest.raises(BackendError, match="pip install 'triton"):
        module._kernels()


SCRIPT = """
import torch
from mxfp4_core import reference
from mxfp4_core.profile import resolve
from mxfp4_core.testing.cases import BLOCKS
from mxfp4_cuda_marlin import quantize as module

blocks = torch.stack([block.weight for block in BLOCKS]).reshape(-1, 32)
generator = torch.Generator().manual_seed(0)
noise = torch.randn(60, 32, generator=generator) * torch.randn(60, 1, generator=generator).mul(20).exp2()
for dtype in (torch.bfloat16, torch.float16, torch.float32):
    source = torch.cat((blocks, noise)).to(dtype)
    for name in sorted(module.PROFILES):
        profile = resolve(name)
        if profile.dtypes and dtype not in profile.dtypes:
            continue
        codes, scales = source.new_empty((len(source), 16), dtype=torch.uint8), torch.empty(len(source)).byte()
        special = torch.zeros(1, dtype=torch.int32)
        module._portable(source, codes, scales, special, profile)
        want = reference.quantize(source, profile)
        done = scales != 255
        assert torch.equal(scales[done], want[1][done, 0]), (name, dtype)
        assert torch.equal(codes[done], want[0][done]), (name, dtype)
        assert bool(special) == bool((~done).any()), (name, dtype)
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_the_portable_kernel_equals_the_reference_under_the_interpreter() -> None:
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
