"""The tables of the GPU quantizer against the core's rules, and its kernels under Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mxfp4_core.arithmetic import MXFP4, resolve
from mxfp4_core.arithmetic.fast.triton import quantize as module
from mxfp4_core.arithmetic.fast.triton.tables import CLEAR, tables
from mxfp4_core.arithmetic.profile import FLUSH
from mxfp4_core.errors import BackendError, FormatError, ShapeError

"""Its peer overflows float16, and so steps twice in one binade."""


def maxima(dtype: torch.dtype, threshold: torch.Tensor) -> torch.Tensor:
    """Return float32 bits: every finite magnitude of 16 bits; of float32 both sides of each border, and noise."""
    if dtype is torch.bfloat16:
        return torch.arange(0x7F80, dtype=torch.int32) << 16
    if dtype is torch.float16:
        return torch.arange(0x7C00, dtype=torch.int16).view(torch.float16).float().view(torch.int32)
    row = torch.arange(1, 278, dtype=torch.float64)
    steps = [
        torch.ldexp(1 + mantissa / 2**23, row - 150) for mantissa in (0.0 * row, threshold[1:278].double())
    ]
    borders = torch.cat(steps).float().view(torch.int32)
    noise = torch.randint(0, 0x7F800000, (50_000,), generator=torch.Generator().manual_seed(0)).int()
    every = torch.cat((borders - 1, borders, borders + 1, noise, torch.arange(5000, dtype=torch.int32)))
    return every[(every >= 0) & (every < 0x7F800000)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", [*MXFP4.profiles, "ceil_d(4.5)/even"])
def test_the_tables_hold_for_every_maximum(name: str, dtype: torch.dtype) -> None:
    profile = resolve(name)
    threshold, states, three = tables(profile, dtype, torch.device("cpu"))
    assert three == ((name, dtype) == ("msmodelslim", torch.float16))
    largest = maxima(dtype, threshold[0])
    value = largest.view(torch.float32).double()
    mantissa, exponent = torch.frexp(value)
    row = torch.where(value == 0, 0, exponent + 149)
    part = (((mantissa * 2 - 1) * 2**23).int() >= threshold[:, row]).sum(0)
    found = states[part, row]
    byte, want = profile.scale(value, dtype)
    assert torch.equal(found & 0xFF, byte)
    factor = (found & -65536).view(torch.float32).double()
    nothing = (want > 127) & (value * torch.ldexp(torch.ones_like(value), -want) < 0.25)
    if dtype is torch.float16:  # its factors end at 2^-28, which leaves as little of a maximum
        nothing |= want > 28
        assert bool((value[nothing] * factor[nothing] < 0.25).all())
        factor[nothing] = 0
    empty = (found & CLEAR) != 0
    assert bool((want[empty] == FLUSH).all())
    assert bool((factor[nothing & ~empty] == 0).all())
    used = ~(nothing | empty)
    assert torch.equal(factor[used], torch.ldexp(torch.ones_like(value), -want)[used])


def test_without_triton_there_is_an_error_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    module._kernels.cache_clear()
    monkeypatch.setitem(sys.modules, "mxfp4_core.arithmetic.fast.triton.kernels", None)
    with pytest.raises(BackendError, match="pip install 'triton"):
        module._kernels()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_weights_that_are_not_on_a_gpu_are_refused(device: str) -> None:
    with pytest.raises(BackendError, match=f"a weight on {device}"):
        module.quantize_triton(torch.zeros(2, 32, device=device), "even/even")


class Kernel:
    def __getitem__(self, grid: tuple[int, ...]) -> object:
        return self

    def __call__(self, *arguments: object, **settings: object) -> None:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable")


def test_a_missing_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_kernels", lambda: SimpleNamespace(portable_kernel=Kernel()))
    codes, scales = torch.zeros(16, dtype=torch.uint8), torch.zeros(1, dtype=torch.uint8)
    with pytest.raises(BackendError, match="install gcc or clang"):
        module._run(torch.zeros(1, 32), codes, scales, resolve("even/even"), packed=False)


@pytest.mark.parametrize(
    ("codes", "scales", "error"),
    [
        (torch.zeros(2, 15, dtype=torch.uint8), torch.zeros(2, 1, dtype=torch.uint8), ShapeError),
        (torch.zeros(2, 16, dtype=torch.uint8), torch.zeros(1, 1, dtype=torch.uint8), ShapeError),
        (torch.zeros(2, 16, dtype=torch.int8), torch.zeros(2, 1, dtype=torch.uint8), FormatError),
        (
            torch.zeros(2, 16, dtype=torch.uint8, device="meta"),
            torch.zeros(2, 1, dtype=torch.uint8),
            FormatError,
        ),
    ],
)
def test_targets_that_do_not_fit(codes: torch.Tensor, scales: torch.Tensor, error: type[Exception]) -> None:
    with pytest.raises(error, match="the GPU quantizer"):
        module._outputs(torch.zeros(2, 32), codes, scales)


def test_targets_in_torch_dtypes_are_views() -> None:
    codes, scales = torch.zeros(2, 16, dtype=torch.uint8), torch.zeros(2, 1, dtype=torch.uint8)
    found = module._outputs(
        torch.zeros(2, 32), codes.view(torch.float4_e2m1fn_x2), scales.view(torch.float8_e8m0fnu)
    )
    assert [tensor.data_ptr() for tensor in found] == [codes.data_ptr(), scales.data_ptr()]


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize(
    ("dtype", "kernel"),
    [
        ("bfloat16", "packed"),
        ("float16", "packed"),
        ("bfloat16", "portable"),
        ("float16", "portable"),
        ("float32", "portable"),
    ],
)
def test_the_kernels_equal_the_reference_under_the_interpreter(dtype: str, kernel: str) -> None:
    script = Path(__file__).with_name("interpreted.py")
    run = subprocess.run(
        [sys.executable, str(script), dtype, kernel],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
