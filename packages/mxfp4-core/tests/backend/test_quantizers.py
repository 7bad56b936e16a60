"""Who quantises on a device, and packing over the canonical bytes; a made-up backend stands for one with kernels."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from mxfp4_core import quantize, quantize_into
from mxfp4_core.arithmetic.fast.threads import quick_turns
from mxfp4_core.arithmetic.formats.base import Format
from mxfp4_core.arithmetic.formats.mxfp4 import MXFP4
from mxfp4_core.arithmetic.formats.registry import get
from mxfp4_core.arithmetic.tensor import MxTensor
from mxfp4_core.backend import calls
from mxfp4_core.backend import quantizers as device_quantizer
from mxfp4_core.backend.answers import No, Numerics, Verdict, Yes
from mxfp4_core.backend.problem import Matrix, Problem
from mxfp4_core.backend.protocol import Backend, Layout
from mxfp4_core.backend.quantizers import CORE, DeviceQuantizer, DeviceQuantizers
from mxfp4_core.backend.reference.backend import CanonicalLayout
from mxfp4_core.backend.reference.backend import backend as reference
from mxfp4_core.errors import NonFiniteError
from mxfp4_core.loader import LoadSession
from mxfp4_core.modules import prepare
from mxfp4_core.modules.layers import Mxfp4Linear
from mxfp4_core.testing.samples import random_weight, random_x


@dataclass(frozen=True)
class Flipped:
    """Every byte inverted, in place where it may."""

    id = "flipped"
    alignment = CanonicalLayout.alignment

    def pack(self, weight: MxTensor, bias: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        return {"codes": ~weight.codes, "scales": ~weight.scales}

    def pack_in_place(self, weight: MxTensor, bias: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        return {"codes": weight.codes.bitwise_not_(), "scales": weight.scales.bitwise_not_()}

    def unpack(self, tensors: Mapping[str, torch.Tensor], shape: tuple[int, ...]) -> MxTensor:
        return MxTensor(~tensors["codes"], ~tensors["scales"], torch.Size(shape))


class Device(Backend):
    name = "flipper"
    description = "quantises as the core does, and stores inverted bytes"
    features = frozenset({"linear", "quantize", "dtype:bfloat16", "dtype:float32"})
    numerics = Numerics(profiles=frozenset({"even/even", "vllm"}))
    automatic_on = frozenset[str]()

    def supports(self, problem: Problem) -> Verdict:
        return (
            Yes()
            if problem.dtype == "bfloat16" or problem.op == "linear"
            else No("not that dtype", "cast it")
        )

    def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
        return Flipped()

    def linear(self, x: torch.Tensor, weight: calls.Packed, problem: Problem) -> torch.Tensor:
        return x @ Flipped().unpack(weight.tensors, weight.shape).dequantize(x.dtype).T

    def quantize(self, weight: torch.Tensor, *, profile: str) -> MxTensor:
        return quantize(weight, profile=profile, nonfinite="nan")


def choose(
    *candidates: Backend,
    profile: str = "even/even",
    dtype: torch.dtype = torch.bfloat16,
    on: str = "cuda:0",
    format: str = "mxfp4",
) -> str:
    return device_quantizer.device_quantizer(candidates, profile, dtype, on, get(format)).name


def test_the_first_that_offers_it_quantises() -> None:
    assert choose(Device()) == "flipper"
    assert choose(reference, Device()) == "flipper", "an emulation has no kernels"
    assert choose(Device(), profile="vllm") == "flipper"
    assert choose(Device(), format="mxfp4+input_scale") == "flipper"


def test_otherwise_the_core_does() -> None:
    assert choose() == choose(reference) == CORE
    assert choose(Device(), on="cpu") == CORE
    assert choose(Device(), profile="floor/even") == CORE
    assert (
        choose(Device(), format="mxfp4-dual")
        == choose(Device(), profile="floor/even", format="mxfp8")
        == CORE
    )
    assert choose(Device(), dtype=torch.float16) == CORE, "a feature it lacks"
    assert choose(Device(), dtype=torch.float32) == CORE, "a verdict"
    assert choose(Device(), profile="quark", dtype=torch.float32) == CORE


def test_the_bytes_and_the_error_are_those_of_the_core() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    want = quantize(weight)
    both = [torch.empty(8, 64, dtype=torch.uint8) for _ in range(2)]
    codes, scales = both[0][:, :32], both[1][:, ::32]  # with gaps
    quantizer = DeviceQuantizer("even/even", Device())
    parts = {"codes": codes, "scales": scales}
    quantizer.into(weight, parts)
    assert torch.equal(codes, want.codes) and torch.equal(scales, want.scales)
    weight[3, 40] = torch.inf
    with pytest.raises(NonFiniteError, match=r"inf at index \[3, 40\]"):
        quantizer.into(weight, parts, name="w")
    quantizer.into(weight, parts, nonfinite="nan")
    want = quantize(weight, nonfinite="nan")
    assert torch.equal(codes, want.codes) and torch.equal(scales, want.scales)


def test_a_consumed_weight_is_packed_in_its_own_memory() -> None:
    weight, x = random_weight(64, 128), random_x(3, 128)
    want = weight.codes.clone()
    module = Mxfp4Linear.from_weight(weight)
    module.prepare(Device())
    assert torch.equal(weight.codes, want), "not consumed without being asked"
    y = module(x)
    module = Mxfp4Linear.from_weight(weight).prepare(Device(), consume=True)
    assert torch.equal(weight.codes, ~want)
    assert module.packed_weight_codes.data_ptr() == weight.codes.data_ptr()
    assert "weight" not in dict(module.named_buffers()), "what is there is not canonical any more"
    assert torch.equal(module(x), y)
    assert torch.equal(module.state_dict()["weight"], want)
    with module.unprepared():
        assert torch.equal(module.weight, want)
    assert torch.equal(module(x), y)


def test_a_weight_that_modules_share_is_not_consumed(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Device()
    answer = SimpleNamespace(backend=backend, fallback=False, reason="", problem=SimpleNamespace(options={}))
    monkeypatch.setattr(prepare, "select_backend", lambda *given, **named: answer)
    weight, own, x = random_weight(64, 128), random_weight(64, 128, seed=1), random_x(3, 128)
    want = Mxfp4Linear.from_weight(weight).prepare(backend)(x)
    model = torch.nn.ModuleList(Mxfp4Linear.from_weight(each) for each in (weight, weight, own))
    prepare.prepare_model(model, consume=True)
    assert torch.equal(model[0](x), want) and torch.equal(model[1](x), want)
    assert model[2].packed_weight_codes.data_ptr() == own.codes.data_ptr()


def test_a_layout_that_cannot_packs_into_new_memory() -> None:
    weight = random_weight(64, 128)
    module = Mxfp4Linear.from_weight(weight).prepare(reference, consume=True)
    assert module.canonical("weight").codes is weight.codes


def test_a_session_uses_them() -> None:
    class OnCpu(DeviceQuantizers):
        def of(
            self, profile: str, dtype: torch.dtype, device: torch.device, format: Format = MXFP4
        ) -> DeviceQuantizer:
            return self._found.setdefault(
                (profile, dtype, str(device), format.name), DeviceQuantizer(profile, Device())
            )

    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    session = LoadSession(quantizers=OnCpu())
    target = session.target("w", (64, 96), dtype=torch.bfloat16)
    session.wrap("w", lambda param, loaded: param.data.copy_(loaded))(target.codes, weight)
    assert session.close().quantizer == "flipper"
    want = quantize(weight)
    assert torch.equal(target.codes, want.codes) and torch.equal(target.scales, want.scales)


def test_threads_take_quick_turns_only_while_it_lasts() -> None:
    before = sys.getswitchinterval()
    with quick_turns():
        with quick_turns():
            assert sys.getswitchinterval() < before
        assert sys.getswitchinterval() < before
    assert sys.getswitchinterval() == before
    with pytest.raises(KeyError), quick_turns():
        raise KeyError
    assert sys.getswitchinterval() == before


def test_kernels_are_loaded_ahead_once_for_each_profile(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[tuple[str, str]] = []

    class Noting(Device):
        def quantize(self, weight: torch.Tensor, *, profile: str) -> MxTensor:
            seen.append((profile, str(weight.device)))
            return super().quantize(weight, profile=profile)

    found = DeviceQuantizers({"meta": [Noting()], "cpu": [Noting()]})
    assert found.names == ()
    found.start(["even/even", "vllm", "even/even", "floor/even"], torch.bfloat16)
    chosen = found.of("even/even", torch.bfloat16, torch.device("meta"))
    assert chosen.name == "flipper" and found.of("even/even", torch.bfloat16, torch.device("meta")) is chosen
    # On the meta device the first call fails; that is said and kept for the weights, and nothing else is tried.
    assert ["cannot be loaded ahead" in message for message in caplog.messages] == [True]
    assert seen == [("even/even", "meta")]
    assert found.of("floor/even", torch.bfloat16, torch.device("meta")).name == CORE
    assert found.of("even/even", torch.bfloat16, torch.device("cpu")).name == CORE
    assert found.names == ("flipper", CORE)


def test_each_device_gets_every_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def note(
        candidates: object, profile: str, dtype: torch.dtype, device: str, format: Format
    ) -> DeviceQuantizer:
        asked.append((profile, device))
        return DeviceQuantizer(profile)

    monkeypatch.setattr(device_quantizer, "device_quantizer", note)
    found = DeviceQuantizers({"cuda:0": [Device()], "cuda:1": [Device()]})
    found.start(iter(["even/even", "vllm"]), torch.bfloat16)
    found.of("even/even", torch.bfloat16, torch.device("cpu"))  # waits for the thread
    assert asked[:-1] == [(name, f"cuda:{i}") for i in (0, 1) for name in ("even/even", "vllm")]


class Writer(Device):
    """Writes where it is told, and counts."""

    name = "writer"
    written = 0

    def quantize(self, weight: torch.Tensor, *, profile: str) -> MxTensor:
        raise AssertionError("it writes straight into the result")

    def quantize_into(self, weight: torch.Tensor, parts: Mapping[str, torch.Tensor], *, profile: str) -> None:
        Writer.written = parts["codes"].data_ptr()
        quantize_into(weight, parts, profile=profile, nonfinite="nan")


@pytest.mark.parametrize("backend", [Device(), Writer()])
def test_kernels_write_straight_into_slices(backend: Backend) -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0), dtype=torch.bfloat16)
    whole = MXFP4.empty((8, 128))
    parts = {"codes": whole["codes"][2:6, 32:], "scales": whole["scales"][2:6, 2:].view(torch.float8_e8m0fnu)}
    DeviceQuantizer("even/even", backend).into(weight, parts)
    want = quantize(weight)
    assert torch.equal(whole["codes"][2:6, 32:], want.codes)
    assert torch.equal(whole["scales"][2:6, 2:], want.scales)
    if isinstance(backend, Writer):
        assert Writer.written == parts["codes"].data_ptr()
    weight[3, 5] = torch.nan
    with pytest.raises(NonFiniteError, match=r"index \[3, 5\]"):
        DeviceQuantizer("even/even", backend).into(weight, parts)
