"""The constants, the normative table in the documentation, and other libraries' idea of the same format."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from mxfp4_core.arithmetic import format as fmt
from mxfp4_core.arithmetic.codec import decode, decode_scales

PAGE = Path(__file__).parents[4] / "docs" / "format.md"


def test_documented_table_is_the_table() -> None:
    rows = re.findall(r"^\| (\d+) \| `([01]{4})` \| ([-+]?[0-9.]+) \|$", PAGE.read_text(), flags=re.MULTILINE)
    assert [int(code) for code, _, _ in rows] == list(range(16))
    assert [int(bits, 2) for _, bits, _ in rows] == list(range(16))
    assert [float(value) for _, _, value in rows] == list(fmt.E2M1_VALUES)
    assert np.signbit([float(value) for _, _, value in rows]).tolist() == [False] * 8 + [True] * 8


def test_values_follow_from_the_fields() -> None:
    for code, value in enumerate(fmt.E2M1_VALUES):
        sign, exponent, mantissa = code >> 3, code >> 1 & 3, code & 1
        magnitude = mantissa / 2 if exponent == 0 else 2.0 ** (exponent - 1) * (1 + mantissa / 2)
        assert value == (-magnitude if sign else magnitude)


def test_thresholds_are_midpoints() -> None:
    magnitudes = fmt.E2M1_VALUES[:8]
    assert tuple((a + b) / 2 for a, b in itertools.pairwise(magnitudes)) == fmt.E2M1_THRESHOLDS


def test_scale_bytes_decode_as_torch_does() -> None:
    bytes_ = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    ours = decode_scales(bytes_)
    theirs = bytes_.view(torch.float8_e8m0fnu).to(torch.float64)
    assert torch.equal(ours[:255], theirs[:255])
    assert ours[255].isnan()
    assert theirs[255].isnan()


def test_gguf_has_the_same_values() -> None:
    gguf = pytest.importorskip("gguf")
    doubled = gguf.quants.MXFP4.kvalues
    assert [float(value) / 2 for value in doubled] == [abs(v) if v == 0 else v for v in fmt.E2M1_VALUES]


def test_decode_keeps_minus_zero() -> None:
    values = decode(torch.arange(16, dtype=torch.uint8))
    assert torch.signbit(values).tolist() == [False] * 8 + [True] * 8
