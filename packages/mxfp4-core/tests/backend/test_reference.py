from __future__ import annotations

import pytest
import torch

from mxfp4_core import quantize
from mxfp4_core.arithmetic.formats.base import Parts
from mxfp4_core.arithmetic.formats.mxfp4 import Mxfp4
from mxfp4_core.arithmetic.formats.registry import get
from mxfp4_core.arithmetic.profiles import profiles
from mxfp4_core.backend import calls, registry
from mxfp4_core.backend.answers import Yes
from mxfp4_core.backend.device import Device
from mxfp4_core.backend.problem import Problem
from mxfp4_core.backend.reference import ops as reference_ops
from mxfp4_core.backend.reference import slices
from mxfp4_core.backend.reference.backend import INPUT_PROFILES
from mxfp4_core.backend.routes import Routes
from mxfp4_core.errors import Mxfp4Error
from mxfp4_core.testing import judge
from mxfp4_core.testing.samples import random_routes, random_weight, random_x

CPU = Device("cpu", "x86_64")


def reference():  # type: ignore[no-untyped-def]  # Backend | No
    return registry.installed()["reference"].load()


def test_it_comes_through_the_entry_point_like_any_other() -> None:
    plugin = registry.installed()["reference"]
    assert plugin.distribution.startswith("mxfp4-core ")
    assert plugin.load().name == "reference"


def test_it_says_that_it_emulates_and_offers_every_profile() -> None:
    backend = reference()
    assert backend.numerics.emulated and backend.numerics.profiles == set(profiles())
    assert backend.automatic_on == {"cpu"}


@pytest.mark.parametrize("format", ["mxfp4", "mxfp4-dual", "mxfp8"])
@pytest.mark.parametrize("shape", [(1, 512), (2, 3, 512), (512,)])
def test_a_short_call_gives_the_bits_of_the_operator(format: str, shape: tuple[int, ...]) -> None:
    problem = Problem(op="linear", n=48, k=512, format=format, bias=True, activation="auto", device=CPU)
    backend, weight = reference(), quantize(torch.randn(48, 512), format=format)
    packed = calls.pack(backend, problem, weight, torch.randn(48).bfloat16())
    x = torch.randn(shape).bfloat16()
    short, through = backend.direct_linear(packed, problem)(x), calls.linear(backend, x, packed, problem)
    assert short.shape == (*shape[:-1], 48) and torch.equal(short, through)


def test_weights_are_widened_in_slices_of_the_stated_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def spy(self: Mxfp4, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
        values = dequantize(self, parts, dtype)
        sizes.append(values.nbytes)
        return values

    dequantize = Mxfp4.dequantize
    monkeypatch.setattr(Mxfp4, "dequantize", spy)
    monkeypatch.setattr(slices, "_SLICE_ELEMS", 1000)
    backend = reference()
    for problem in (
        Problem(op="linear", n=130, k=96, device=CPU),
        Problem(op="moe", n=96, k=160, experts=3, top_k=2, device=CPU),
    ):
        sizes.clear()
        packed = [
            calls.pack(backend, problem, random_weight(*s), None, p) for p, s in calls.shapes(problem).items()
        ]
        x = random_x(4, problem.k)
        if problem.op == "linear":
            got = calls.linear(backend, x, packed[0], problem)
            largest = max(sizes)
            judge.linear(x, random_weight(130, 96), None, backend.numerics).check(got)
        else:
            calls.moe(backend, x, *packed, Routes(*random_routes(4, 3, 2)), problem)
            largest = max(sizes)
        answer = backend.supports(problem)
        assert isinstance(answer, Yes) and largest == answer.temporary_bytes
        assert len(sizes) > 3


def test_only_experts_with_tokens_are_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = reference_ops._matmul
    monkeypatch.setattr(
        reference_ops, "_matmul", lambda *args: seen.append(args[1][0].shape) or original(*args)
    )
    problem = Problem(op="moe", n=32, k=32, experts=64, top_k=1, device=CPU)
    packed = [
        calls.pack(reference(), problem, random_weight(*s), None, p) for p, s in calls.shapes(problem).items()
    ]
    ids = torch.tensor([[7], [7], [9]])
    calls.moe(reference(), random_x(3, 32), *packed, Routes(ids, torch.ones(3, 1)), problem)
    assert len(seen) == 4


@pytest.mark.parametrize("ids", [[[4]], [[-2]]])
def test_bad_ids_are_our_error(ids: list[list[int]]) -> None:
    problem = Problem(op="moe", n=32, k=32, experts=4, top_k=1, device=CPU)
    packed = [
        calls.pack(reference(), problem, random_weight(*s), None, p) for p, s in calls.shapes(problem).items()
    ]
    with pytest.raises(Mxfp4Error, match="topk_ids"):
        calls.moe(reference(), random_x(1, 32), *packed, Routes(torch.tensor(ids), torch.ones(1, 1)), problem)


def test_a_bad_expert_map_is_our_error() -> None:
    problem = Problem(op="moe", n=32, k=32, experts=2, total_experts=4, top_k=1, device=CPU)
    packed = [
        calls.pack(reference(), problem, random_weight(*s), None, p) for p, s in calls.shapes(problem).items()
    ]
    with pytest.raises(Mxfp4Error, match="expert_map"):
        calls.moe(
            reference(),
            random_x(1, 32),
            *packed,
            Routes(torch.tensor([[0]]), torch.ones(1, 1), torch.tensor([2, 0, 1, -1])),
            problem,
        )


def test_quantised_activations_of_experts() -> None:
    # The intermediate is quantised too, so that a rounding may flip against the judge: compare as wholes.
    problem = Problem(op="moe", n=64, k=64, experts=2, top_k=1, activation="mxfp4", device=CPU)
    weights = [random_weight(*s) for s in calls.shapes(problem).values()]
    packed = [
        calls.pack(reference(), problem, w, None, p)
        for w, p in zip(weights, calls.shapes(problem), strict=True)
    ]
    x, (ids, factors) = random_x(16, 64), random_routes(16, 2, 1)
    plain = judge.moe(x, *weights, (None, None), ids, factors, problem.gate, reference().numerics).value
    got = calls.moe(reference(), x, *packed, Routes(ids, factors), problem).double()
    error = float((got - plain).norm() / plain.norm())
    assert 0.02 < error < 0.3, "quantised twice: neither exact nor nonsense"


def test_inputs_are_quantised_by_the_default_of_each_format() -> None:
    assert {name: get(name).resolve().name for name in INPUT_PROFILES} == INPUT_PROFILES
