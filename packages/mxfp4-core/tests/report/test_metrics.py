"""Metrics and their accumulation against a direct float64 computation that shares no code with them."""

from __future__ import annotations

import json
import math
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mxfp4_core
from mxfp4_core.jobs.metrics import Metrics, merge
from mxfp4_core.jobs.tally import Tally

torch.set_num_threads(1)

# Written out again, so that a wrong table in the package cannot agree with itself.
Case = tuple[torch.Tensor, np.ndarray, np.ndarray]

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def direct(weight: np.ndarray, codes: np.ndarray, scales: np.ndarray) -> dict[str, float]:
    """Compute everything at once in float64, with whole arrays and numpy's own reductions."""
    k = weight.shape[1]
    unpacked = np.stack([codes & 15, codes >> 4], axis=-1).reshape(codes.shape[0], codes.shape[1] * 2)
    power = np.repeat(np.where(scales == 255, np.nan, 2.0 ** (scales.astype(np.float64) - 127)), 32, axis=1)
    stored, limit = (E2M1[unpacked] * power)[:, :k], 6 * power[:, :k]
    with np.errstate(invalid="ignore"):
        weight = weight.astype(np.float64)
        error = np.abs(weight - stored)
    finite = np.isfinite(error)
    w, d, e, limit = weight[finite], stored[finite], error[finite], limit[finite]
    return {
        "values": weight.size,
        "signal": (w * w).sum(),
        "noise": (e * e).sum(),
        "zeros": (w == 0).sum(),
        "saturated": (np.abs(w) > limit).sum(),
        "flushed": ((w != 0) & (d == 0)).sum(),
        "nonfinite": (~finite).sum(),
        "max_error": e.max(initial=0.0),
    }


def tallied(weight: torch.Tensor, codes: np.ndarray, scales: np.ndarray, step: int = 1 << 30) -> Metrics:
    tally = Tally()
    packed, bytes_ = torch.from_numpy(codes), torch.from_numpy(scales)
    for start in range(0, weight.shape[0], step):
        rows = slice(start, start + step)
        tally.add(weight[rows], packed[rows], bytes_[rows])
    return tally.metrics()


def agree(metrics: Metrics, expected: dict[str, float]) -> None:
    for name in ("values", "zeros", "saturated", "flushed", "nonfinite", "max_error"):
        assert getattr(metrics, name) == expected[name], name
    for name in ("signal", "noise"):
        assert getattr(metrics, name) == pytest.approx(expected[name], rel=1e-13, abs=0.0), name


