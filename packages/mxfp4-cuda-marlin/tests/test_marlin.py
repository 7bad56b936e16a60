"""Marlin's layouts, byte for byte as vLLM makes them."""

from __future__ import annotations

import hashlib
import lzma
from functools import cache
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load

from mxfp4_core.arithmetic import MxTensor
from mxfp4_core.errors import FormatError, ShapeError
from mxfp4_core.testing.samples import random_weight
from mxfp4_cuda_marlin import MarlinLayout

ARCHIVE = Path(__file__).parents[3] / "golden" / "v1" / "marlin.safetensors.xz"
SHA256 = "3f80f1bb2b62bd3cb338432ac9e4938afa2631145cccba6fc30ac3137babf6f5"
BITS: tuple[Literal[16, 8], ...] = (16, 8)


@cache
def vectors() -> dict[str, torch.Tensor]:
    return load(lzma.decompress(ARCHIVE.read_bytes()))


def test_the_archive_is_frozen() -> None:
    assert hashlib.sha256(ARCHIVE.read_bytes()).hexdigest() == SHA256


@pytest.mark.parametrize("bits", BITS)
def test_codes_equal_what_vllm_makes(bits: Literal[16, 8]) -> None:
    want = vectors()
    weight = MxTensor(want["K128_N128/weight"], want["K128_N128/scale"], torch.Size((128, 128)))
    packed = MarlinLayout(bits).pack(weight, want["K128_N128/bias"])
    assert packed["qweight"].dtype == torch.int32
    assert torch.equal(packed["qweight"], want[f"K128_N128/a{bits}/qweight"])
    again = MarlinLayout(bits).unpack(packed, (128, 128))
    assert torch.equal(again.codes, weight.codes) and torch.equal(again.scales, weight.scales)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("k", "n"), [(128, 128), (64, 256), (256, 64)])
def test_scales_and_bias_equal_what_vllm_makes(k: int, n: int, bits: Literal[16, 8]) -> None:
    want, name = vectors(), f"K{k}_N{n}"
    weight = MxTensor(torch.zeros(n, k // 2, dtype=torch.uint8), want[f"{name}/scale"], torch.Size((n, k)))
    packed = MarlinLayout(bits).pack(weight, want[f"{name}/bias"])
    assert torch.equal(packed["scales"], want[f"{name}/a{bits}/scale"])
    assert torch.equal(packed["bias"], want[f"{name}/bias_permuted"])
    assert torch.equal(MarlinLayout(bits).unpack_bias(packed["bias"]), want[f"{name}/bias"])


@settings(max_examples=20, deadline=None)
@given(
    bits=st.sampled_from(BITS),
    lead=st.lists(st.integers(1, 3), max_size=1),
    n=st.integers(1, 3),
    k=st.integers(1, 3),
    seed=st.integers(0, 999),
)
def test_unpack_is_the_inverse(bits: Literal[16, 8], lead: list[int], n: int, k: int, seed: int) -> None:
    weight = random_weight(*lead, 64 * n, 64 * k, seed=seed, scales=(0, 249))
    one = MarlinLayout(bits)
    packed = {name: tensor.clone() for name, tensor in one.pack(weight).items()}
    again = one.unpack(packed, tuple(weight.shape))
    assert torch.equal(again.codes, weight.codes)
    assert torch.equal(again.scales, weight.scales)


@pytest.mark.parametrize(("bits", "byte"), [(16, 255), (8, 250)])
def test_scales_without_a_marlin_byte_are_refused(bits: Literal[16, 8], byte: int) -> None:
    weight = random_weight(64, 64)
    weight.scales[3, 1] = byte
    with pytest.raises(FormatError, match=f"scale byte {byte}"):
        MarlinLayout(bits).pack(weight)


@pytest.mark.parametrize("shape", [(32, 64), (64, 32)])
def test_misaligned_weights_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ShapeError, match="64"):
        MarlinLayout().pack(random_weight(*shape))


def test_tensors_of_another_shape_are_refused() -> None:
    packed = MarlinLayout().pack(random_weight(64, 128))
    with pytest.raises(FormatError, match="qweight"):
        MarlinLayout().unpack(packed, (128, 64))
