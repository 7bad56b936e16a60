"""AITER's orders of bytes, as its own functions make them, and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rocm_vectors import vectors

from mxfp4_core.arithmetic import MxTensor
from mxfp4_core.errors import FormatError, ShapeError
from mxfp4_core.testing.samples import random_weight
from mxfp4_rocm import shuffle_weight, swizzle_scales, unshuffle_weight, unswizzle_scales
from mxfp4_rocm.packed import ExpertsLayout, RawLayout, ShuffledLayout


@pytest.mark.parametrize("shape", [(3, 32, 64), (64, 128)], ids=str)
def test_codes_are_where_aiter_puts_them(shape: tuple[int, ...]) -> None:
    order = vectors("order")[f"shuffle_weight_16x16/{'x'.join(map(str, shape))}"].long()
    codes = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(shuffle_weight(codes).reshape(-1), codes.reshape(-1)[order])


@pytest.mark.parametrize("shape", [(256, 24), (512, 16)], ids=str)
def test_scales_are_where_aiter_puts_them(shape: tuple[int, int]) -> None:
    order = vectors("order")[f"e8m0_shuffle/{shape[0]}x{shape[1]}"].long()
    scales = torch.randint(0, 255, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(swizzle_scales(scales).reshape(-1), scales.reshape(-1)[order])


@settings(max_examples=30, deadline=None)
@given(experts=st.integers(1, 3), n=st.integers(1, 4), k=st.integers(1, 4), seed=st.integers(0, 999))
def test_unshuffle_is_the_inverse(experts: int, n: int, k: int, seed: int) -> None:
    codes = random_weight(experts, 16 * n, 64 * k, seed=seed).codes
    assert torch.equal(unshuffle_weight(shuffle_weight(codes)), codes)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 600), columns=st.integers(1, 20), seed=st.integers(0, 999))
def test_unswizzle_is_the_inverse_and_padding_is_one(n: int, columns: int, seed: int) -> None:
    scales = random_weight(n, 32 * columns, seed=seed, scales=(0, 126)).scales
    made = swizzle_scales(scales)
    assert torch.equal(unswizzle_scales(made, n, 32 * columns), scales)
    assert int((made == 127).sum()) == made.numel() - scales.numel()


def test_misaligned_codes_and_other_scales_are_refused() -> None:
    for codes in (torch.zeros(8, 64, dtype=torch.uint8), torch.zeros(16, 48, dtype=torch.uint8)):
        for change in (shuffle_weight, unshuffle_weight):
            with pytest.raises(ShapeError, match="16"):
                change(codes)
    with pytest.raises(ShapeError, match="256"):
        unswizzle_scales(torch.zeros(64, 8, dtype=torch.uint8), 64, 256)


@pytest.mark.parametrize("interleaved", [False, True])
def test_experts_are_packed_in_their_own_memory(interleaved: bool) -> None:
    layout, weight = ExpertsLayout(interleaved), random_weight(3, 512, 256)
    want = {name: part.clone() for name, part in layout.pack(weight).items()}
    again = layout.unpack(want, tuple(weight.shape))
    assert torch.equal(again.codes, weight.codes) and torch.equal(again.scales, weight.scales)
    made = layout.pack_in_place(weight)
    assert made["codes"].data_ptr() == weight.codes.data_ptr()
    assert made["scales"].data_ptr() == weight.scales.data_ptr()
    assert all(torch.equal(made[name], part) for name, part in want.items())


def test_a_weight_is_packed_in_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mxfp4_rocm.packed._AT_ONCE", 5000)
    layout, weight = ShuffledLayout(), random_weight(384, 256)
    want = {name: part.clone() for name, part in layout.pack(weight).items()}
    made = layout.pack_in_place(weight)
    assert made["codes"].data_ptr() == weight.codes.data_ptr()
    assert all(torch.equal(made[name], part) for name, part in want.items())
    with pytest.raises(ShapeError):
        layout.pack_in_place(random_weight(128, 128))


def test_interleaved_rows_become_gate_rows_and_then_up_rows() -> None:
    weight = random_weight(1, 512, 256)
    halves = MxTensor(
        torch.cat((weight.codes[:, 0::2], weight.codes[:, 1::2]), 1),
        torch.cat((weight.scales[:, 0::2], weight.scales[:, 1::2]), 1),
        weight.shape,
    )
    made, want = ExpertsLayout(True).pack(weight), ExpertsLayout().pack(halves)
    assert all(torch.equal(made[name], part) for name, part in want.items())


def test_a_bias_of_the_fused_moe_is_refused_before_anything_is_written() -> None:
    weight = random_weight(1, 256, 256)
    before = weight.codes.clone()
    for pack in (ExpertsLayout().pack, ExpertsLayout().pack_in_place):
        with pytest.raises(FormatError, match="bias"):
            pack(weight, torch.zeros(1, 256))
    weight.scales[0, 255, 7] = 255
    with pytest.raises(FormatError, match="255"):
        ExpertsLayout().pack_in_place(weight)
    assert torch.equal(weight.codes, before)


@pytest.mark.parametrize("byte", [253, 254, 255])
def test_scales_that_bfloat16_cannot_hold_are_refused_where_weights_are_widened(byte: int) -> None:
    weight = random_weight(64, 256)
    weight.scales[5, 1] = byte
    with pytest.raises(FormatError, match=f"scale byte {byte}"):
        RawLayout(64, 128, widened=True).pack(weight)
    assert RawLayout().pack(weight)["scales"] is weight.scales
    assert int(ShuffledLayout().pack(random_weight(128, 256))["scales"].max()) == 127