@st.composite
def stored_tensors(draw: st.DrawFn) -> Case:
    """A weight with any bits, also NaN and infinity, beside codes and scales with any bytes."""
    rows, k = draw(st.integers(0, 5)), draw(st.integers(1, 100))
    blocks = -(-k // 32)
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    low, high = draw(st.sampled_from([(0, 256), (1, 255), (110, 130), (0, 3), (252, 256)]))
    scales = generator.integers(low, high, (rows, blocks), dtype=np.uint8)
    codes = generator.integers(0, 256, (rows, blocks * 16), dtype=np.uint8)
    dtype = draw(st.sampled_from([torch.bfloat16, torch.float16, torch.float32]))
    if draw(st.booleans()):
        weight = torch.from_numpy(generator.normal(0, 2.0 ** (low - 126), (rows, k))).to(dtype)
    else:
        bits = np.int16 if dtype.itemsize == 2 else np.int32
        low, high = np.iinfo(bits).min, np.iinfo(bits).max
        raw = generator.integers(low, high, (rows, k), dtype=bits, endpoint=True)
        weight = torch.from_numpy(raw).view(dtype)
    return weight, codes, scales


@settings(deadline=None, max_examples=300)
@given(stored_tensors())
def test_agrees_with_the_direct_computation(case: Case) -> None:
    weight, codes, scales = case
    metrics = tallied(weight, codes, scales)
    agree(metrics, direct(weight.float().numpy(), codes, scales))
    counts = np.bincount(scales.reshape(-1), minlength=256)
    assert dict(metrics.histogram) == {byte: count for byte, count in enumerate(counts) if count}


@settings(deadline=None)
@given(stored_tensors(), st.integers(1, 4))
def test_the_cut_into_chunks_changes_no_digit(case: Case, step: int) -> None:
    weight, codes, scales = case
    assert tallied(weight, codes, scales, step) == tallied(weight, codes, scales)


@settings(deadline=None)
@given(st.lists(stored_tensors(), max_size=5), st.randoms())
def test_merging_does_not_depend_on_the_order(cases: list[Case], random: Random) -> None:
    parts = [tallied(*case) for case in cases]
    together = merge(parts)
    random.shuffle(parts)
    assert merge(parts) == together
    assert together.values == sum(part.values for part in parts)
    assert together.noise == pytest.approx(math.fsum(part.noise for part in parts), rel=1e-15)


def test_a_block_that_is_known_by_heart() -> None:
    weight = torch.zeros(1, 32)
    weight[0, :6] = torch.tensor([7.5, -6.0, 6.5, 0.2, 1.1, -0.1])
    codes = np.zeros((1, 16), dtype=np.uint8)
    codes[0, :3] = [0xF7, 0x07, 0x02]  # 6 and -6; 6 and 0; 1 and 0
    metrics = tallied(weight, codes, np.full((1, 1), 127, dtype=np.uint8))
    w = weight.double()
    assert (metrics.saturated, metrics.flushed, metrics.zeros, metrics.max_error) == (2, 2, 26, 1.5)
    noise = 1.5**2 + 0.5**2 + w[0, 3].item() ** 2 + (w[0, 4].item() - 1) ** 2 + w[0, 5].item() ** 2
    assert metrics.noise == pytest.approx(noise, rel=1e-14)
    assert metrics.saturated_share == 2 / 32
    assert metrics.flushed_share == 2 / 32
    assert metrics.scale_range == (127, 127)
    assert metrics.sqnr_db == pytest.approx(10 * math.log10((w**2).sum().item() / noise), rel=1e-13)


def test_clipping_starts_above_six_times_the_scale() -> None:
    weight = torch.full((1, 32), 12.0)
    weight[0, 0] = 12.0625
    metrics = tallied(weight, np.full((1, 16), 0x77, dtype=np.uint8), np.full((1, 1), 128, dtype=np.uint8))
    assert metrics.saturated == 1


def test_padding_counts_as_no_value() -> None:
    weight = torch.ones(2, 3)
    codes = np.full((2, 16), 0x77, dtype=np.uint8)  # the padding would decode to 6: it is not looked at
    codes[:, 0], codes[:, 1] = 0x22, 0x72
    metrics = tallied(weight, codes, np.full((2, 1), 127, dtype=np.uint8))
    assert (metrics.values, metrics.noise, metrics.state) == (6, 0.0, "exact")


@pytest.mark.parametrize(
    ("metrics", "state", "sqnr", "relative"),
    [
        (Metrics(4, 8.0, 0.08), "finite", 20.0, 0.01),
        (Metrics(4, 8.0, 0.0), "exact", None, 0.0),
        (Metrics(4, 0.0, 0.0, zeros=4), "exact", None, 0.0),
        (Metrics(0, 0.0, 0.0), "exact", None, 0.0),
        (Metrics(4, 0.0, 1.0, zeros=4), "no_signal", None, None),
        (Metrics(4, 8.0, 0.08, nonfinite=1), "nonfinite", None, None),
        (Metrics(4, 1e300, 1e-300), "finite", 6000.0, 0.0),
    ],
)
def test_every_state_of_the_ratio(
    metrics: Metrics, state: str, sqnr: float | None, relative: float | None
) -> None:
    assert metrics.state == state
    assert metrics.sqnr_db == (None if sqnr is None else pytest.approx(sqnr))
    assert metrics.relative_error == (None if relative is None else pytest.approx(relative))
    text = json.dumps(metrics.to_dict(), allow_nan=False)
    assert json.loads(text)["sqnr_state"] == state


def test_byte_255_is_nan_and_takes_no_part() -> None:
    weight = torch.ones(1, 64)
    codes = np.full((1, 32), 0x22, dtype=np.uint8)
    metrics = tallied(weight, codes, np.array([[127, 255]], dtype=np.uint8))
    assert (metrics.nonfinite, metrics.signal, metrics.noise) == (32, 32.0, 0.0)
    assert metrics.sqnr_db is None


def test_the_ends_of_the_range_do_not_overflow() -> None:
    weight = torch.full((1, 64), torch.finfo(torch.float32).max)
    weight[0, 32:] = 2.0**-149
    codes = np.full((1, 32), 0x77, dtype=np.uint8)
    codes[0, 16:] = 0
    metrics = tallied(weight, codes, np.array([[254, 0]], dtype=np.uint8))
    agree(metrics, direct(weight.numpy(), codes, np.array([[254, 0]], dtype=np.uint8)))
    assert metrics.flushed == 32
    assert metrics.state == "finite"


def test_plain_values_of_another_dtype() -> None:
    weight = torch.tensor([1.0, 1.0 + 2**-12, 1e-9, 0.0, math.inf])
    metrics = Tally()
    metrics.add_plain(weight, weight.half())
    found = metrics.metrics()
    assert (found.values, found.flushed, found.nonfinite, found.saturated) == (5, 1, 1, 0)
    assert found.noise == pytest.approx(2.0**-24 + float(weight[2]) ** 2, rel=1e-12)


@pytest.mark.parametrize("rule", ["floor", "even", "rceil", "ceil"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_adversarial_weights_through_the_quantizer(rule: str, dtype: torch.dtype) -> None:
    end, generator = torch.finfo(dtype), torch.Generator().manual_seed(3)
    wild = torch.randn(4, 96, generator=generator) * 10.0 ** torch.randint(
        -4, 4, (4, 96), generator=generator
    )
    weight = torch.zeros(10, 96, dtype=dtype)
    weight[0] = end.max
    weight[1, ::2] = -end.max
    weight[2] = end.smallest_normal / 4  # subnormal
    weight[3, 5] = end.tiny  # alone in its block
    weight[4] = torch.linspace(-6, 6, 96).to(dtype)
    weight[5, :32] = torch.tensor([7.0, -0.0] * 16, dtype=dtype)
    weight[6:] = wild.to(dtype)
    tensor = mxfp4_core.quantize(weight, rule=rule)
    codes, scales = tensor.codes.numpy(), tensor.scales.numpy()
    metrics = tallied(weight, codes, scales)
    agree(metrics, direct(weight.float().numpy(), codes, scales))
    assert metrics.state == "finite"
    assert (metrics.saturated == 0) == (rule in ("rceil", "ceil"))


@pytest.mark.parametrize(
    ("rule", "normal", "laplace"),
    [("floor", 18.79, 17.96), ("even", 19.02, 18.14), ("rceil", 18.76, 17.59), ("ceil", 16.83, 15.42)],
)
def test_the_figures_of_known_distributions_in_the_docs(rule: str, normal: float, laplace: float) -> None:
    generator = np.random.default_rng(0)
    for draw, expected in ((generator.normal, normal), (generator.laplace, laplace)):
        weight = torch.from_numpy(draw(size=(512, 2048))).bfloat16()
        tensor = mxfp4_core.quantize(weight, rule=rule)
        found = tallied(weight, tensor.codes.numpy(), tensor.scales.numpy())
        assert found.sqnr_db == pytest.approx(expected, abs=0.04)
