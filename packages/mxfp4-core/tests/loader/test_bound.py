"""Sessions bound to modules: first loads, and loads of modules that compute."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from bound_models import (
    BACKENDS,
    NAN,
    SHAPES,
    E,
    K,
    N,
    fresh,
    kinds,
    load,
    model,
    places,
    run,
    same,
    session,
    values,
)
from loader_layers import weights
from torch import Tensor, nn
from torch.nn import Parameter

from mxfp4_core import Mxfp4Config, quantize
from mxfp4_core.errors import BackendError, FormatError, LoadError, NonFiniteError, ShapeError
from mxfp4_core.loader import Key, LoadReportBuilder, LoadSession, QuantTarget, Region
from mxfp4_core.modules import Mxfp4Linear
from mxfp4_core.testing import engine_loaders as engines
from mxfp4_core.testing.samples import random_routes, random_x

# First loads.


@kinds
def test_a_model_on_meta_is_loaded_and_prepared(name: str) -> None:
    built, opened, new = model(), session(name), values(0)
    targets = opened.bind(built)
    assert list(targets) == list(SHAPES)
    assert built["up"].weight.is_meta and built["experts"].down_proj.is_meta, (
        "nothing has memory before it is touched"
    )
    targets["up.weight"].quantize(new["up.weight"][:32], Region((0, 1), (0, 32), (0, K)))
    assert not built["up"].weight.is_meta and built["experts"].down_proj.is_meta
    assert targets["up.weight"].codes.data_ptr() == built["up"].weight.data_ptr()
    targets["up.weight"].quantize(new["up.weight"][32:], Region((0, 1), (32, N), (0, K)))
    load(targets, {key: new[key] for key in new if key != "up.weight"})
    report = opened.close()
    assert report.backend == name and report.phases["preparing"].wall > 0
    for key, source in new.items():
        path, _, own = key.rpartition(".")
        state = built[path].state_dict()
        assert torch.equal(state[own], quantize(source, tail="pad").codes)
    assert built["up"].profile == "even/even"
    assert same(run(built), run(fresh(name, 0)))


def test_an_engines_own_loader_fills_the_module() -> None:
    built, opened, new = model(), session("emulated"), values(0)
    targets = opened.bind(built)
    loaders = {name: opened.wrap(name, copy) for name in targets}
    for name, source in new.items():
        path, _, own = name.rpartition(".")
        loaders[name](getattr(built[path], own), source)
    opened.close()
    assert same(run(built), run(fresh("emulated", 0)))


def copy(param: Tensor, loaded_weight: Tensor) -> None:
    param.data.copy_(loaded_weight)


def test_a_module_alone_and_a_prefix() -> None:
    module, opened = Mxfp4Linear(N, K, device="meta"), session("reference")
    (name,) = opened.bind(module, prefix="model.layers.0.up", reason="override 2")
    assert name == "model.layers.0.up.weight"
    opened.targets[name].quantize(weights(N, K))
    assert opened.close().quantised[0].reason == "override 2"
    assert list(session("reference").bind(module)) == ["weight"]


def test_stored_k_first() -> None:
    module, opened = Mxfp4Linear(N, K, device="meta"), session("reference")
    opened.bind(module, transposed=True)
    opened.wrap("weight", copy)(torch.empty(K, N, device="meta"), weights(N, K).T.contiguous())
    opened.close()
    assert torch.equal(module.state_dict()["weight"], quantize(weights(N, K)).codes)


def test_an_adapter_may_prepare_itself() -> None:
    built, opened = model(), session("reference")
    load(opened.bind(built, prepare=False), values(0))
    opened.close()
    assert built["up"].backend is None


def test_a_backend_is_asked_before_anything_is_loaded() -> None:
    built = nn.ModuleDict({"up": Mxfp4Linear(N, K, device="meta")})
    opened = LoadSession(Mxfp4Config(backend="cuda-marlin"))
    with pytest.raises(BackendError, match="cuda-marlin"):
        opened.bind(built)
    assert not opened.targets
    opened = LoadSession(Mxfp4Config(backend="reference"))
    opened.bind(built)["up.weight"].quantize(weights(N, K))
    assert opened.close().backend == "reference" and built["up"].backend is not None


def test_a_bias_that_nobody_loaded_is_named() -> None:
    built, opened = model(bias=True), session("reference")
    load(opened.bind(built), values(0))
    with pytest.raises(LoadError, match=r"up\.bias was not loaded"):
        opened.close()


def test_a_first_load_that_cannot_be_packed_leaves_canonical_bytes() -> None:
    built, opened = model(), session("emulated", nonfinite="nan")
    new = values(0)
    new["experts.down_proj"][1, 2, 3] = NAN
    load(opened.bind(built), new)
    with pytest.raises(FormatError, match=r"^experts\.down_proj: packing"):
        opened.close()
    assert built["experts"].backend is None
    state = built["experts"].state_dict()
    assert torch.equal(state["gate_up_proj"], quantize(new["experts.gate_up_proj"]).codes)


# Loads into modules that compute.


def whole(targets: dict[str, QuantTarget], new: dict[str, Tensor]) -> None:
    load(targets, new)


def backwards(targets: dict[str, QuantTarget], new: dict[str, Tensor]) -> None:
    """Experts one by one, their halves by themselves, all in another order."""
    for name in reversed(new):
        target, source = targets[name], new[name]
        experts, rows, cols = target.box
        for expert in reversed(range(experts)):
            for start in (rows // 2, 0):
                region = Region((expert, expert + 1), (start, start + rows // 2), (0, cols))
                piece = (source[expert] if source.ndim == 3 else source)[start : start + rows // 2]
                target.quantize(piece, region, key=Key(shard=start, expert=expert))


@kinds
@pytest.mark.parametrize("arrive", [whole, backwards], ids=lambda way: way.__name__)
@pytest.mark.parametrize("again", [False, True], ids=["loaded by another", "loaded by this"])
def test_a_refit_is_derived_again_into_the_same_memory(
    name: str, arrive: Callable[[dict[str, QuantTarget], dict[str, Tensor]], None], again: bool
) -> None:
    built = fresh(name, 0)
    opened = session(name)
    targets = opened.bind(built)
    old, before = run(built), places(built)
    for seed in (10, 20) if again else (10,):
        opened.begin()
        arrive(targets, values(seed))
        assert same(run(built), old), "the old weights compute until the load is closed"
        opened.close()
        assert places(built) == before
        old = run(built)
        assert same(old, run(fresh(name, seed)))


@kinds
def test_some_experts_and_some_rows_only(name: str) -> None:
    built, opened = fresh(name, 0), session(name)
    targets, before = opened.bind(built), places(built)
    new, mixed = values(10), values(0)
    opened.begin(subset=True)
    targets["experts.down_proj"].quantize(new["experts.down_proj"][1], Region((1, 2), (0, K), (0, N)))
    targets["experts.gate_up_proj"].quantize(
        new["experts.gate_up_proj"][2, 7:9], Region((2, 3), (7, 9), (0, K))
    )
    targets["experts.gate_up_proj"].quantize(
        new["experts.gate_up_proj"][2, 9:11, 32:64], Region((2, 3), (9, 11), (32, 64))
    )
    report = opened.close()
    assert sum(group.count for group in report.quantised) == 2
    mixed["experts.down_proj"][1] = new["experts.down_proj"][1]
    mixed["experts.gate_up_proj"][2, 7:9] = new["experts.gate_up_proj"][2, 7:9]
    mixed["experts.gate_up_proj"][2, 9:11, 32:64] = new["experts.gate_up_proj"][2, 9:11, 32:64]
    want = model()
    other = session(name)
    load(other.bind(want), mixed)
    other.close()
    assert places(built) == before and same(run(built), run(want))


@kinds
def test_a_refit_with_holes_leaves_the_old_weights(name: str) -> None:
    built, opened = fresh(name, 0, bias=0.5), session(name)
    targets, old, before = opened.bind(built), run(built), places(built)
    new = values(10)
    opened.begin()
    load(targets, {key: new[key] for key in new if key != "experts.down_proj"})
    built["up"].bias.fill_(2.0)
    for _ in range(2):
        with pytest.raises(LoadError, match=r"experts\.down_proj: missing: nothing was loaded"):
            opened.close()
        assert same(run(built), old) and places(built) == before
    targets["experts.down_proj"].quantize(new["experts.down_proj"])
    opened.close()
    assert places(built) == before
    want = fresh(name, 10, bias=0.5)
    want["up"].bias.fill_(2.0)
    want["up"].prepare(want["up"].backend)
    assert same(run(built), run(want)), "what was missing came, and the bias that was held back"


@kinds
def test_a_load_that_was_given_up_is_forgotten(name: str) -> None:
    built, opened = fresh(name, 0, bias=0.5), session(name)
    targets, old, before = opened.bind(built), run(built), places(built)
    opened.begin()
    load(targets, {"up.weight": values(10)["up.weight"]})
    built["up"].bias.fill_(2.0)
    bad = values(10)["experts.down_proj"]
    bad[0, 0, 0] = NAN
    with pytest.raises(NonFiniteError):
        targets["experts.down_proj"].quantize(bad)
    opened.begin(subset=True)
    assert opened.close().quantised == ()
    assert same(run(built), old) and places(built) == before


def test_a_pack_that_refuses_leaves_every_module_as_it_was() -> None:
    built, opened = fresh("emulated", 0, bias=0.5), session("emulated", nonfinite="nan")
    targets, old, before = opened.bind(built), run(built), places(built)
    new = values(10)
    new["experts.down_proj"][1, 2, 3] = NAN
    for _ in range(2):
        opened.begin()
        load(targets, new)
        built["up"].bias.fill_(2.0)
        with pytest.raises(FormatError, match=r"^experts\.down_proj: packing"):
            opened.close()
        assert same(run(built), old) and places(built) == before
        with pytest.raises(LoadError, match="nothing was loaded"):
            opened.close()
    opened.begin()
    load(targets, values(20))
    opened.close()
    assert places(built) == before and same(run(built), run(fresh("emulated", 20, bias=0.5)))


@kinds
def test_a_bias_alone_is_packed_again(name: str) -> None:
    built, opened = fresh(name, 0, bias=0.5), session(name)
    opened.bind(built)
    before = places(built)
    opened.begin(subset=True)
    built["experts"].down_proj_bias.fill_(3.0)
    opened.close()
    want = fresh(name, 0, bias=0.5)
    with want["experts"].unprepared():
        want["experts"].down_proj_bias.fill_(3.0)
    assert places(built) == before and same(run(built), run(want))


def test_other_shapes_are_refused_before_anything_is_written() -> None:
    built, opened = fresh("emulated", 0), session("emulated")
    targets, old, before = opened.bind(built), run(built), places(built)
    opened.begin(subset=True)
    for source, region, error in (
        (weights(N + 1, K), None, ShapeError),
        (weights(N, K + 32), None, ShapeError),
        (weights(4, K), Region((0, 1), (N - 2, N + 2), (0, K)), LoadError),
        (weights(N, 16), Region((0, 1), (0, N), (0, 16)), ShapeError),
    ):
        with pytest.raises(error, match=r"up\.weight"):
            targets["up.weight"].quantize(source, region)
    with pytest.raises(LoadError, match=r"up\.weight"):
        opened.close()
    assert same(run(built), old) and places(built) == before


def test_an_engine_sends_fused_weights_and_single_experts_in_threads() -> None:
    """As trainers do: one expert's projections at a time, by the engine's loader, into a model that computes."""
    moe = engines.FusedMoE(E, K, N, rank=0, tp=1)
    built, opened = fresh("emulated", 0)["experts"], session("emulated")
    opened.bind(built, prefix="experts")
    names = {"w13": "experts.gate_up_proj", "w2": "experts.down_proj"}
    loaders = {short: opened.wrap(name, moe.weight_loader) for short, name in names.items()}
    places_of = {"w13": torch.empty(E, 2 * N, K, device="meta"), "w2": torch.empty(E, K, N, device="meta")}
    before, new = places(built), values(10)
    opened.begin()

    def send(expert: int) -> None:
        gate, up = new["experts.gate_up_proj"][expert].chunk(2)
        down = new["experts.down_proj"][expert]
        for short, source, shard in (("w2", down, "w2"), ("w13", up, "w3"), ("w13", gate, "w1")):
            loaders[short](Parameter(places_of[short], requires_grad=False), source, "weight", shard, expert)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(send, reversed(range(E))))
    opened.close()
    assert places(built) == before
    arguments = random_x(5, K), *random_routes(5, E, 2)
    assert torch.equal(built(*arguments), fresh("emulated", 10)["experts"](*arguments))


def test_the_report_watches_what_is_bound() -> None:
    opened = LoadSession(Mxfp4Config(backend="reference"), report=LoadReportBuilder(devices=()))
    opened.bind(Mxfp4Linear(N, K, device="meta"))
    assert opened.report.watched == ()


def test_canonical_bytes_are_freed_where_the_adapter_prepares() -> None:
    """At once: on a device a cycle would keep them until Python looks for one."""
    built, opened = model(), session("emulated")
    load(opened.bind(built, prepare=False), values(0))
    opened.check()
    canonical = [
        weakref.ref(built["up"]._buffers["weight"]),
        weakref.ref(built["experts"]._buffers["down_proj"]),
    ]
    collecting = gc.isenabled()
    gc.disable()
    try:
        for name in ("up", "experts"):
            built[name].prepare(BACKENDS["emulated"])
        assert [each() for each in canonical] == [None, None]
    finally:
        if collecting:
            gc.enable()
    assert same(run(built), run(fresh("emulated", 0)))
