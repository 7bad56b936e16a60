"""Decoding: every code under every scale byte, and what is refused."""

import pytest
import torch

from mxfp4_core.arithmetic import reference
from mxfp4_core.arithmetic.dequantize import dequantize
from mxfp4_core.arithmetic.fast import threads as _threads
from mxfp4_core.arithmetic.fast.decode import _dequantize_device
from mxfp4_core.errors import FormatError

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def every_pair() -> tuple[torch.Tensor, torch.Tensor]:
    codes = (
        torch.arange(256, dtype=torch.int32)
        .to(torch.uint8)
        .view(1, 16, 16)
        .expand(256, -1, -1)
        .reshape(256, 256)
    )
    scales = torch.arange(256, dtype=torch.int32).to(torch.uint8)[:, None].expand(-1, 16)
    return codes, scales.contiguous()


def exact(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    values = reference.dequantize(codes, scales)
    return values if dtype is torch.float64 else values.float().to(dtype)


def check(got: torch.Tensor, want: torch.Tensor) -> None:
    assert got.dtype == want.dtype
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got.nan_to_num(0), want.nan_to_num(0))
    finite = ~want.isnan()
    assert torch.equal(torch.signbit(got)[finite], torch.signbit(want)[finite])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_code_under_every_byte(dtype: torch.dtype) -> None:
    codes, scales = every_pair()
    check(dequantize(codes, scales, dtype), exact(codes, scales, dtype))


@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_the_path_of_other_devices(dtype: torch.dtype) -> None:
    codes, scales = every_pair()
    out = torch.empty(256, 512, dtype=dtype)
    _dequantize_device(codes, scales, out)
    check(out, exact(codes, scales, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_into_a_given_tensor(dtype: torch.dtype) -> None:
    codes, scales = every_pair()
    out = torch.empty(256, 512, dtype=dtype)
    assert dequantize(codes, scales, dtype, out=out) is out
    check(out, exact(codes, scales, dtype))


@pytest.mark.parametrize(
    "out",
    [torch.empty(256, 512), torch.empty(512, 256).bfloat16().T, torch.empty(2, 512).bfloat16()],
    ids=["dtype", "strides", "shape"],
)
def test_outputs_that_do_not_fit(out: torch.Tensor) -> None:
    with pytest.raises(FormatError, match="written there"):
        dequantize(*every_pair(), out=out)


def test_strided_inputs_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_threads, "THREAD_BLOCKS", 8)
    codes, scales = every_pair()
    check(dequantize(codes.T.contiguous().T, scales[::1], threads=3), exact(codes, scales, torch.bfloat16))
    check(dequantize(codes[::2], scales[::2], threads=2), exact(codes[::2], scales[::2], torch.bfloat16))


@pytest.mark.parametrize("shape", [(0, 16), (3, 0), (2, 0, 32)])
def test_empty(shape: tuple[int, ...]) -> None:
    codes = torch.empty(shape, dtype=torch.uint8)
    scales = torch.empty((*shape[:-1], shape[-1] // 16), dtype=torch.uint8)
    assert dequantize(codes, scales).shape == (*shape[:-1], shape[-1] * 2)


@pytest.mark.parametrize(
    ("codes", "scales"),
    [
        (torch.empty(2, 16, dtype=torch.uint8), torch.empty(2, 2, dtype=torch.uint8)),
        (torch.empty(2, 16, dtype=torch.uint8), torch.empty(3, 1, dtype=torch.uint8)),
        (torch.empty(2, 16, dtype=torch.int8), torch.empty(2, 1, dtype=torch.uint8)),
        (torch.empty(2, 16, dtype=torch.uint8), torch.empty(2, 1)),
        (torch.empty(16, dtype=torch.uint8), torch.empty(1, 1, dtype=torch.uint8)),
        (torch.empty((), dtype=torch.uint8), torch.empty((), dtype=torch.uint8)),
        (torch.empty(2, 16, dtype=torch.uint8), torch.empty(2, 1, dtype=torch.uint8, device="meta")),
    ],
)
def test_pairs_that_do_not_belong_together(codes: torch.Tensor, scales: torch.Tensor) -> None:
    with pytest.raises(FormatError, match="belong together"):
        dequantize(codes, scales)


def test_other_dtypes_are_refused() -> None:
    codes, scales = every_pair()
    with pytest.raises(FormatError, match="int32"):
        dequantize(codes, scales, torch.int32)
