from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mxfp4_core.arithmetic.shapes import Alignment
from mxfp4_core.backend import calls, routing
from mxfp4_core.backend.device import Device
from mxfp4_core.backend.problem import GPT_OSS_SWIGLU, SILU, Problem
from mxfp4_core.backend.protocol import Packed
from mxfp4_core.backend.reference.backend import ReferenceBackend
from mxfp4_core.backend.routes import Routes
from mxfp4_core.errors import ConfigError, FormatError, ShapeError
from mxfp4_core.testing import EmulatedBackend
from mxfp4_core.testing.samples import random_routes, random_weight, random_x

CPU = Device("cpu", "x86_64")
EMULATED, REFERENCE = EmulatedBackend(), ReferenceBackend()


def test_alignment_of_experts_covers_both_weights() -> None:
    problem = Problem(op="moe", n=360, k=2880, experts=2, top_k=1, device=CPU)
    # gate-up has 64-row tiles of n and 96-column tiles of k, down the other way round
    assert calls.alignment(EMULATED, problem) == Alignment(n=192, k=192)
    assert calls.shapes(problem, calls.alignment(EMULATED, problem)) == {
        "gate_up": (2, 768, 2880),
        "down": (2, 2880, 384),
    }
    assert calls.alignment(EMULATED, Problem(op="linear", n=1, k=1, device=CPU)) == Alignment(48, 96)


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 260), k=st.integers(1, 260), interleaved=st.booleans())
def test_padding_is_undone_for_any_size(n: int, k: int, interleaved: bool) -> None:
    gate = GPT_OSS_SWIGLU if interleaved else SILU
    for problem in (
        Problem(op="linear", n=n, k=k, device=CPU),
        Problem(op="moe", n=n, k=k, experts=2, top_k=1, gate=gate, device=CPU),
    ):
        for matrix, shape in calls.shapes(problem).items():
            weight = random_weight(*shape)
            packed = calls.pack(EMULATED, problem, weight, torch.zeros(shape[:-1]), matrix)
            again = calls.unpack(EMULATED, problem, packed, matrix)
            assert torch.equal(again.codes, weight.codes) and torch.equal(again.scales, weight.scales)


def test_padding_is_zero_codes_with_the_scale_of_one() -> None:
    problem = Problem(op="moe", n=3, k=33, experts=1, top_k=1, bias=True, device=CPU)
    weight = random_weight(1, 6, 33)
    packed = calls.pack(REFERENCE, problem, weight, torch.arange(6.0)[None], "gate_up")
    codes, scales = packed.tensors["codes"], packed.tensors["scales"]
    assert packed.shape == (1, 64, 64)
    assert torch.equal(codes[0, :3], weight.codes[0, :3]) and torch.equal(
        codes[0, 32:35], weight.codes[0, 3:]
    )
    assert not codes[0, 3:32].any() and not codes[0, 35:].any()
    assert bool((scales[0, 3:32] == 127).all()) and bool((scales[0, 35:] == 127).all())
    assert packed.tensors["bias"][0, [0, 1, 2, 32, 33, 34]].tolist() == [0, 1, 2, 3, 4, 5]


def test_what_needs_no_padding_is_not_copied() -> None:
    problem = Problem(op="linear", n=5, k=64, device=CPU)
    weight = random_weight(5, 64)
    packed = calls.pack(REFERENCE, problem, weight)
    assert packed.tensors["codes"].data_ptr() == weight.codes.data_ptr()
    assert calls.unpack(REFERENCE, problem, packed).codes.data_ptr() == weight.codes.data_ptr()


