"""The fast paths against the reference, and what the public functions refuse."""

import multiprocessing
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mxfp4_core.arithmetic import reference
from mxfp4_core.arithmetic.codec import decode
from mxfp4_core.arithmetic.fast import blocks, device
from mxfp4_core.arithmetic.fast.single import Single
from mxfp4_core.arithmetic.fast.steps import steps
from mxfp4_core.arithmetic.profiles import Profile, profiles, resolve
from mxfp4_core.arithmetic.quantize import quantize, quantize_into
from mxfp4_core.errors import ConfigError, FormatError, NonFiniteError, ShapeError

PAIRS = ["even/even", "even/zero", "floor/even", "rceil/away", "ceil/zero", "ceil_d(7.25)/even"]
ALL = [*profiles(), *PAIRS]
HALVES = [torch.bfloat16, torch.float16]


class Elsewhere(Single):
    """The way of any other device, which leaves blocks to the judge."""

    def complete(self, weight: torch.Tensor, profile: Profile) -> bool:
        return False


def run_device_path(weight: torch.Tensor, profile: Profile) -> tuple[torch.Tensor, torch.Tensor]:
    """What any other torch device runs, on CPU tensors."""
    codes = torch.empty((*weight.shape[:-1], weight.shape[-1] // 2), dtype=torch.uint8)
    scales = torch.empty((*weight.shape[:-1], weight.shape[-1] // 32), dtype=torch.uint8)
    if device.quantize(weight, codes, scales, profile):
        blocks._finish(Elsewhere(), weight, (codes, scales), profile, "nan", "weight", 0, weight.shape)
    return codes, scales


def check_all_paths(weight: torch.Tensor, name: str) -> None:
    profile = resolve(name)
    if profile.dtypes and weight.dtype not in profile.dtypes:
        with pytest.raises(FormatError):
            quantize(weight, profile=name, nonfinite="nan")
        return
    codes, scales = reference.quantize(weight, profile)
    fast = quantize(weight, profile=name, nonfinite="nan")
    assert torch.equal(fast.codes, codes)
    assert torch.equal(fast.scales, scales)
    device_codes, device_scales = run_device_path(weight, profile)
    assert torch.equal(device_codes, codes)
    assert torch.equal(device_scales, scales)


def every_value(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", HALVES)
def test_every_value_as_block_maximum(name: str, dtype: torch.dtype) -> None:
    largest = every_value(dtype)[: 1 << 15]
    fractions = torch.linspace(-1, 1, 31, dtype=torch.float64)
    rest = torch.where(torch.isfinite(largest), largest, 0).double()[:, None] * fractions
    check_all_paths(torch.cat((largest[:, None], rest.to(dtype)), dim=1), name)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", HALVES)
def test_every_value_as_element(name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(7)
    order = torch.randperm(1 << 16, generator=generator)
    values = every_value(dtype)[order]
    near = values[
        values.abs().double().argsort()
    ]  # neighbours in magnitude share a block, so small ones matter
    check_all_paths(torch.cat((values, near)).view(-1, 256), name)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=40, deadline=None)
@given(bits=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=32, max_size=32), spread=st.integers(0, 32))
def test_any_float32_bits(name: str, bits: list[int], spread: int) -> None:
    raw = torch.tensor(bits, dtype=torch.int64)
    # Pull the exponents together by a varying amount: wild blocks are mostly zeros otherwise.
    exponent = (raw >> 23 & 0xFF).float()
    pulled = (exponent[0] + (exponent - exponent[0]) * spread / 32).round().long()
    weight = ((raw & ~(0xFF << 23)) | (pulled << 23)).to(torch.int32).view(torch.float32)[None]
    check_all_paths(weight, name)


@pytest.mark.parametrize("name", ALL)
def test_float32_ties_and_their_neighbours(name: str) -> None:
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    up, down = torch.nextafter(ties, torch.tensor(9.0)), torch.nextafter(ties, torch.tensor(0.0))
    row = torch.cat((ties, up, down, torch.tensor([0.0, -0.0, 6.0, -6.0])))
    row = torch.cat((row, -row[:7]))[None]
    check_all_paths(torch.cat([row * 2.0**power for power in range(-120, 125, 7)]), name)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
def test_maxima_around_every_power(name: str, dtype: torch.dtype) -> None:
    powers = torch.arange(-24 if dtype is torch.float16 else -149, 16 if dtype is torch.float16 else 128)
    mantissas = torch.tensor([1.0, 1.5, 1.75, 1.8125, 1.25], dtype=torch.float64)
    exact = (mantissas * torch.exp2(powers.double())[:, None]).flatten().to(dtype)
    exact = exact[torch.isfinite(exact) & (exact > 0)]
    width = torch.int16 if dtype in HALVES else torch.int32
    maxima = torch.cat([(exact.view(width) + step).view(dtype) for step in (-1, 0, 1)])
    weight = torch.zeros(len(maxima), 32, dtype=dtype)
    weight[:, 5], weight[:, 9] = maxima, -maxima / 3
    check_all_paths(weight, name)


@pytest.mark.parametrize("shape", [(32,), (0, 32), (3, 0), (5, 96), (2, 3, 64), (2, 0, 64), (2, 3, 4, 32)])
def test_shapes(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape).bfloat16()
    quantised = quantize(weight)
    assert quantised.codes.shape == (*shape[:-1], shape[-1] // 2)
    assert quantised.scales.shape == (*shape[:-1], shape[-1] // 32)
    if weight.numel():
        codes, scales = reference.quantize(weight, resolve())
        assert torch.equal(quantised.codes, codes)
        assert torch.equal(quantised.scales, scales)


def strided_views() -> dict[str, torch.Tensor]:
    base = torch.randn(6, 128, 96).bfloat16()
    return {
        "transposed": base.transpose(1, 2),
        "rows": base[:, ::3, :],
        "columns": base[:, :, 32:64],
        "every other value": base.repeat(1, 1, 2)[..., ::2],
        "experts": base[::2],
        "expanded": base[:1].expand(4, -1, -1),
        "transposed matrix": base[0].T,
    }


@pytest.mark.parametrize("view", strided_views())
def test_strides_do_not_matter(view: str) -> None:
    weight = strided_views()[view]
    quantised, dense = quantize(weight), quantize(weight.clone(memory_format=torch.contiguous_format))
    assert torch.equal(quantised.codes, dense.codes)
    assert torch.equal(quantised.scales, dense.scales)


@pytest.mark.parametrize("transposed", [False, True])
def test_into_slices_of_a_larger_tensor(transposed: bool) -> None:
    weight = torch.randn(7, 64).bfloat16()
    codes, scales = (
        torch.full((10, 96), 0xAB, dtype=torch.uint8),
        torch.full((10, 6), 0xCD, dtype=torch.uint8),
    )
    if transposed:  # the last axis of the outputs is not dense
        codes, scales = codes.T.contiguous().T, scales.T.contiguous().T
    quantize_into(weight, codes[2:9, 32:64], scales[2:9, 2:4])
    want = quantize(weight)
    assert torch.equal(codes[2:9, 32:64], want.codes)
    assert torch.equal(scales[2:9, 2:4], want.scales)
    outside = torch.ones(10, 96, dtype=torch.bool)
    outside[2:9, 32:64] = False
    assert (codes[outside] == 0xAB).all()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_change_bytes(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from mxfp4_core.arithmetic.fast import threads as _threads

    monkeypatch.setattr(_threads, "THREAD_BLOCKS", 8)
    weight = torch.randn(33, 96).bfloat16()
    weight[20, 40] = 1e-40  # and a block for the reference
    weight[20, 32:64] *= 1e-38
    codes, scales = reference.quantize(weight, resolve())
    quantised = quantize(weight, threads=threads)
    assert torch.equal(quantised.codes, codes)
    assert torch.equal(quantised.scales, scales)


@pytest.mark.parametrize("k", [40, 64])
@pytest.mark.parametrize("option", ["tail", "nonfinite"])
def test_a_word_that_an_option_does_not_have_is_refused_for_every_size(option: str, k: int) -> None:
    with pytest.raises(ConfigError, match=option):
        quantize(torch.ones(2, k), **{"tail": "pad", option: "paad"})


def test_gradients_are_not_tracked() -> None:
    weight = torch.nn.Parameter(torch.randn(2, 40))
    assert not quantize(weight, tail="pad").dequantize(torch.float32).requires_grad


@pytest.mark.parametrize("k", [1, 31, 33, 40])
def test_tails_are_refused_or_padded(k: int) -> None:
    weight = torch.randn(3, k).bfloat16()
    with pytest.raises(ShapeError, match=f"k = {k}"):
        quantize(weight)
    padded = quantize(weight, tail="pad")
    assert padded.shape == (3, k)
    assert padded.physical_shape == (3, k + -k % 32)
    whole = quantize(torch.nn.functional.pad(weight, (0, -k % 32)))
    assert torch.equal(padded.codes, whole.codes)
    assert torch.equal(padded.dequantize(), whole.dequantize()[:, :k])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
@pytest.mark.parametrize("shape", [(4, 96), (2, 4, 96)])
def test_non_finite_weights(bad: float, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape).to(dtype)
    weight[..., 2, 70] = bad
    index = [0] * (len(shape) - 2) + [2, 70]
    with pytest.raises(NonFiniteError, match=r"layers\.0\.up") as caught:
        quantize(weight, name="layers.0.up")
    assert str(index) in caught.value.seen
    quantised = quantize(weight, nonfinite="nan")
    assert (quantised.scales[..., 2, 2] == 255).all()
    values = quantised.dequantize()
    assert values[..., 2, 64:].isnan().all()
    assert values[..., 2, :64].isfinite().all()


def test_integers_are_refused() -> None:
    with pytest.raises(FormatError, match=r"torch\.uint8"):
        quantize(torch.zeros(2, 32, dtype=torch.uint8))


def test_scalars_and_meta_are_refused() -> None:
    with pytest.raises(ShapeError):
        quantize(torch.tensor(1.0))
    with pytest.raises(FormatError, match="meta"):
        quantize(torch.empty(2, 32, device="meta"))


@pytest.mark.parametrize(
    ("codes", "scales", "error"),
    [
        (torch.empty(2, 16, dtype=torch.uint8), torch.empty(2, 2, dtype=torch.uint8), ShapeError),
        (torch.empty(2, 32, dtype=torch.uint8), torch.empty(2, 1, dtype=torch.uint8), ShapeError),
        (torch.empty(2, 32, dtype=torch.int8), torch.empty(2, 2, dtype=torch.uint8), FormatError),
        (
            torch.empty(2, 32, dtype=torch.uint8, device="meta"),
            torch.empty(2, 2, dtype=torch.uint8),
            FormatError,
        ),
    ],
)
def test_outputs_that_do_not_fit(codes: torch.Tensor, scales: torch.Tensor, error: type[Exception]) -> None:
    with pytest.raises(error):
        quantize_into(torch.randn(2, 64), codes, scales)


@pytest.mark.parametrize(
    "options",
    [
        {"profile": "quark", "rule": "even"},
        {"profile": "quark", "ties": "even"},
        {"profile": "qurk"},
        {"profile": "even"},
        {"rule": "evn"},
        {"ties": "up"},
        {"tail": "cut"},
        {"nonfinite": "ignore"},
        {"threads": 0},
    ],
)
def test_bad_options(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        quantize(torch.randn(2, 33), **{"tail": "pad", **options})  # type: ignore[arg-type]


def test_default_is_even_even() -> None:
    weight = torch.randn(16, 64).bfloat16()
    assert quantize(weight).profile == "even/even"
    assert torch.equal(quantize(weight).codes, quantize(weight, rule="even", ties="even").codes)


@pytest.mark.parametrize(
    "name", [name for name in ALL if "ceil" not in name.replace("rceil", "").replace("ceil_d", "")]
)
def test_blocks_that_reach_six_come_back_as_themselves(name: str) -> None:
    weight = torch.randint(0, 16, (8, 64), dtype=torch.uint8)
    weight[:, ::32] = 7
    values = decode(weight).to(torch.bfloat16) * torch.exp2(torch.arange(8) - 4)[:, None].bfloat16()
    assert torch.equal(quantize(values, profile=name).dequantize(), values)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # forking with threads is the point
def test_threads_survive_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    from mxfp4_core.arithmetic.fast import threads as _threads

    monkeypatch.setattr(_threads, "THREAD_BLOCKS", 1)
    weight = torch.randn(64, 64).bfloat16()
    want = quantize(weight, threads=2)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        codes = pool.apply_async(_codes_of, (weight,)).get(timeout=60)
    assert torch.equal(codes, want.codes)


def _codes_of(weight: torch.Tensor) -> torch.Tensor:
    return quantize(weight, threads=2).codes


@pytest.mark.parametrize("name", ["even/even", "aiter-hip"])
def test_a_default_device_changes_nothing(name: str) -> None:
    """Engines load under ``torch.device("meta")``; the tables and the reference must not follow it there."""
    weight = torch.randn(4, 64)
    weight[1, :32] *= 1e-40
    want = quantize(weight, profile=name)
    steps.cache_clear()
    with torch.device("meta"):
        got = quantize(weight, profile=name)
        values = got.dequantize()
    assert torch.equal(got.codes, want.codes)
    assert torch.equal(values, want.dequantize())
