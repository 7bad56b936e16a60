"""The formats against their judges, by every path, and what they refuse."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mxfp4_core import MxTensor, dequantize, quantize, quantize_into
from mxfp4_core.arithmetic import MXFP4_DUAL, MXFP8, reference
from mxfp4_core.arithmetic.codec import unpack
from mxfp4_core.arithmetic.fast import dual as dual_way
from mxfp4_core.arithmetic.fast import mxfp8 as mxfp8_way
from mxfp4_core.arithmetic.fast import single
from mxfp4_core.arithmetic.formats import registry
from mxfp4_core.arithmetic.reference import dual, mxfp8
from mxfp4_core.errors import ConfigError, FormatError, NonFiniteError, ShapeError
from mxfp4_core.testing.hard_weights import hard_weights

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
DUAL = [*MXFP4_DUAL.profiles[:4], "floor/even", "even/away", "rceil/zero"]
JUDGES = {"mxfp4": reference, "mxfp4-dual": dual, "mxfp8": mxfp8}
CASES = [("mxfp4-dual", name) for name in DUAL] + [("mxfp8", name) for name in MXFP8.profiles]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint8) if tensor.dtype is torch.float8_e4m3fn else tensor


def judged(weight: torch.Tensor, form: str, profile: str) -> tuple[torch.Tensor, ...]:
    made: tuple[torch.Tensor, ...] = JUDGES[form].quantize(weight, registry.get(form).resolve(profile))
    return made


def check(weight: torch.Tensor, form: str, profile: str) -> None:
    made = quantize(weight, format=form, profile=profile, nonfinite="nan")
    for part, want in zip(made.parts, judged(weight, form, profile), strict=True):
        assert torch.equal(bits(made.parts[part]), bits(want)), part


@pytest.fixture(params=["kernels", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        for module in (single, dual_way, mxfp8_way):
            monkeypatch.setattr(module, "cpu_kernels", lambda name="": None)
    return str(request.param)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("form", "profile"), CASES)
def test_hard_weights_equal_the_judge(form: str, profile: str, dtype: torch.dtype) -> None:
    check(hard_weights(dtype), form, profile)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(CASES),
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, (1 << 32) - 1), min_size=32, max_size=32),
    st.integers(-3, 3),
)
def test_any_bits_equal_the_judge(
    case: tuple[str, str], dtype: torch.dtype, words: list[int], shift: int
) -> None:
    values = torch.tensor([word - (1 << 31) for word in words], dtype=torch.int32).view(torch.float32)
    rest = torch.ones(512 - 32) * 2.0**shift
    check(torch.cat((values, rest)).to(dtype)[None], *case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("profile", MXFP8.profiles)
def test_every_16_bit_value_under_every_neighbour(profile: str, dtype: torch.dtype) -> None:
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype).view(-1, 32)
    check(every, "mxfp8", profile)
    finite = torch.where(torch.isfinite(every), every, 0)
    finite[:, 0] = 1.0
    check(finite, "mxfp8", profile)


def test_elements_of_mxfp8_are_those_that_torch_rounds_to() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1 << 16, generator=generator).double().abs() * 40
    every = torch.arange(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    ties = ((every[1:] + every[:-1]) / 2).float()
    near = (torch.nextafter(ties, ties * end) for end in (0.0, 2.0))
    x = torch.cat((x.float(), every.float(), ties, *near)).double()
    x = x[x <= 448]
    assert torch.equal(mxfp8.rounded(x), x.float().to(torch.float8_e4m3fn).double())
    assert mxfp8.rounded(torch.tensor([449.0, 480, 1e30], dtype=torch.float64)).tolist() == [448.0] * 3


def test_the_documented_vector_of_the_op() -> None:
    codes, scales, level0 = dual.quantize(
        torch.full((1, 512), 8.0, dtype=torch.bfloat16), MXFP4_DUAL.resolve()
    )
    assert level0.item() == torch.tensor(8 / 6, dtype=torch.float32)
    assert scales.unique().tolist() == [127]
    assert codes.unique().tolist() == [0x77]


@pytest.mark.parametrize(
    ("profile", "codes"),
    [("ascend", [2, 4, 10, 12, 0]), ("ascend-round", [2, 5, 10, 13, 1]), ("ascend-floor", [1, 4, 10, 13, 0])],
)
def test_round_modes(profile: str, codes: list[int]) -> None:
    weight = torch.zeros(1, 512, dtype=torch.bfloat16)
    weight[0, :6] = torch.tensor([0.75, 2.5, -0.75, -2.5, 0.25, 6.0])
    made = quantize(weight, format="mxfp4-dual", profile=profile)
    assert made.level0.item() == 1
    assert unpack(made.codes)[0, :6].tolist() == [*codes, 7]


def test_a_value_that_is_not_finite_costs_its_block_and_no_other() -> None:
    weight = torch.randn(1, 1024, generator=torch.Generator().manual_seed(3))
    clean = quantize(weight, format="mxfp4-dual")
    weight[0, 600] = torch.inf
    made = quantize(weight, format="mxfp4-dual", nonfinite="nan")
    assert made.scales[0, 18] == 255
    assert torch.equal(made.codes[0, 304:].any(), torch.tensor(True))
    other = torch.arange(32) != 18
    assert torch.equal(made.level0, clean.level0)
    assert torch.equal(made.scales[0, other], clean.scales[0, other])
    with pytest.raises(NonFiniteError, match=r"index \[0, 600\]"):
        quantize(weight, format="mxfp4-dual")


@pytest.mark.parametrize("form", registry.formats())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_values_are_those_of_the_judge(form: str, dtype: torch.dtype) -> None:
    made = quantize(hard_weights(torch.float32), format=form, nonfinite="nan")
    judge = JUDGES[form.removesuffix("+input_scale")]
    exact = judge.dequantize(*(made.parts[part.name] for part in made.format.weight_parts))
    want = exact if dtype is torch.float64 else exact.to(torch.float32).to(dtype)
    assert torch.equal(dequantize(made, dtype=dtype).nan_to_num(7), want.nan_to_num(7))
    x = torch.randn(3, 1000, generator=torch.Generator().manual_seed(4))
    finite = ~exact.isnan().any(1)
    product = judge.matmul(x, *(made.parts[part.name] for part in made.format.weight_parts))
    assert torch.equal(product[:, finite], x.double() @ exact[finite, :1000].T)


@pytest.mark.parametrize("form", registry.formats())
def test_padding_is_exact_and_slices_are_written_in_place(form: str) -> None:
    fmt = registry.get(form)
    weight = torch.randn(6, 2 * fmt.block - 3, generator=torch.Generator().manual_seed(5))
    with pytest.raises(ShapeError, match=f"blocks of {fmt.block}"):
        quantize(weight, format=form)
    made = quantize(weight, format=form, tail="pad")
    whole = torch.nn.functional.pad(weight, (0, 3))
    assert torch.equal(
        made.dequantize(torch.float32), quantize(whole, format=form).dequantize(torch.float32)[:, :-3]
    )
    assert bool((made.format.dequantize(made.parts, torch.float32)[:, -3:] == 0).all())
    larger = fmt.empty((12, 4 * fmt.block))
    slices = {
        part.name: larger[part.name][::2, part.shape((1,), 2 * fmt.block)[-1] :] for part in fmt.weight_parts
    }
    quantize_into(
        whole, {name: t[:, : made.parts[name].shape[-1]] for name, t in slices.items()}, format=form
    )
    for name, part in slices.items():
        assert torch.equal(bits(part[:, : made.parts[name].shape[-1]]), bits(made.parts[name]))


@pytest.mark.parametrize("form", registry.formats())
def test_there_is_one_object_a_format(form: str) -> None:
    fmt = registry.get(form)
    assert pickle.loads(pickle.dumps(fmt)) is fmt
    made = quantize(torch.ones(2, fmt.block), format=form)
    again = pickle.loads(pickle.dumps(made))
    assert again.format is fmt
    assert all(torch.equal(bits(again.parts[name]), bits(part)) for name, part in made.parts.items())
    assert made.nbytes == fmt.nbytes(made.shape)


def test_the_input_multiplier_changes_nothing_until_somebody_sets_it() -> None:
    made = quantize(torch.ones(2, 64), format="mxfp4+input_scale")
    assert made.input_scale.dtype is torch.float32
    assert made.input_scale.tolist() == [1.0] * 64
    assert torch.equal(made.codes, quantize(torch.ones(2, 64)).codes)


@pytest.mark.parametrize(
    ("form", "profile"),
    [
        ("mxfp8", "quark"),
        ("mxfp8", "even/even"),
        ("mxfp4-dual", "quark"),
        ("mxfp8+input_scale", "floor/away"),
    ],
)
def test_unsuitable_profiles_are_refused_with_those_that_suit(form: str, profile: str) -> None:
    with pytest.raises(ConfigError, match="does not make the format") as caught:
        quantize(torch.ones(2, 512), format=form, profile=profile)
    assert all(name in caught.value.rule for name in registry.get(form).profiles)


def test_profiles_of_two_levels_make_two_levels_only() -> None:
    with pytest.raises(ConfigError, match="no profile"):
        quantize(torch.ones(2, 512), profile="ascend")


@pytest.mark.parametrize("form", registry.formats())
def test_every_listed_profile_resolves(form: str) -> None:
    fmt = registry.get(form)
    assert [fmt.resolve(name).name for name in fmt.profiles] == list(fmt.profiles)
    assert fmt.resolve().name == fmt.profiles[0]


def test_torch_dtypes_are_taken_without_a_copy() -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(6))
    made = quantize(weight)
    codes, scales = made.as_torch()
    assert codes.dtype is torch.float4_e2m1fn_x2
    assert scales.dtype is torch.float8_e8m0fnu
    assert (codes.data_ptr(), scales.data_ptr()) == (made.codes.data_ptr(), made.scales.data_ptr())
    again = MxTensor(codes, scales, made.shape)
    assert (again.codes.dtype, again.scales.dtype) == (torch.uint8, torch.uint8)
    assert again.codes.data_ptr() == made.codes.data_ptr()
    assert torch.equal(dequantize(codes, scales), made.dequantize())
    target = MxTensor(torch.zeros_like(made.codes), torch.zeros_like(made.scales), made.shape)
    quantize_into(weight, *target.as_torch())
    assert torch.equal(target.codes, made.codes)
    assert torch.equal(target.scales, made.scales)
    eight = quantize(weight, format="mxfp8").as_torch()
    assert (eight.codes.dtype, eight.scales.dtype) == (torch.float8_e4m3fn, torch.float8_e8m0fnu)


def test_int8_codes_are_not_taken() -> None:
    made = quantize(torch.ones(2, 64))
    with pytest.raises(FormatError, match="belong together"):
        MxTensor(made.codes.view(torch.int8), made.scales, made.shape)
    with pytest.raises(FormatError, match="belong together"):
        dequantize(made.codes.view(torch.int8), made.scales)
    with pytest.raises(FormatError, match="codes of weight"):
        quantize_into(torch.ones(2, 64), made.codes.view(torch.int8), made.scales)


def test_a_tensor_says_what_it_stands_for() -> None:
    made = quantize(torch.ones(3, 70), tail="pad")
    assert made.dtype is made.dequantize().dtype is torch.bfloat16
    assert made.numel() == 210
    assert made.to("meta", non_blocking=True).device.type == "meta"
    assert dequantize(made).shape == (3, 70)
    out = torch.empty(3, 70, dtype=torch.float32)
    assert dequantize(made, dtype=torch.float32, out=out) is out
    assert torch.equal(out, made.dequantize(torch.float32))


def test_parts_that_are_not_there() -> None:
    with pytest.raises(FormatError, match="no tensor for level0"):
        quantize_into(
            torch.ones(2, 512), torch.empty(2, 256).byte(), torch.empty(2, 16).byte(), format="mxfp4-dual"
        )
    with pytest.raises(FormatError, match="without scales"):
        dequantize(torch.zeros(2, 16, dtype=torch.uint8))
