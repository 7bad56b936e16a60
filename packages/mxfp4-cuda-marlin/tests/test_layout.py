"""Our own layout: where each code goes, its inverse, what it refuses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mxfp4_core.arithmetic import MxTensor
from mxfp4_core.arithmetic.codec import unpack
from mxfp4_core.errors import FormatError, ShapeError
from mxfp4_core.testing.samples import random_weight
from mxfp4_cuda_marlin import layout as module
from mxfp4_cuda_marlin.layout import Rows, Sm90Layout, row_order

ROWS: tuple[Rows, ...] = ("plain", "gate-up", "gate-up-interleaved")


@settings(max_examples=25, deadline=None)
@given(
    rows=st.sampled_from(ROWS),
    lead=st.lists(st.integers(1, 3), max_size=2),
    strips=st.integers(1, 3),
    tiles=st.integers(1, 3),
    scales=st.sampled_from([(0, 128), (1, 252)]),
    seed=st.integers(0, 999),
)
def test_unpack_is_the_inverse(
    rows: Rows, lead: list[int], strips: int, tiles: int, scales: tuple[int, int], seed: int
) -> None:
    weight = random_weight(*lead, 64 * strips, 64 * tiles, seed=seed, scales=scales)
    one = Sm90Layout(rows)
    again = one.unpack(one.pack(weight), tuple(weight.shape))
    assert torch.equal(again.codes, weight.codes)
    assert torch.equal(again.scales, weight.scales)


def test_large_weights_are_packed_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random_weight(2, 320, 128)
    want = Sm90Layout("gate-up").pack(weight)["codes"]
    monkeypatch.setattr(module, "_STEP", 1 << 14)
    packed = Sm90Layout("gate-up").pack(weight)
    assert torch.equal(packed["codes"], want)
    assert torch.equal(Sm90Layout("gate-up").unpack(packed, (2, 320, 128)).codes, weight.codes)


def test_each_thread_finds_the_codes_of_its_fragments() -> None:
    """Decode words as the kernel does, and compare with the fragments that the PTX manual draws for m64k16."""
    weight = random_weight(64, 64)
    packed = Sm90Layout().pack(weight)
    codes = unpack(weight.codes).tolist()
    words = packed["codes"].view(torch.int32).view(4, 32, 4).tolist()
    scales = packed["scales"].view(4, 8, 4).tolist()
    fields = 0x81C081C0  # sign, exponents and mantissa of two bfloat16
    for warp in range(4):
        for lane in range(32):
            row, column = 16 * warp + lane // 4, 2 * (lane % 4)
            for step in range(4):
                word = words[warp][lane][step] & 0xFFFFFFFF
                pairs = (
                    word & fields,
                    word << 4 & fields,
                    (word >> 6 | word << 26) & fields,
                    word << 6 & 0x80C080C0 | word >> 2 & 0x01000100,
                )
                for pair, two in enumerate(pairs):
                    for half in (0, 1):
                        found = two >> (16 * half + 6) & 7 | two >> (16 * half + 12) & 8
                        at = codes[row + 8 * (pair % 2)][16 * step + column + 8 * (pair // 2) + half]
                        assert found == at, (warp, lane, step, pair, half)
            for upper in (0, 1):
                want = weight.scales[row + 8 * upper].tolist()
                assert scales[warp][lane // 4][2 * upper : 2 * upper + 2] == want


def test_gate_and_up_of_a_feature_are_eight_rows_apart() -> None:
    for rows, gate, up in (("gate-up", 40, 96 + 40), ("gate-up-interleaved", 80, 81)):
        order = row_order(rows, 192, torch.device("cpu"))
        assert sorted(order.tolist()) == list(range(192))
        place = order.tolist().index(gate)
        assert order[place + 8] == up
        assert place == 64 + 16  # feature 40: second strip, second group of eight


def test_the_bias_moves_with_the_rows_and_becomes_bfloat16() -> None:
    weight, bias = random_weight(2, 128, 64), torch.arange(256, dtype=torch.float32).view(2, 128)
    packed = Sm90Layout("gate-up").pack(weight, bias)
    order = row_order("gate-up", 128, torch.device("cpu"))
    assert packed["bias"].dtype == torch.bfloat16
    assert torch.equal(packed["bias"].float(), bias[:, order])


@pytest.mark.parametrize(("byte", "shape"), [(128, (1, 1, 128)), (129, (1, 1, 64, 2)), (255, (1, 1, 64, 2))])
def test_the_shape_of_the_scales_says_which_kernel_may_read_them(byte: int, shape: tuple[int, ...]) -> None:
    weight = random_weight(64, 64)
    weight.scales[9, 1] = byte
    assert tuple(Sm90Layout().pack(weight)["scales"].shape) == shape


@pytest.mark.parametrize("byte", [253, 254])
def test_scales_that_bfloat16_cannot_hold_are_refused(byte: int) -> None:
    weight = random_weight(64, 64)
    weight.scales[9, 1], weight.scales[0, 0] = byte, 255
    with pytest.raises(FormatError, match=f"scale byte {byte}"):
        Sm90Layout().pack(weight)


@pytest.mark.parametrize("shape", [(32, 64), (64, 96), (65, 64)])
def test_misaligned_weights_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ShapeError, match="64"):
        Sm90Layout().pack(random_weight(*shape))


def test_tensors_of_another_shape_are_refused() -> None:
    packed = Sm90Layout().pack(random_weight(64, 128))
    with pytest.raises(FormatError, match="physical shape"):
        Sm90Layout().unpack(packed, (128, 64))


def test_the_name_tells_the_variants_apart() -> None:
    assert len({Sm90Layout(rows).id for rows in ROWS}) == 3
    assert Sm90Layout().id == "sm90-64x64"


def test_an_empty_stack_of_experts_packs() -> None:
    empty = MxTensor(
        torch.empty(0, 64, 32, dtype=torch.uint8),
        torch.empty(0, 64, 2, dtype=torch.uint8),
        torch.Size((0, 64, 64)),
    )
    assert Sm90Layout().pack(empty)["codes"].shape == (0, 1, 1, 2048)
