"""A view's offset, sizes and strides tell the box that it covers, or that it covers none."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mxfp4_core.loader.regions import Region, locate


def box_of(view: torch.Tensor, base: tuple[int, int, int]) -> tuple[tuple[int, int], ...] | None:
    """Find the box by looking at every element, which holds its own flat index."""
    index = torch.stack(torch.unravel_index(view.flatten(), base))
    low, high = index.amin(1), index.amax(1) + 1
    return (
        tuple(zip(low.tolist(), high.tolist(), strict=True)) if (high - low).prod() == view.numel() else None
    )


@st.composite
def views(draw: st.DrawFn) -> tuple[tuple[int, int, int], torch.Tensor]:
    """Draw a base whose elements are their flat indices, and a view made the ways in which loaders make views."""
    base = draw(st.tuples(*[st.integers(1, 4)] * 3))
    view = torch.arange(base[0] * base[1] * base[2]).view(base)
    for _ in range(draw(st.integers(0, 4))):
        if view.dim() == 0:
            break
        axis = draw(st.integers(0, view.dim() - 1))
        size = view.size(axis)
        match draw(st.sampled_from(["narrow", "select", "permute", "flatten", "split", "step", "unsqueeze"])):
            case "narrow":
                start = draw(st.integers(0, size - 1))
                view = view.narrow(axis, start, draw(st.integers(1, size - start)))
            case "select":
                view = view.select(axis, draw(st.integers(0, size - 1)))
            case "permute":
                view = view.permute(draw(st.permutations(range(view.dim()))))
            case "flatten" if view.is_contiguous():
                view = view.view(-1)
            case "split" if size % 2 == 0:
                view = view.unflatten(axis, (2, -1))
            case "step":
                view = view[::2]
            case "unsqueeze":
                view = view.unsqueeze(axis)
    return base, view


@settings(deadline=None)
@given(views())
def test_box_is_exact_and_every_box_is_found(drawn: tuple[tuple[int, int, int], torch.Tensor]) -> None:
    base, view = drawn
    place = locate(view, base)
    assert (place.ranges if place else None) == box_of(view, base)


@settings(deadline=None)
@given(views())
def test_source_is_arranged_as_a_copy_would_store_it(
    drawn: tuple[tuple[int, int, int], torch.Tensor],
) -> None:
    base, view = drawn
    place = locate(view, base)
    if place is None:
        return
    source = torch.randint(0, 1 << 30, view.shape)
    stored = torch.zeros(base, dtype=torch.int64)
    torch.as_strided(stored, view.shape, view.stride(), view.storage_offset()).copy_(source)
    (e0, e1), (n0, n1), (k0, k1) = place.ranges
    assert torch.equal(place.arrange(source), stored[e0:e1, n0:n1, k0:k1])


@pytest.mark.parametrize("make", [lambda t: t[:, 2:2], lambda t: t[2:2], lambda t: t[:, 4:]])
def test_empty_views_are_empty_regions(make: object) -> None:
    place = locate(make(torch.empty(2, 4, 3, device="meta")), (2, 4, 3))
    assert place is not None
    assert Region(*place.ranges).empty


def test_meta_tensors_are_enough() -> None:
    base = (4, 8, 64)
    view = torch.empty(base, device="meta")[2].t()[32:].t()[4:6]
    place = locate(view, base)
    assert place is not None
    assert place.ranges == ((2, 3), (4, 6), (32, 64))


def test_overlap_needs_every_axis() -> None:
    region = Region((0, 1), (0, 4), (0, 64))
    assert region.overlaps(Region((0, 2), (3, 5), (32, 96)))
    assert not region.overlaps(Region((0, 2), (4, 5), (32, 96)))
    assert not region.overlaps(Region((1, 2), (0, 4), (0, 64)))


def test_words_name_experts_only_where_there_are_some() -> None:
    region = Region((3, 4), (0, 4), (32, 64))
    assert region.describe(stacked=True) == "expert 3, rows 0:4, k 32:64"
    assert region.describe(stacked=False) == "rows 0:4, k 32:64"
    assert Region((0, 8), (0, 4), (0, 32)).describe(stacked=True).startswith("experts 0:8")
