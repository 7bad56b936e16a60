"""Bytes of every profile against the bytes that the peer produced."""

import hashlib
import lzma
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from mxfp4_core.arithmetic import reference
from mxfp4_core.arithmetic.codec import unpack
from mxfp4_core.arithmetic.profiles import profiles
from mxfp4_core.arithmetic.quantize import quantize

ARCHIVE = Path(__file__).parents[4] / "golden" / "v1" / "peers.safetensors.xz"
SHA256 = "ff327a255596ab81e0ddc7a4e17eb014fff932ad33de31630aa807e72c7802d3"

# Documented in docs/scale-rules.md: float32 maxima whose log2 rounds to 128, where the peer's own arithmetic overflows.
OVERFLOWS_IN_FP32 = {"gguf", "auto-round"}


@cache
def vectors() -> dict[str, torch.Tensor]:
    return load(lzma.decompress(ARCHIVE.read_bytes()))


def cases() -> list[tuple[str, str]]:
    return sorted(tuple(key.split("/")[:2]) for key in vectors() if key.endswith("/codes"))


def test_the_archive_is_frozen() -> None:
    assert hashlib.sha256(ARCHIVE.read_bytes()).hexdigest() == SHA256


def test_every_profile_has_vectors() -> None:
    assert {name for name, _ in cases()} == set(profiles())


@pytest.mark.parametrize("path", ["reference", "fast"])
@pytest.mark.parametrize(("name", "group"), cases())
def test_equals_the_peer(name: str, group: str, path: str) -> None:
    weight = vectors()[f"input/{group}"]
    if path == "reference":
        codes, scales = reference.quantize(weight, profiles()[name])
    else:
        quantised = quantize(weight, profile=name, nonfinite="nan")
        codes, scales = quantised.codes, quantised.scales
    blocks = weight.double().unflatten(-1, (-1, 32))
    compared = torch.isfinite(blocks).all(-1)
    if (valid := vectors().get(f"{name}/{group}/valid")) is not None:
        compared &= valid != 0
    same_scale = scales == vectors()[f"{name}/{group}/scales"]
    same_codes = (unpack(codes) == unpack(vectors()[f"{name}/{group}/codes"])).unflatten(-1, (-1, 32)).all(-1)
    differs = compared & ~(same_scale & same_codes)
    if name in OVERFLOWS_IN_FP32 and group == "adv_f32":
        top = compared & (blocks.abs().amax(-1) == torch.finfo(torch.float32).max)
        assert top.sum() == 3
        assert torch.equal(differs, top)
    else:
        assert not differs.any(), f"{int(differs.sum())} of {int(compared.sum())} blocks differ"
    assert compared.sum() > 0
