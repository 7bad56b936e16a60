"""Activations as kernels see them, against the judges and against sums done by hand."""

import pytest
import torch

from mxfp4_core.arithmetic import MXFP4, MXFP8, reference
from mxfp4_core.arithmetic.activations import WORDS, fp8, fp8_static, quantized
from mxfp4_core.arithmetic.reference import mxfp8
from mxfp4_core.errors import ConfigError, FormatError
from mxfp4_core.testing.hard_weights import hard_weights

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def judged(x: torch.Tensor, word: str) -> torch.Tensor:
    judge, profile = (reference, MXFP4.resolve("even/even")) if word == "mxfp4" else (mxfp8, MXFP8.resolve())
    return judge.dequantize(*judge.quantize(x, profile)).to(torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("word", ["mxfp4", "mxfp8"])
def test_blocks_equal_the_judge(word: str, dtype: torch.dtype) -> None:
    x = hard_weights(dtype)
    seen = quantized(x, word)
    assert seen.dtype is torch.float32
    assert torch.equal(seen.nan_to_num(7), judged(x, word).nan_to_num(7))


def test_groups_of_fp8_by_hand() -> None:
    x = hard_weights(torch.bfloat16)
    exact = x.double().unflatten(-1, (-1, 128))
    amax = exact.abs().amax(-1, keepdim=True)
    scale = torch.where(amax == 0, 1.0, (amax / 448).float()).double()
    quotient = (exact / scale).float().double().abs().clamp(max=448)
    finite = torch.isfinite(amax).expand_as(exact)
    element = torch.copysign(mxfp8.rounded(torch.where(finite, quotient, 0.0)), exact)
    want = (element * scale).float().flatten(-2)
    seen = quantized(x, "fp8")
    assert torch.equal(seen.isnan(), ~finite.flatten(-2))
    assert torch.equal(seen[finite.flatten(-2)], want[finite.flatten(-2)])


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("k", [1, 31, 33, 128, 129, 200])
def test_a_tail_is_a_shorter_block(word: str, k: int) -> None:
    x = torch.randn(3, 2, k, generator=torch.Generator().manual_seed(k), dtype=torch.bfloat16)
    whole = torch.nn.functional.pad(x, (0, -k % 128))
    seen = quantized(x, word)
    assert seen.shape == x.shape
    assert torch.equal(seen, quantized(whole, word)[..., :k])


def test_every_token_is_by_itself_and_strides_do_not_matter() -> None:
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    for word in WORDS:
        assert torch.equal(quantized(x.T, word)[5:6], quantized(x.T[5:6].contiguous(), word))


def test_static_scales_saturate() -> None:
    x = torch.tensor([0.0, 1.0, -500.0, 1e9, torch.nan])
    seen = fp8_static(x, torch.tensor(0.5))
    assert seen[:4].tolist() == [0.0, 1.0, -224.0, 224.0]
    assert seen[4].isnan()


def test_a_group_of_zeros_stays() -> None:
    assert fp8(torch.zeros(2, 130)).eq(0).all()


def test_another_profile() -> None:
    x = torch.full((1, 32), 7.5)
    assert quantized(x, "mxfp4").unique().tolist() == [8.0]
    assert quantized(x, "mxfp4", profile="floor/even").unique().tolist() == [6.0]


@pytest.mark.parametrize(("word", "profile"), [("banana", None), ("auto", None), ("fp8", "even/even")])
def test_words_that_mean_nothing(word: str, profile: str | None) -> None:
    with pytest.raises(ConfigError, match="none, mxfp4, mxfp8, fp8"):
        quantized(torch.ones(1, 32), word, profile=profile)


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(FormatError, match="float64"):
        quantized(torch.ones(1, 32, dtype=torch.float64), "mxfp4")
