"""Bytes of ``mxfp4-dual`` against those that msmodelslim wrote."""

import hashlib
import lzma
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from mxfp4_core import quantize
from mxfp4_core.arithmetic import MXFP4_DUAL
from mxfp4_core.arithmetic.reference import dual

ARCHIVE = Path(__file__).parents[5] / "golden" / "v2" / "dual.safetensors.xz"
SHA256 = "6ea74acbe2a6ecbca6fe8e33a62273194eea62f357259dcb34c7069638b439f6"
INNER_SHA256 = "92f7e2f7962e6d1c72204091aae8ca67fed530b72823b65834895887a9a32c1e"
"""Of the float32 values without the scales of 512, as the peer reads its own file."""


def test_the_archive_is_frozen() -> None:
    assert hashlib.sha256(ARCHIVE.read_bytes()).hexdigest() == SHA256


@pytest.mark.parametrize("path", ["reference", "fast"])
def test_equals_msmodelslim(path: str) -> None:
    vectors = load(lzma.decompress(ARCHIVE.read_bytes()))
    weight = vectors["input/normal_bf16"]
    if path == "reference":
        made = dict(
            zip(
                ("codes", "scales", "level0"),
                dual.quantize(weight, MXFP4_DUAL.resolve("msmodelslim")),
                strict=True,
            )
        )
    else:
        made = dict(quantize(weight, format="mxfp4-dual", profile="msmodelslim").parts)
    for name, part in made.items():
        assert torch.equal(part, vectors[f"msmodelslim/normal_bf16/{name}"]), name
    inner = MXFP4_DUAL.dequantize({**made, "level0": torch.ones_like(made["level0"])}, torch.float32)
    assert hashlib.sha256(inner.numpy().tobytes()).hexdigest() == INNER_SHA256
