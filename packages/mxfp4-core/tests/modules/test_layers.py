from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

from mxfp4_core.arithmetic.quantize import quantize
from mxfp4_core.backend import select
from mxfp4_core.backend.answers import No, Verdict
from mxfp4_core.backend.problem import GPT_OSS_SWIGLU, Problem
from mxfp4_core.backend.reference.backend import ReferenceBackend
from mxfp4_core.backend.selection import Selection
from mxfp4_core.errors import BackendError, ConfigError, ShapeError
from mxfp4_core.modules import prepare
from mxfp4_core.modules.layers import Mxfp4Experts, Mxfp4Linear
from mxfp4_core.modules.prepare import prepare_model
from mxfp4_core.testing import EmulatedBackend, judge
from mxfp4_core.testing.samples import random_routes, random_weight, random_x

REFERENCE, EMULATED = ReferenceBackend(), EmulatedBackend()


def linear(n: int = 10, k: int = 70) -> Mxfp4Linear:
    return Mxfp4Linear.from_weight(quantize(torch.randn(n, k), tail="pad"))


def test_buffers_are_canonical_and_logical_sizes_are_kept() -> None:
    module = Mxfp4Linear(10, 70, bias=True)
    assert module.weight.shape == (10, 48) and module.weight_scale.shape == (10, 3)
    assert module.weight.dtype == module.weight_scale.dtype == torch.uint8
    assert (module.in_features, module.out_features) == (70, 10)
    assert list(module.state_dict()) == ["weight", "weight_scale", "bias"]


def test_experts_are_named_as_checkpoints_name_them() -> None:
    module = Mxfp4Experts(4, 90, 70, top_k=2, bias=True, gate=GPT_OSS_SWIGLU)
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    assert shapes == {
        "gate_up_proj": (4, 180, 48),
        "gate_up_proj_scale": (4, 180, 3),
        "gate_up_proj_bias": (4, 180),
        "down_proj": (4, 70, 48),
        "down_proj_scale": (4, 70, 3),
        "down_proj_bias": (4, 70),
    }


def test_repr_says_what_and_who() -> None:
    module = linear()
    assert (
        repr(module) == "Mxfp4Linear(n=10, k=70, bias=False, mxfp4 profile=even/even, backend=not prepared)"
    )
    assert "backend=emulated (emulated-48x96)" in repr(module.prepare(EMULATED))
    experts = Mxfp4Experts(4, 300, 70, top_k=2).prepare(REFERENCE)
    assert "n=300, k=70, experts=4, top_k=2" in repr(experts) and "profile=unknown" in repr(experts)


def test_quantised_activations_are_asked_for() -> None:
    module = Mxfp4Linear(10, 70, activation="mxfp8")
    assert "activation=mxfp8" in repr(module)
    with pytest.raises(BackendError, match="does not offer activation:mxfp8"):
        module.prepare(EMULATED)
    assert Mxfp4Experts(4, 32, 64, top_k=2, activation="fp8").problem.activation == "fp8"


def test_the_repr_says_what_auto_is() -> None:
    module = Mxfp4Linear.from_weight(random_weight(10, 70))
    module.problem = replace(module.problem, activation="auto")
    assert "activation=auto," in repr(module)
    assert "activation=auto (mxfp4)" in repr(module.prepare(EMULATED))


def test_nothing_is_computed_before_prepare() -> None:
    with pytest.raises(BackendError, match="prepare_model"):
        linear()(random_x(1, 70))


def test_the_tail_of_k_is_padded_exactly() -> None:
    module, x = linear(), random_x(6, 70)
    for backend in (REFERENCE, EMULATED):
        judge.linear(x, module.canonical("weight"), None, backend.numerics).check(module.prepare(backend)(x))


def test_a_device_layout_replaces_the_canonical_bytes() -> None:
    module = linear(96, 192)
    want = module.canonical("weight")
    module.prepare(EMULATED)
    assert not {"weight", "weight_scale"} & dict(module.named_buffers()).keys()
    bytes_held = sum(buffer.nbytes for buffer in module.buffers())
    assert bytes_held <= want.codes.nbytes + 4 / 3 * want.scales.nbytes
    assert list(module.state_dict()) == ["weight", "weight_scale"]
    assert torch.equal(module.state_dict()["weight"], want.codes)


