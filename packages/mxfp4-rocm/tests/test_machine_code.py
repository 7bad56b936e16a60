"""What AMD's machine code computed: our layouts give its operands, and the reference its results, bit for bit.

Each test names the roundings that do it. ``golden/v3/README.md`` says how the vectors were made.
"""

from __future__ import annotations

import hashlib

import pytest
import torch
from rocm_emulated import GFX950
from rocm_vectors import ARCHIVE, SHA256, equal_bits, sha256, values, vectors

from mxfp4_core import quantize
from mxfp4_core.arithmetic import MxTensor
from mxfp4_core.backend import Problem, calls
from mxfp4_core.errors import FormatError, ShapeError
from mxfp4_rocm import backend, shuffle_weight, swizzle_scales
from mxfp4_rocm.packed import ExpertsLayout, ShuffledLayout
from mxfp4_rocm.rules import SCALED, WIDENED

DENSE = ["dense-plain", "dense-wide", "dense-byte255", "dense-neg0"]


def products(prefix: str) -> torch.Tensor:
    """Return ``a @ b.T`` in float64."""
    t = vectors(prefix)
    return values(t["a"], t["sa"]) @ values(t["b"], t["sb"]).T


def test_the_archive_is_frozen() -> None:
    assert hashlib.sha256(ARCHIVE.read_bytes()).hexdigest() == SHA256


def test_the_quantizer_has_the_profile_of_its_version() -> None:
    t = vectors("quantizer")
    made = quantize(t["x_bf16"].view(torch.bfloat16), profile="aiter-triton-0.1.7")
    assert torch.equal(made.codes, t["codes"]) and torch.equal(made.scales, t["scales"])


@pytest.mark.parametrize("prefix", [*DENSE, "dense-byte0", "splitk", "triton-preshuffled"])
def test_the_layouts_give_the_operands_of_the_dense_kernels(prefix: str) -> None:
    t = vectors(prefix)
    assert torch.equal(sha256(shuffle_weight(t["b"])), t["b_taken"])
    assert torch.equal(sha256(swizzle_scales(t["sb"])[: t["sb"].shape[0]]), t["sb_taken"])
    assert torch.equal(sha256(swizzle_scales(t["sa"])), t["sa_taken"])


@pytest.mark.parametrize("prefix", [*DENSE, "triton-raw", "triton-raw-gfx942", "triton-preshuffled"])
def test_dense_products_are_summed_exactly_and_rounded_once(prefix: str) -> None:
    assert equal_bits(products(prefix).to(torch.bfloat16), vectors(prefix)["out"])


def test_scale_byte_0_is_a_power_of_two_like_the_others() -> None:
    """Sums that vanish in float32 are zeros of either sign; all others are rounded once."""
    want, out = products("dense-byte0"), vectors("dense-byte0")["out"]
    seen = want.abs() >= 2.0**-149
    assert bool((vectors("dense-byte0")["sb"] == 0).any()) and bool((vectors("dense-byte0")["sa"] == 0).any())
    assert equal_bits(want.to(torch.bfloat16)[seen], out[seen])
    assert not bool(out.view(torch.bfloat16)[~seen].any())
    assert SCALED.scale_byte_0 == "2^-127"


def test_scale_byte_255_makes_its_row_or_column_nan() -> None:
    t = vectors("dense-byte255")
    nan = (t["sa"] == 255).any(1)[:, None] | (t["sb"] == 255).any(1)[None]
    assert bool(nan.any()) and torch.equal(t["out"].view(torch.bfloat16).isnan(), nan)
    assert SCALED.scale_byte_255 == "nan"


def test_a_sum_in_two_parts_is_rounded_three_times() -> None:
    """Each half of K to bfloat16, and their sum in bfloat16; rounding once gives something else."""
    t = vectors("splitk")
    a, b = values(t["a"], t["sa"]), values(t["b"], t["sb"])
    half = a.shape[1] // 2
    parts = [(a[:, part] @ b[:, part].T).to(torch.bfloat16) for part in (slice(half), slice(half, None))]
    assert equal_bits(parts[0] + parts[1], t["out"])
    assert not equal_bits((a @ b.T).to(torch.bfloat16), t["out"])


def test_columns_that_the_kernels_get_wrong_are_padded_exactly() -> None:
    """K = 384 is wrong whatever AITER's helpers pad with; our layout refuses it, and the core pads it to 512."""
    right = products("k384-plain").to(torch.bfloat16)
    assert equal_bits(right, vectors("k384-pad0")["out"])
    for wrong in ("k384-plain", "k384-padff"):
        assert not equal_bits(right, vectors(wrong)["out"])
    t = vectors("k384-plain")
    weight = MxTensor(t["b"].repeat(8, 1), t["sb"].repeat(8, 1), torch.Size((256, 384)))
    with pytest.raises(ShapeError, match="256"):
        ShuffledLayout().pack(weight)
    problem = Problem(op="linear", n=256, k=384, activation="mxfp4", device=GFX950)
    packed = calls.pack(backend, problem, weight)
    assert packed.shape == (256, 512) and packed.layout == "aiter-16x16"
    assert packed.tensors["scales"].shape == (256, 16)
    again = calls.unpack(backend, problem, packed)
    assert torch.equal(again.codes, weight.codes) and torch.equal(again.scales, weight.scales)