class Watching(ReferenceBackend):
    """Records what reaches the backend."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def linear(self, x, weight, problem):  # type: ignore[no-untyped-def]  # as the base class
        self.seen.append(x)
        return super().linear(x, weight, problem)

    def moe(self, x, gate_up, down, routes, problem):  # type: ignore[no-untyped-def]  # likewise
        self.seen += [x, routes.topk_ids, routes.topk_weights]
        return super().moe(x, gate_up, down, routes, problem)


def test_a_backend_sees_clean_rows_only() -> None:
    backend, problem = Watching(), Problem(op="linear", n=5, k=40, device=CPU)
    packed = calls.pack(backend, problem, random_weight(5, 40))
    out = calls.linear(backend, random_x(6, 80)[:, ::2].reshape(2, 3, 40), packed, problem)
    assert out.shape == (2, 3, 5)
    (x,) = backend.seen
    assert x.shape == (6, 64) and x.is_contiguous() and not x[:, 40:].any()
    assert calls.linear(backend, random_x(0, 40), packed, problem).shape == (0, 5)
    assert len(backend.seen) == 1, "no backend is called for zero tokens"


def test_ids_and_weights_have_one_dtype_at_the_backend() -> None:
    backend, problem = Watching(), Problem(op="moe", n=32, k=32, experts=4, top_k=2, device=CPU)
    packed = [
        calls.pack(backend, problem, random_weight(*s), None, p) for p, s in calls.shapes(problem).items()
    ]
    ids, weights = random_routes(6, 4, 2)
    calls.moe(backend, random_x(6, 32), *packed, Routes(ids.long(), weights.bfloat16()), problem)
    assert [tensor.dtype for tensor in backend.seen] == [torch.bfloat16, torch.int32, torch.float32]


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint64, torch.uint32, torch.int16, torch.uint8])
def test_numbers_that_do_not_fit_stay_out_of_range(dtype: torch.dtype) -> None:
    largest = torch.iinfo(dtype).max
    numbers = torch.tensor([0, 3, largest, largest - 1], dtype=torch.uint64).to(dtype)
    found = routing._narrow(numbers, 4)
    assert found.dtype is torch.int32 and found[:2].tolist() == [0, 3]
    assert not any(0 <= one < 4 for one in found[2:].tolist())
    if dtype is torch.int64:
        assert routing._narrow(torch.tensor([-1, -(2**32), 2**32 + 1]), 4).tolist() == [-1, -2, 4]


@pytest.mark.parametrize(
    "changes",
    [
        {"ids": torch.zeros(6, 2)},
        {"ids": torch.zeros(6, 2, dtype=torch.bool)},
        {"ids": torch.zeros(6, 2, dtype=torch.complex64)},
        {"ids": torch.zeros(6, 2, dtype=torch.int32, device="meta")},
        {"weights": torch.zeros(6, 2, dtype=torch.int32)},
        {"weights": torch.zeros(6, 2, device="meta")},
        {"expert_map": torch.zeros(8)},
        {"expert_map": torch.zeros(8, dtype=torch.bool)},
        {"expert_map": torch.zeros(8, dtype=torch.int32, device="meta")},
    ],
    ids=str,
)
def test_routes_of_another_kind_or_place_are_refused(changes: dict[str, torch.Tensor]) -> None:
    problem = Problem(op="moe", n=32, k=32, experts=4, total_experts=8, top_k=2, device=CPU)
    packed = [
        calls.pack(REFERENCE, problem, random_weight(*s), None, p) for p, s in calls.shapes(problem).items()
    ]
    ids, weights = random_routes(6, 8, 2)
    given = {"ids": ids, "weights": weights, "expert_map": torch.zeros(8, dtype=torch.int32)} | changes
    with pytest.raises(FormatError, match="ids and map are integers"):
        calls.moe(REFERENCE, random_x(6, 32), *packed, Routes(*given.values()), problem)


@pytest.mark.parametrize("shape", [(4,), (9,), ()])
def test_an_expert_map_has_an_entry_for_each_expert(shape: tuple[int, ...]) -> None:
    problem = Problem(op="moe", n=32, k=32, experts=4, total_experts=8, top_k=2, device=CPU)
    packed = [
        calls.pack(REFERENCE, problem, random_weight(*s), None, p) for p, s in calls.shapes(problem).items()
    ]
    ids, weights = random_routes(6, 8, 2)
    expert_map = torch.zeros(shape, dtype=torch.int32)
    with pytest.raises(ShapeError, match="expert_map"):
        calls.moe(REFERENCE, random_x(6, 32), *packed, Routes(ids, weights, expert_map), problem)


def test_the_layout_of_another_problem_is_refused() -> None:
    small, large = Problem(op="linear", n=48, k=96, device=CPU), Problem(op="linear", n=192, k=96, device=CPU)
    packed = calls.pack(EMULATED, small, random_weight(48, 96))
    with pytest.raises(FormatError, match="emulated-48x96"):
        calls.unpack(EMULATED, large, Packed(packed.layout, packed.tensors, (192, 96)))


def test_quantize_checks_before_the_backend_does() -> None:
    weight = torch.zeros(2, 64)
    with pytest.raises(ConfigError, match="quark"):
        calls.quantize(EMULATED, weight, profile="quark")
    with pytest.raises(ShapeError):
        calls.quantize(REFERENCE, weight[:, :40], profile="quark")
    with pytest.raises(FormatError):
        calls.quantize(REFERENCE, weight.double(), profile="quark")


def test_x_on_another_device_is_refused() -> None:
    problem = Problem(op="linear", n=5, k=64, device=CPU)
    packed = calls.pack(REFERENCE, problem, random_weight(5, 64))
    with pytest.raises(FormatError, match="meta"):
        calls.linear(REFERENCE, torch.zeros(3, 64, dtype=torch.bfloat16, device="meta"), packed, problem)