def test_a_canonical_layout_shares_memory() -> None:
    module = linear(96, 192).prepare(REFERENCE)
    assert module.packed_weight_codes.data_ptr() == module.canonical("weight").codes.data_ptr()
    assert sum(buffer.nbytes for buffer in module.buffers()) == module.canonical("weight").nbytes


def test_a_part_of_a_weight_shows_the_shape_of_the_whole() -> None:
    module = linear(64, 96)
    module.whole = {"weight": (64, 192)}
    assert module.weight.shape == (64, 48)  # its codes, until it computes
    module.prepare(REFERENCE)
    assert (module.weight.shape, module.weight.dtype) == ((64, 192), torch.bfloat16)
    with pytest.raises(ConfigError, match="values of weight cannot be read"):
        module.weight.float()
    module.whole = {}
    assert module.weight.shape == (64, 96) and module.weight.float().isfinite().all()


def test_what_a_library_sets_for_what_cannot_be_done_is_an_error() -> None:
    module = linear(64, 96)
    module.refused = {"_plan": lambda: ConfigError("a", seen="b", rule="c", fix="d")}
    with pytest.raises(ConfigError, match="a"):
        module._plan = "odd"
    module.other = 1
    assert module.other == 1


def test_preparing_for_another_backend() -> None:
    module, x = linear(), random_x(3, 70)
    first = module.prepare(EMULATED)(x)
    assert torch.equal(module.prepare(REFERENCE)(x), first)
    held = dict(module.named_buffers())
    assert "weight" in held and not any("blob" in name for name in held)


class Refusing(ReferenceBackend):
    def supports(self, problem: Problem) -> Verdict:
        return No("k = 70, needs 256", "use another shape")


def test_a_backend_that_refuses_is_an_error_and_changes_nothing() -> None:
    module, x = linear().prepare(EMULATED), random_x(3, 70)
    want = module(x)
    with pytest.raises(BackendError, match="needs 256"):
        module.prepare(Refusing())
    assert torch.equal(module(x), want) and "emulated" in repr(module)
    assert "weight" not in dict(module.named_buffers())


def test_prepare_model_chooses_for_every_module_before_it_touches_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = nn.Sequential(linear(), linear(), nn.Linear(10, 10), Mxfp4Experts(4, 32, 64, top_k=2))
    chosen = prepare_model(model)
    assert list(chosen) == ["0", "1", "3"]
    assert chosen["0"] is chosen["1"] and chosen["3"].problem.op == "moe"
    assert all(selection.backend.name == "reference" for selection in chosen.values())

    fresh = nn.Sequential(linear(), Mxfp4Experts(4, 32, 64, top_k=2))

    def picky(problem: Problem, **names: str | None) -> Selection:
        if problem.op == "moe":
            raise BackendError("no", seen="", rule="", fix="")
        return select.select_backend(problem, **names)

    monkeypatch.setattr(prepare, "select_backend", picky)
    with pytest.raises(BackendError):
        prepare_model(fresh)
    assert fresh[0].backend is None


def test_the_choice_is_logged_once_for_each_problem(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "mxfp4_core.modules")
    prepare_model(nn.Sequential(linear(), linear(), linear(n=11)))
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO"]
    assert "reference runs linear m=any n=10 k=70" in caplog.text
    caplog.clear()
    prepare_model(linear(), backend="rocm", fallback="reference")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "temporary memory" in caplog.text


def test_moving_keeps_codes_and_asks_for_prepare() -> None:
    module = Mxfp4Linear.from_weight(random_weight(10, 70), torch.zeros(10, dtype=torch.bfloat16))
    codes = module.weight.clone()
    module.prepare(EMULATED)
    assert module.to(torch.bfloat16).backend is EMULATED, "nothing moved, nothing to do"
    module.half()
    assert module.weight.dtype == torch.uint8 and torch.equal(module.weight, codes)
    assert module.bias is not None and module.bias.dtype == torch.float16
    with pytest.raises(BackendError, match="prepare"):
        module(random_x(1, 70, torch.float16))
    assert (
        module.prepare(REFERENCE, dtype=torch.float16)(random_x(1, 70, torch.float16)).dtype == torch.float16
    )