def test_the_layout_gives_the_operands_of_the_fused_moe() -> None:
    t = vectors("fused-moe")
    for codes, scales in (("w1", "s1"), ("w2", "s2")):
        shape = torch.Size((*t[codes].shape[:2], 2 * t[codes].shape[2]))
        packed = ExpertsLayout().pack(MxTensor(t[codes], t[scales], shape))
        assert torch.equal(sha256(packed["codes"]), t[f"{codes}_taken"])
        assert torch.equal(sha256(packed["scales"]), t[f"{scales}_taken"])


def test_the_fused_moe_quantises_hidden_states_by_a_named_rule() -> None:
    """h in float32; quantised by aiter-fused-moe; the sum in float32 times the weight of the token, rounded once."""
    t = vectors("fused-moe")
    x = values(t["x_codes"], t["x_scale"])
    first, second = values(t["w1"], t["s1"]), values(t["w2"], t["s2"])
    for token, expert in enumerate(t["topk_ids"][:, 0].tolist()):
        gate, up = (x[token] @ first[expert].T).float().chunk(2)
        hidden = quantize((gate * torch.sigmoid(gate) * up)[None], profile="aiter-fused-moe")
        result = (values(hidden.codes, hidden.scales) @ second[expert].T)[0].float() * t["topk_w"][token, 0]
        assert equal_bits(result.to(torch.bfloat16), t["out"][token]), f"token {token}"


def test_the_rule_of_the_hidden_states_is_no_other() -> None:
    t = vectors("fused-moe")
    x, first = values(t["x_codes"], t["x_scale"]), values(t["w1"], t["s1"])
    gate, up = (x @ first[0].T).float().chunk(2, 1)
    hidden = (gate * torch.sigmoid(gate) * up).contiguous()
    codes = {
        name: quantize(hidden, profile=name).codes for name in ("aiter-fused-moe", "even/even", "floor/even")
    }
    assert not torch.equal(codes["aiter-fused-moe"], codes["even/even"])
    assert not torch.equal(codes["aiter-fused-moe"], codes["floor/even"])


def test_byte_255_in_the_fused_moe_is_refused() -> None:
    """It computes finite numbers with it, so that nobody would notice."""
    t = vectors("fused-moe")
    scales = t["s1"].clone()
    scales[1, 3, 2] = 255
    with pytest.raises(FormatError, match="255"):
        ExpertsLayout().pack(MxTensor(t["w1"], scales, torch.Size((2, 512, 256))))


@pytest.mark.parametrize("prefix", ["triton-experts-w4a4", "triton-experts-w4a16"])
def test_the_triton_kernel_for_experts(prefix: str) -> None:
    """Each slot's sum in float32, times the weight of the slot, rounded once; from bytes 118 to 130."""
    t = vectors(prefix)
    a = values(t["a"], t["sa"]) if "sa" in t else t["a"].view(torch.bfloat16).double()
    weights = values(t["b"].flatten(0, 1), t["sb"].flatten(0, 1)).unflatten(0, t["b"].shape[:2])
    slots = torch.arange(t["topk_ids"].numel())
    sums = torch.einsum("sk,snk->sn", a[slots // t["topk_ids"].shape[1]], weights[t["topk_ids"].reshape(-1)])
    assert equal_bits((sums.float() * t["topk_w"].reshape(-1, 1)).to(torch.bfloat16), t["out"])


def test_widened_weights_end_below_the_last_scales() -> None:
    """The kernel that widens is right for bytes 1 to 252; with 253 the largest code leaves bfloat16."""
    assert int(vectors("triton-raw-gfx942")["sb"].max()) == WIDENED.scale_bytes[1] == 252
    assert torch.tensor(6.0 * 2.0**125).to(torch.bfloat16).isfinite()
    assert torch.tensor(6.0, dtype=torch.float64).mul(2.0**126).to(torch.bfloat16).isinf()


@pytest.mark.parametrize(
    "case", ["scale_boundary_bf16", "value_ties_bf16", "outlier_bf16_16x512", "zeros_subnormals_huge_fp32"]
)
def test_the_hip_quantizer_of_the_wheel_has_a_name(case: str) -> None:
    """AITER's torch reference knows no floor of the maximum, so blocks below it are left out."""
    t = vectors(f"hip-reference-0.1.7/{case}")
    bits = t["x_bits"]
    x = bits.view(torch.bfloat16 if bits.dtype == torch.int16 else torch.float32)
    amax = x.float().unflatten(-1, (-1, 32)).abs().amax(-1)
    there = (amax >= 1e-10) & (amax < 1.5 * 2.0**127)
    made = quantize(x, profile="aiter-hip-0.1.7")
    assert torch.equal(made.scales[there], t["torchref_w017_s"][there])
    codes, want = (each.unflatten(-1, (-1, 16))[there] for each in (made.codes, t["torchref_w017_q"]))
    assert torch.equal(codes, want)
