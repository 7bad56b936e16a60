"""Element codes and packing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mxfp4_core.arithmetic.codec import Ties, decode, encode, pack, unpack
from mxfp4_core.arithmetic.format import E2M1_THRESHOLDS, E2M1_VALUES
from mxfp4_core.errors import FormatError

MAGNITUDES = E2M1_VALUES[:8]


def nearest(quotient: float, ties: Ties) -> int:
    """The definition: least distance, then the tie rule, then saturation."""
    best = min(abs(quotient - magnitude) for magnitude in MAGNITUDES)
    candidates = [index for index, magnitude in enumerate(MAGNITUDES) if abs(quotient - magnitude) == best]
    if len(candidates) == 1:
        return candidates[0]
    if ties is Ties.EVEN:
        return next(index for index in candidates if index % 2 == 0)
    return max(candidates) if ties is Ties.AWAY else min(candidates)


@pytest.mark.parametrize("ties", list(Ties))
@given(quotient=st.floats(min_value=0, max_value=8, width=32) | st.sampled_from(E2M1_THRESHOLDS))
def test_encode_is_nearest(ties: Ties, quotient: float) -> None:
    assert int(encode(torch.tensor([quotient], dtype=torch.float64), ties)) == nearest(quotient, ties)


@pytest.mark.parametrize("ties", list(Ties))
def test_every_value_survives(ties: Ties) -> None:
    values = torch.tensor(MAGNITUDES, dtype=torch.float64)
    assert torch.equal(decode(encode(values, ties)), values)


def test_saturates() -> None:
    assert encode(torch.tensor([6.0, 7.0, 1e30], dtype=torch.float64), Ties.EVEN).tolist() == [7, 7, 7]


@given(codes=st.lists(st.integers(0, 15), min_size=2, max_size=64).filter(lambda codes: len(codes) % 2 == 0))
def test_pack_and_unpack_are_inverse(codes: list[int]) -> None:
    tensor = torch.tensor(codes, dtype=torch.uint8)
    packed = pack(tensor)
    assert packed.tolist() == [low | high << 4 for low, high in zip(codes[0::2], codes[1::2], strict=True)]
    assert torch.equal(unpack(packed), tensor)


@pytest.mark.parametrize(
    "bad", [torch.zeros(3, dtype=torch.uint8), torch.zeros(4), torch.zeros((), dtype=torch.uint8)]
)
def test_pack_refuses(bad: torch.Tensor) -> None:
    with pytest.raises(FormatError):
        pack(bad)


def test_unpack_refuses_other_dtypes() -> None:
    with pytest.raises(FormatError, match="int8"):
        unpack(torch.zeros(4, dtype=torch.int8))
