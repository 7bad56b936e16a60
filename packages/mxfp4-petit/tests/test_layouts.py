"""Layouts: the vendor's golden bytes, the vendor's own code, and what is refused."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from mxfp4_core import MxTensor, dequantize, quantize
from mxfp4_core.errors import FormatError, ShapeError
from mxfp4_core.testing.samples import random_weight, without_minus_zero
from mxfp4_petit import MoeLayout, PetitLayout, PortableLayout
from mxfp4_petit.emulated import mul_mxfp4_a16, repack_mxfp4

GOLDEN = Path(__file__).parent / "data"


def arrays(name: str) -> dict[str, torch.Tensor]:
    """Read golden arrays; torch has no arithmetic for unsigned words, so their bits become signed ones."""
    signed = {"uint16": "int16", "uint32": "int32"}
    with np.load(GOLDEN / name) as stored:
        return {key: torch.from_numpy(v.view(signed.get(v.dtype.name, v.dtype))) for key, v in stored.items()}


def weight(codes: torch.Tensor, scales: torch.Tensor) -> MxTensor:
    return MxTensor(codes, scales, torch.Size((*codes.shape[:-1], 2 * codes.shape[-1])))


def test_dense_operands_are_those_of_the_vendor() -> None:
    golden = arrays("petit005_gfx942_dense_m16n64k256.npz")
    packed = PetitLayout().pack(weight(golden["codes"], golden["scales"]))
    assert torch.equal(packed["codes"], golden["repacked"])
    assert torch.equal(packed["scales"], golden["scales_processed"])
    back = PetitLayout().unpack(packed, (64, 256))
    assert torch.equal(back.codes, without_minus_zero(golden["codes"]))
    assert torch.equal(back.scales, golden["scales"])


def test_every_scale_byte_only_changes_its_place() -> None:
    golden = arrays("petit005_gfx942_dense_m16n64k256.npz")
    zeros = torch.zeros_like(golden["codes"])
    bytes_ = golden["scales_allbytes"].clamp(max=247)
    moved = PetitLayout().pack(weight(zeros, bytes_))["scales"]
    assert torch.equal(moved, golden["scales_allbytes_processed"].clamp(max=247))


def test_the_machine_code_rounds_the_exact_sum_once() -> None:
    golden = arrays("petit005_gfx942_dense_m16n64k256.npz")
    x = golden["a_bf16"].view(torch.bfloat16)
    values = dequantize(golden["codes"], golden["scales"], torch.float64)
    exact = (x.double() @ values.T).to(torch.bfloat16)
    for mode in ("out_bf16", "out_bf16_highprecision"):
        assert torch.equal(exact, golden[mode].view(torch.bfloat16)), mode
    packed = PetitLayout().pack(weight(golden["codes"], golden["scales"]))
    ours = mul_mxfp4_a16(x, *(packed[name] for name in ("codes", "scales", "global_scale")), 16, 64, 256, -1)
    assert torch.equal(ours, exact), "the stand-in computes something else than the chip"


@pytest.mark.parametrize(
    "mode", ["gfx90a_hp", "gfx90a_hp_ftz", "gfx942_hp", "gfx942_nohp", "gfx942_nohp_ftz"]
)
def test_scale_bytes_that_are_taken_are_exact_in_each_mode(mode: str) -> None:
    golden = arrays("petit005_scale_code_sweep.npz")
    codes = torch.arange(16).repeat(256, 1)
    value = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], dtype=torch.float64)
    signed = torch.where(codes < 8, 1.0, -1.0) * value[codes & 7]
    exact = torch.ldexp(signed, torch.arange(256)[:, None] - 127)
    for power, name in ((0, "a1"), (-40, "a2^-40"), (40, "a2^40")):
        want = torch.ldexp(exact, torch.tensor(power))
        got = golden[f"{mode}__out_{name}"].view(torch.bfloat16).double()
        # What leaves the normal range of float32 in the accumulator is flushed or infinite there, as the format allows.
        inside = (want == 0) | ((want.abs() >= 2.0**-126) & (want.abs() < 2.0**127))
        taken = torch.zeros(256, 1, dtype=torch.bool)
        taken[17:248] = True
        chosen = inside & taken
        assert torch.equal(got[chosen].abs(), want[chosen].abs()), name
        assert torch.equal(got[chosen].sign(), want[chosen].sign()), name


def test_the_stand_in_repacks_as_the_layout_does_and_leaves_a_tail_unwritten() -> None:
    drawn = random_weight(64, 512)
    words = drawn.codes.view(torch.int32)
    assert torch.equal(repack_mxfp4(words, 64, 512), PetitLayout().pack(drawn)["codes"])
    assert (repack_mxfp4(words[:48].contiguous(), 48, 512).view(-1) == -1).any()
    with pytest.raises(RuntimeError, match="kErrorProblemShape"):
        repack_mxfp4(words, 64, 500)


@pytest.mark.parametrize("kind", ["native", "petit"])
def test_layouts_of_experts_are_those_of_the_vendor(kind: str) -> None:
    golden = arrays("petit005_moe_layouts_n256k256.npz")
    layout = MoeLayout("native" if kind == "native" else "petit")
    packed = layout.pack(weight(golden["codes"], golden["scales"]))
    assert torch.equal(packed["codes"], golden[f"{kind}_weight"])
    assert torch.equal(packed["scales"], golden[f"{kind}_scale"])
    back = layout.unpack(packed, (256, 256))
    kept = golden["codes"] if kind == "native" else without_minus_zero(golden["codes"])
    assert torch.equal(back.codes, kept) and torch.equal(back.scales, golden["scales"])
    stacked = layout.pack(random_weight(2, 256, 512))
    assert stacked["codes"].shape == (2, 256, 256)
    with pytest.raises(ShapeError):
        layout.pack(random_weight(256, 384))


@pytest.mark.parametrize(
    ("byte", "codes", "taken"),
    [
        (16, 0x88, True),
        (0, 0x00, True),
        (16, 0x01, False),
        (247, 0x77, True),
        (248, 0x00, False),
        (255, 0, False),
    ],
)
def test_blocks_of_zeros_may_have_small_scales(byte: int, codes: int, taken: bool) -> None:
    drawn = random_weight(32, 256)
    drawn.scales[5, 3] = byte
    drawn.codes[5, 48:64] = codes
    if taken:
        assert torch.equal(PetitLayout().unpack(PetitLayout().pack(drawn), (32, 256)).scales, drawn.scales)
        return
    with pytest.raises(FormatError, match=f"scale byte {byte} in row 5, block 3") as raised:
        PetitLayout().pack(drawn)
    assert '"provider": "triton"' in str(raised.value)


def test_portable_words_hold_a_column_of_each_block() -> None:
    drawn = random_weight(1, 512)
    words = PortableLayout().pack(drawn)["codes"].view(2, 32)
    codes = torch.stack((drawn.codes & 15, drawn.codes >> 4), -1).view(2, 8, 32).int()
    for i in range(4):
        for half in range(2):
            part = (words >> 16 * half) & 0xFFFF
            moved = (part << 3 * i) & 0xFFFF
            magnitude = (moved >> 6) & 7 if i < 3 else (part >> 11) & 4 | (part >> 10) & 3
            sign = (moved >> 15) & 1 if i < 3 else (part >> 14) & 1
            assert torch.equal(sign << 3 | magnitude, codes[:, i + 4 * half]), (i, half)


@pytest.mark.parametrize("pairs", [False, True], ids=["k256", "pairs"])
def test_portable_words_hold_whole_codes_of_mxfp8(pairs: bool) -> None:
    drawn = quantize(torch.randn(3, 512), format="mxfp8")
    layout = PortableLayout(pairs, wide=True)
    packed = layout.pack(drawn)
    blocks = drawn.codes.view(torch.uint8).view(3, 16, 32).int()
    words = packed["codes"].view(3, -1, 2, 16 if pairs else 32)  # tiles, words of two blocks
    for tile, group, block, half in itertools.product(range(4 if pairs else 2), range(2), range(2), range(2)):
        code = (words[:, tile, group] >> (16 * half + 8 * block)) & 0xFF
        if pairs:
            want = blocks[:, 4 * tile + 2 * group + block, half::2]
        else:
            want = blocks[:, 8 * tile + 2 * group + block + 4 * half]
        assert torch.equal(code, want), (tile, group, block, half)
    back = layout.unpack({name: tensor.clone() for name, tensor in packed.items()}, (3, 512))
    assert torch.equal(back.codes.view(torch.uint8), drawn.codes.view(torch.uint8))
    address = drawn.codes.data_ptr()
    in_place = layout.pack_in_place(drawn)
    assert in_place["codes"].data_ptr() == address and torch.equal(in_place["codes"], packed["codes"])


@pytest.mark.parametrize(
    ("byte", "code", "name"),
    [
        (10, 0x01, "scales"),
        (134, 0x7E, "scales"),
        (9, 0x01, "extreme_scales"),
        (9, 0x80, "scales"),
        (135, 0x00, "extreme_scales"),
        (127, 0xFF, "extreme_scales"),
        (255, 0x00, "extreme_scales"),
    ],
)
def test_scales_of_mxfp8_that_cannot_be_folded_and_codes_that_are_nan_have_another_name(
    byte: int, code: int, name: str
) -> None:
    drawn = quantize(torch.randn(2, 256), format="mxfp8")
    drawn.scales[1, 3] = byte
    drawn.codes.view(torch.uint8)[1, 96:128] = code
    assert name in PortableLayout(wide=True).pack(drawn)


def test_portable_packs_in_place_and_copies_scales_at_odd_addresses_only() -> None:
    drawn = random_weight(2, 8, 512)
    want = PortableLayout().pack(drawn)
    address = drawn.codes.data_ptr()
    packed = PortableLayout().pack_in_place(drawn)
    assert packed["codes"].data_ptr() == address
    assert all(torch.equal(packed[name], tensor) for name, tensor in want.items())
    assert packed["scales"].data_ptr() == drawn.scales.data_ptr()
    odd = (
        torch.empty(1 + drawn.scales.numel(), dtype=torch.uint8)[1:].view_as(drawn.scales).copy_(drawn.scales)
    )
    again = PortableLayout().pack(MxTensor(drawn.codes, odd, drawn.shape))
    assert torch.equal(again["scales"], want["scales"])
