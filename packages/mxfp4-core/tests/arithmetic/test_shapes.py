"""Shapes: exact padding, and cuts that never split a block."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mxfp4_core.arithmetic.shapes import Alignment, crop, pad_weight, padded
from mxfp4_core.errors import ShapeError
from mxfp4_core.parallel.ranges import expert_ranges, legal_parts, merged_ranges, qkv_ranges, shard_ranges

PARTS = st.integers(1, 16)


@given(st.integers(0, 5000), st.integers(1, 512))
def test_padded_is_the_next_multiple(size: int, multiple: int) -> None:
    result = padded(size, multiple)
    assert result % multiple == 0 and size <= result < size + multiple


@given(st.integers(1, 4096), PARTS, st.sampled_from([1, 32, 128]), st.sampled_from(["refuse", "pad"]))
def test_ranges_cover_without_overlap_and_begin_on_multiples(
    size: int, parts: int, multiple: int, tail: str
) -> None:
    try:
        ranges = shard_ranges(size, parts, multiple=multiple, tensor="w", dim="k", tail=tail)  # pyright: ignore[reportArgumentType]
    except ShapeError:
        if tail == "refuse":
            assert size % (parts * multiple)
        else:
            assert padded(-(-size // parts), multiple) * (parts - 1) >= size
        return
    assert len(ranges) == parts
    assert [index for low, high in ranges for index in range(low, high)] == list(range(size))
    assert all(low % multiple == 0 and low < high for low, high in ranges)
    assert all((high - low) % multiple == 0 for low, high in ranges[:-1])
    if tail == "refuse":
        assert (
            len({high - low for low, high in ranges}) == 1 and (ranges[-1][1] - ranges[-1][0]) % multiple == 0
        )


@given(st.integers(1, 4096), PARTS)
def test_the_error_names_everything_and_its_advice_is_legal(size: int, parts: int) -> None:
    try:
        shard_ranges(size, parts, multiple=32, tensor="layers.0.down_proj", dim="k")
    except ShapeError as error:
        assert "layers.0.down_proj" in error.what and f"k = {size} over {parts} ranks" in error.seen
        for legal in legal_parts(size, 32):
            shard_ranges(size, legal, multiple=32, tensor="w", dim="k")
        nearest = padded(size, 32 * parts)
        assert str(nearest) in error.fix
        shard_ranges(nearest, parts, multiple=32, tensor="w", dim="k")


def test_the_error_offers_tp_sizes_that_work() -> None:
    with pytest.raises(ShapeError, match="here it would be 12") as caught:
        shard_ranges(384, 32, multiple=32, tensor="w", dim="k")
    assert "12" in caught.value.fix
    with pytest.raises(ShapeError, match="do not shard it"):
        shard_ranges(33, 2, multiple=32, tensor="w", dim="k")
    with pytest.raises(ShapeError, match="at least one element"):
        shard_ranges(32, 2, multiple=32, tensor="w", dim="k", tail="pad")


@given(st.lists(st.integers(1, 64), min_size=1, max_size=3), st.sampled_from([1, 2, 4]))
def test_merged_columns_give_every_rank_its_part_of_every_member(units: list[int], parts: int) -> None:
    sizes = [unit * parts for unit in units]
    ranks = merged_ranges(sizes, parts, tensor="gate_up")
    rows = sorted(row for rank in ranks for low, high in rank for row in range(low, high))
    assert rows == list(range(sum(sizes)))
    for rank, members in enumerate(ranks):
        starts = [sum(sizes[:index]) for index in range(len(sizes))]
        assert members == [
            (start + rank * unit, start + (rank + 1) * unit)
            for start, unit in zip(starts, units, strict=True)
        ]


def test_key_heads_are_divided_or_replicated() -> None:
    divided = qkv_ranges(8, 4, 16, 2, tensor="attn")
    assert divided[1] == {"q": (64, 128), "k": (32, 64), "v": (32, 64)}
    replicated = qkv_ranges(8, 2, 16, 4, tensor="attn", v_head_dim=8)
    assert [rank["k"] for rank in replicated] == [(0, 16), (0, 16), (16, 32), (16, 32)]
    assert [rank["v"] for rank in replicated] == [(0, 8), (0, 8), (8, 16), (8, 16)]


@pytest.mark.parametrize(
    ("heads", "kv_heads", "parts"), [(9, 9, 2), (12, 6, 4), (12, 8, 12), (8, 0, 2), (8, 3, 2)]
)
def test_heads_that_do_not_divide_are_refused(heads: int, kv_heads: int, parts: int) -> None:
    with pytest.raises(ShapeError, match="heads"):
        qkv_ranges(heads, kv_heads, 16, parts, tensor="attn")


def test_experts_are_cut_whole() -> None:
    assert expert_ranges(8, 4, tensor="experts")[3] == (6, 8)
    with pytest.raises(ShapeError, match="EP size 1, 2 or 5") as caught:
        expert_ranges(10, 4, tensor="experts")
    assert "tail" not in caught.value.fix


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 64), st.sampled_from([32, 64]), st.booleans())
def test_padding_and_cropping_are_inverse_and_add_zeros(
    n: int, k: int, by_n: int, by_k: int, stack: bool
) -> None:
    weight = torch.ones(2, n, k) if stack else torch.ones(n, k)
    alignment = Alignment(by_n, by_k)
    result = pad_weight(weight, alignment)
    assert result.shape[-2:] == alignment.physical(n, k)
    assert torch.equal(crop(result, weight.shape), weight) and result.sum() == weight.sum()
    assert (result is weight) == alignment.fits(n, k)


def test_a_crop_cannot_grow() -> None:
    with pytest.raises(ShapeError, match="logical shape"):
        crop(torch.zeros(2, 3), (2, 4))
    with pytest.raises(ShapeError, match="logical shape"):
        crop(torch.zeros(2, 3), (1, 2, 3))


@pytest.mark.parametrize(("n", "k"), [(0, 32), (1, 0), (1, 48), (-4, 32)])
def test_an_impossible_alignment_is_refused(n: int, k: int) -> None:
    with pytest.raises(ShapeError, match="alignment"):
        Alignment(n, k)


def test_a_weight_that_ends_inside_a_block_may_be_padded_or_kept() -> None:
    with pytest.raises(ShapeError, match=r"tail='pad'.*ignore"):
        shard_ranges(341, 1, multiple=32, tensor="layers.0.w2.weight", dim="k")