def test_a_module_on_meta_is_loaded_by_assignment() -> None:
    source = linear()
    module = Mxfp4Linear(10, 70, device="meta")
    module.load_state_dict(source.state_dict(), assign=True)
    x = random_x(2, 70)
    assert torch.equal(module.prepare(REFERENCE)(x), source.prepare(REFERENCE)(x))


def test_a_second_load_writes_into_the_same_memory() -> None:
    module, other, x = linear(), linear(), random_x(2, 70)
    module.prepare(EMULATED)
    before = {name: buffer.data_ptr() for name, buffer in module.named_buffers()}
    module.load_state_dict(other.state_dict())
    assert {name: buffer.data_ptr() for name, buffer in module.named_buffers()} == before
    assert torch.equal(module(x), other.prepare(EMULATED)(x))


@pytest.mark.parametrize("backend", [REFERENCE, EMULATED], ids=lambda backend: backend.name)
def test_a_prepared_module_is_filled_inside_unprepared_only(backend: ReferenceBackend) -> None:
    module, x = linear().prepare(backend), random_x(2, 70)
    weight = quantize(torch.randn(10, 70), profile="quark", tail="pad")
    with pytest.raises(BackendError, match="unprepared"):
        module.fill("weight", weight)
    with module.unprepared() as plain:
        plain.fill("weight", weight)
        with pytest.raises(BackendError, match="not prepared"):
            plain(x)
    judge.linear(x, weight, None, backend.numerics).check(module(x))
    assert "profile=quark" in repr(module)


def test_loading_by_hand_inside_unprepared() -> None:
    module, other, x = linear().prepare(EMULATED), linear(), random_x(2, 70)
    with module.unprepared() as plain:
        plain.weight.copy_(other.weight)
        plain.weight_scale.copy_(other.weight_scale)
    assert "weight" not in dict(module.named_buffers())
    assert torch.equal(module(x), other.prepare(EMULATED)(x))


@pytest.mark.parametrize("backend", [REFERENCE, EMULATED], ids=lambda backend: backend.name)
def test_copies_and_pickles(backend: ReferenceBackend) -> None:
    module, x = linear().prepare(backend), random_x(2, 70)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x), module(x)) and repr(twin) == repr(module)


def test_wrong_shapes_in_from_weight() -> None:
    with pytest.raises(ShapeError):
        Mxfp4Linear.from_weight(random_weight(8, 32), torch.zeros(9)).prepare(REFERENCE)


def test_expert_parallel_module() -> None:
    whole, rank = (
        Mxfp4Experts(8, 64, 96, top_k=2),
        Mxfp4Experts(
            3, 64, 96, top_k=2, total_experts=8, expert_map=torch.tensor([-1, 0, -1, -1, 1, 2, -1, -1])
        ),
    )
    for matrix in whole.matrices:
        weight = random_weight(*whole.canonical(matrix).shape, scales=(117, 122))
        whole.fill(matrix, weight)
        mine = [1, 4, 5]
        shape = torch.Size((3, *weight.shape[1:]))
        rank.fill(matrix, type(weight)(weight.codes[mine], weight.scales[mine], shape))
    x, (ids, weights) = random_x(9, 96), random_routes(9, 8, 2)
    here = torch.where(torch.isin(ids, torch.tensor([1, 4, 5])), ids, -1)
    want = whole.prepare(REFERENCE)(x, here, weights)
    assert torch.equal(rank.prepare(REFERENCE)(x, ids, weights), want)
    assert torch.equal(rank.prepare(EMULATED)(x, ids, weights), want)
    assert "expert_map" not in rank.state_dict()


def test_options_reach_the_problem_of_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = select.select_backend(linear().question(torch.bfloat16), backend="reference")
    answer = replace(answer, problem=replace(answer.problem, options={"provider": "hand"}))
    monkeypatch.setattr(prepare, "select_backend", lambda *given, **named: answer)
    module = linear()
    prepare_model(module)
    assert module.problem.options == {"provider": "hand"}
    with module.unprepared():
        module.weight.fill_(0)
    assert module.prepare(REFERENCE).problem.options == {"provider": "hand"}
    assert not module.prepare(REFERENCE, options={}).problem.options
