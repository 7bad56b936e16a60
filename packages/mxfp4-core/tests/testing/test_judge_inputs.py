"""The judge of quantised inputs takes what a correct kernel may make, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mxfp4_core.arithmetic import MxTensor
from mxfp4_core.backend import Activation, Backend, Numerics, Packed, Problem, Routes, Verdict, Yes
from mxfp4_core.backend.device import cpu
from mxfp4_core.backend.reference.backend import ReferenceBackend
from mxfp4_core.backend.reference.rounding import Inputs
from mxfp4_core.testing import judge_inputs
from mxfp4_core.testing.answer import Answer
from mxfp4_core.testing.conformance import BackendConformance
from mxfp4_core.testing.emulated import EmulatedBackend, TileLayout

CPU = torch.device("cpu")
KINDS = ("mxfp4", "mxfp4-dual", "mxfp8", "fp8")


@settings(deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 2**32 - 1), st.sampled_from([2.0**-22, 2.0**-12, 2.0**-7]))
def test_every_value_within_the_bound_stays_within_it(kind: str, seed: int, error: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(4, 600, generator=generator) * torch.randn(4, 1, generator=generator).exp()
    bound = error * values.abs().double()
    answer = judge_inputs.quantized(Answer(values.double(), bound), kind, "", torch.float32)
    rounded = Inputs(kind, "", "float32", torch.float32)
    for _ in range(4):
        shift = (torch.rand(values.shape, generator=generator, dtype=torch.float64) * 2 - 1) * 0.99
        answer.check(rounded((values.double() + shift * bound).float(), None))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_known_has_next_to_no_bound(kind: str) -> None:
    values = torch.randn(8, 1024, generator=torch.Generator().manual_seed(0))
    answer = judge_inputs.quantized(Answer.exact(values), kind, "", torch.float32)
    assert bool((answer.bound <= 2.0**-20 * answer.value.abs()).double().mean() > 0.99)
    nearly = Answer(values.double(), values.abs().double() * 2.0**-12)
    few = judge_inputs.quantized(nearly, kind, "", torch.float32).bound > 0.02 * values.abs()
    assert 0 < float(few.double().mean()) < 0.03, "only values near the middle of two codes are uncertain"


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_makes_its_block_nan(kind: str, value: float) -> None:
    values = torch.ones(1, 1024)
    values[0, 600] = value
    answer = judge_inputs.quantized(Answer.exact(values), kind, "", torch.float32)
    assert bool(answer.value[0, 600].isnan()) and bool(answer.value[0, :512].isfinite().all())
    answer.check(Inputs(kind, "", "float32", torch.float32)(values, None))


class HiddenForgotten(ReferenceBackend):
    """Quantises x and not the hidden state."""

    def moe(
        self, x: torch.Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem
    ) -> torch.Tensor:
        kind = self._inputs(problem)
        wide = Inputs(*kind, x.dtype)(x, gate_up.tensors.get("input_scale"))
        plain = replace(problem, activation="none")
        kept = {name: t for name, t in gate_up.tensors.items() if name != "input_scale"}
        if "input_scale" in gate_up.tensors:
            kept["input_scale"] = torch.ones_like(gate_up.tensors["input_scale"])
        out = super().moe(wide, replace(gate_up, tensors=kept), down, routes, plain)
        return out.to(x.dtype)


class Level0Forgotten(ReferenceBackend):
    def linear(self, x: torch.Tensor, weight: Packed, problem: Problem) -> torch.Tensor:
        return super().linear(x, _ones(weight, "level0"), problem)


class MultiplierForgotten(ReferenceBackend):
    def linear(self, x: torch.Tensor, weight: Packed, problem: Problem) -> torch.Tensor:
        return super().linear(x, _ones(weight, "input_scale"), problem)


class MultiplierOfHiddenForgotten(ReferenceBackend):
    def moe(
        self, x: torch.Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem
    ) -> torch.Tensor:
        return super().moe(x, gate_up, _ones(down, "input_scale"), routes, problem)


class SharedWeighted(ReferenceBackend):
    """Sends every token to the shared experts with the weight of its first expert."""

    def moe(
        self, x: torch.Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem
    ) -> torch.Tensor:
        both = super().moe(x, gate_up, down, routes, problem)
        return both * 1.1 if problem.shared_experts else both


class MaskIgnored(ReferenceBackend):
    """Reads rows behind the count, and lets them into the scale of the others."""

    def moe(
        self, x: torch.Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem
    ) -> torch.Tensor:
        out = super().moe(x, gate_up, down, routes._replace(counts=None), problem)
        return out + 0 * x.mean() if routes.counts is not None else out


class ExpertsTurned(ReferenceBackend):
    """Takes the rows of sorted tokens for those of another expert."""

    def moe(
        self, x: torch.Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem
    ) -> torch.Tensor:
        if problem.tokens == "batched":
            x = x.flip(0)
        return super().moe(x, gate_up, down, routes, problem)


class OuterScalesUnturned(EmulatedBackend):
    """Forgets that halves change places in the outer scales, too."""

    def layout(self, problem: Problem, matrix: str = "weight") -> TileLayout:
        tile = self._tile(problem, matrix)  # type: ignore[arg-type]  # as the base class
        return _Unturned(tile.rows, tile.halves, tile.format)


class _Unturned(TileLayout):
    def pack(self, weight: MxTensor, bias: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        packed = super().pack(weight, bias)
        if "outer" in packed:
            packed["outer"] = packed["outer"].flip(-2)
        return packed


def _ones(weight: Packed, name: str) -> Packed:
    if name not in weight.tensors:
        return weight
    return replace(weight, tensors={**weight.tensors, name: torch.ones_like(weight.tensors[name])})


def _device(backend: Backend) -> tuple[object, ...]:
    return backend, cpu(), CPU


WRONG = [
    *((HiddenForgotten(), "test_format_moe", ("mxfp4", word)) for word in ("mxfp4", "mxfp8", "fp8")),
    (HiddenForgotten(), "test_format_moe", ("mxfp4-dual", "mxfp4")),
    (HiddenForgotten(), "test_format_moe", ("mxfp8+input_scale", "mxfp8")),
    (Level0Forgotten(), "test_format_linear", ("mxfp4-dual", "none")),
    (MultiplierForgotten(), "test_format_linear", ("mxfp8+input_scale", "none")),
    (MultiplierForgotten(), "test_format_linear", ("mxfp4+input_scale", "mxfp4")),
    (MultiplierOfHiddenForgotten(), "test_format_moe", ("mxfp4+input_scale", "none")),
    (SharedWeighted(), "test_moe_shared_experts", (False,)),
    (MaskIgnored(), "test_moe_sorted_rows", ("masked",)),
    (ExpertsTurned(), "test_moe_sorted_rows", ("batched",)),
]


@pytest.mark.parametrize(
    ("backend", "test", "arguments"),
    WRONG,
    ids=[f"{type(one).__name__}-{'-'.join(map(str, args))}" for one, _, args in WRONG],
)
def test_wrong_backends_are_caught(backend: Backend, test: str, arguments: tuple[object, ...]) -> None:
    right = ReferenceBackend()
    run = getattr(BackendConformance(), test)
    run(*_device(right), *arguments)
    with pytest.raises(AssertionError):
        run(*_device(backend), *arguments)


def test_a_layout_that_forgets_a_part_is_caught() -> None:
    suite = BackendConformance()
    sizes = {"op": "moe", "experts": 2, "top_k": 1}
    suite.test_format_layout(EmulatedBackend(), cpu(), "mxfp4-dual", sizes)
    with pytest.raises(AssertionError, match="level0"):
        suite.test_format_layout(OuterScalesUnturned(), cpu(), "mxfp4-dual", sizes)


@pytest.mark.parametrize("word", ["mxfp4", "mxfp8", "fp8"])
def test_hidden_is_what_the_numerics_say(word: Activation) -> None:
    """A backend that rounds the hidden state to bfloat16 and says that it does not is caught, and the other way."""

    class Early(ReferenceBackend):
        numerics = replace(ReferenceBackend.numerics, hidden="input")

    class Liar(Early):
        def supports(self, problem: Problem) -> Verdict:
            answer = super().supports(problem)
            assert isinstance(answer, Yes)
            return replace(answer, numerics=_said(answer.numerics or self.numerics))

    def _said(numerics: Numerics) -> Numerics:
        return replace(numerics, hidden="float32")

    suite = BackendConformance()
    suite.test_format_moe(*_device(Early()), "mxfp4", word)  # type: ignore[arg-type]  # three fixtures
    with pytest.raises(AssertionError):
        suite.test_format_moe(*_device(Liar()), "mxfp4", word)  # type: ignore[arg-type]  # likewise
