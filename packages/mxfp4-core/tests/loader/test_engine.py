"""Layers of an engine: parameters without memory, the account of a whole model, loads again, weights made up."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from loader_layers import weights
from torch.nn import Parameter

from mxfp4_core import Mxfp4Config, quantize
from mxfp4_core.backend import Gate
from mxfp4_core.errors import BackendError, ConfigError, LoadError, ShapeError
from mxfp4_core.loader import EngineDecision, EngineLayer, EngineLoad
from mxfp4_core.modules import Mxfp4Experts, Mxfp4Linear
from mxfp4_core.testing import engine_loaders as engines
from mxfp4_core.testing.samples import random_routes, random_x

N, K, E = 32, 64, 3


def parameters(layer: EngineLayer, loader: Callable[..., Any], **attributes: Any) -> dict[str, Parameter]:
    """Do what an engine does with the places of a layer."""
    found = {}
    for place in layer.places():
        made = Parameter(torch.empty(place.shape, dtype=place.dtype, device="meta"), requires_grad=False)
        vars(made).update(attributes, weight_loader=layer.loader(place, loader))
        found[f"{place.matrix}{place.suffix}"] = made
    return found


def load_in(params: dict[str, Parameter], source: dict[str, torch.Tensor], *args: Any) -> None:
    for name, param in params.items():
        param.weight_loader(param, source[name], *args)


def row_parallel(
    load: EngineLoad, rank: int, tp: int, name: str = "down"
) -> tuple[EngineLayer, dict[str, Parameter]]:
    engine = engines.RowParallel(N, K * tp, rank, tp)
    layer = load.layer(Mxfp4Linear(N, K, device="meta"), name, dtype=torch.bfloat16, ranks=tp)
    return layer, parameters(layer, engine.weight_loader, input_dim=1)


@pytest.mark.parametrize("stored", [False, True])
def test_a_rank_computes_with_its_slice_of_the_bytes(stored: bool) -> None:
    weight = weights(N, 2 * K)
    whole = quantize(weight)
    for rank in range(2):
        load = EngineLoad(Mxfp4Config(), stored=stored)
        layer, params = row_parallel(load, rank, 2)
        given = {"weight": whole.parts["codes"], "weight_scale": whole.parts["scales"]}
        load_in(params, given if stored else {"weight": weight})
        assert all(param.is_meta for param in params.values())
        layer.finish()
        parts = layer.module.canonical("weight").parts
        for part, bytes in parts.items():
            assert torch.equal(bytes, whole.parts[part].chunk(2, 1)[rank])
        assert layer.module(random_x(3, K)).shape == (3, N)


def test_the_summary_comes_with_the_last_layer(caplog: pytest.LogCaptureFixture) -> None:
    load = EngineLoad(Mxfp4Config())
    made = [row_parallel(load, 0, 1, name) for name in ("a", "b")]
    load.kept("head", kind="ParallelLMHead", reason="an output head", nbytes=10)
    for _, params in made:
        load_in(params, {"weight": weights(N, K)})
    with caplog.at_level(logging.INFO, "mxfp4_core.loader"):
        made[0][0].finish()
        assert not caplog.records
        made[1][0].finish()
    assert "quantised 2 layers" in caplog.text and "an output head" in caplog.text


def test_one_error_names_all_that_is_missing_in_the_model() -> None:
    load = EngineLoad(Mxfp4Config(), stored=True)
    whole = quantize(weights(N, K))
    layers = {}
    for name in ("a", "b", "c"):
        layers[name], params = row_parallel(load, 0, 1, name)
        given = {"weight": whole.parts["codes"], "weight_scale": whole.parts["scales"]}
        if name == "b":
            params.pop("weight_scale")
        load_in(params if name != "c" else {}, given)
    with pytest.raises(
        LoadError, match=r"(?s)b\.weight: scales: missing.*c\.weight: missing: nothing was loaded"
    ):
        layers["a"].finish()


def test_another_load_ends_with_its_last_piece_and_keeps_the_memory() -> None:
    load = EngineLoad(Mxfp4Config())
    layer, params = row_parallel(load, 0, 1)
    load_in(params, {"weight": weights(N, K)})
    layer.finish()
    layer.finish()
    before = {name: buffer.data_ptr() for name, buffer in layer.module.named_buffers()}
    x = random_x(3, K)
    old = layer.module(x)
    param, new = params["weight"], weights(N, K, seed=7)
    half = layer.loader(layer.places()[0], lambda p, w: p.data[: N // 2].copy_(w))
    half(param, new[: N // 2])
    assert torch.equal(layer.module(x), old) and layer.touched
    with pytest.raises(LoadError, match="missing"):
        layer.finish()
    rest = layer.loader(layer.places()[0], lambda p, w: p.data[N // 2 :].copy_(w))
    rest(param, new[N // 2 :])
    assert torch.equal(layer.module.canonical("weight").codes, quantize(new).codes)
    assert before == {name: buffer.data_ptr() for name, buffer in layer.module.named_buffers()}
    assert not torch.equal(layer.module(x), old)
    layer.put("weight", {"": weights(N, K)})
    assert torch.equal(layer.module(x), old)


def test_experts_come_one_by_one() -> None:
    load = EngineLoad(Mxfp4Config())
    layer = load.layer(Mxfp4Experts(E, N, K, top_k=2, device="meta"), "experts", dtype=torch.bfloat16)
    up, down = weights(E, 2 * N, K), weights(E, K, N, seed=3)

    def loader(param: Any, loaded: torch.Tensor, weight_name: str, shard_id: str, expert_id: int) -> None:
        place = param.data[expert_id]
        place = {"w1": place[:N], "w3": place[N:], "w2": place}[shard_id] if shard_id != "w2" else place
        place.copy_(loaded)

    params = parameters(layer, loader)
    for expert in range(E):
        for shard, source in (("w1", up[expert, :N]), ("w3", up[expert, N:])):
            params["gate_up"].weight_loader(params["gate_up"], source, "x", shard, expert)
        params["down"].weight_loader(params["down"], down[expert], "x", "w2", expert)
    layer.finish()
    for matrix, source in (("gate_up", up), ("down", down)):
        assert torch.equal(layer.module.canonical(matrix).codes, quantize(source).codes)
    assert layer.module(random_x(4, K), *random_routes(4, E, 2)).shape == (4, K)


def with_biases() -> tuple[EngineLayer, Callable[..., None]]:
    """Return experts with biases, and what sends them weights and biases of a seed, each bias in two pieces."""
    module = Mxfp4Experts(E, N, K, top_k=2, bias=True, device="meta", dtype=torch.bfloat16)
    layer = EngineLoad(Mxfp4Config()).layer(module, "experts", dtype=torch.bfloat16)
    params = parameters(layer, lambda param, loaded: param.data.copy_(loaded))
    loaders = {}
    for name, meta in list(module.named_biases.items()):
        module._buffers[name] = torch.zeros(meta.shape, dtype=meta.dtype)
        loaders[name] = layer.bias_loader(name, lambda param, loaded, at: param[at].copy_(loaded[at]))

    def send(seed: int, what: str) -> None:
        if what == "weights":
            given = {"gate_up": weights(E, 2 * N, K, seed=seed), "down": weights(E, K, N, seed=seed)}
            load_in(params, given)
            return
        for name, load in loaders.items():
            bias = module.named_biases[name]
            for at in (slice(0, 1), slice(1, E)):
                load(bias, torch.full_like(bias, seed), at)

    return layer, send


@pytest.mark.parametrize("order", [("weights", "biases"), ("biases", "weights")])
def test_another_load_of_experts_ends_when_their_biases_have_come_too(order: tuple[str, str]) -> None:
    inputs = random_x(4, K), *random_routes(4, E, 2)
    wanted = []
    for seed in (1, 2):
        other, send = with_biases()
        for what in order:
            send(seed, what)
        other.finish()
        wanted.append(other.module(*inputs))
    layer, send = with_biases()
    for what in order:
        send(1, what)
    layer.finish()
    before = {name: buffer.data_ptr() for name, buffer in layer.module.named_buffers()}
    for seed in (2, 1):
        send(seed, order[0])
        # Nobody says that it is over.
        send(seed, order[1])
        assert not layer.touched
        assert torch.equal(layer.module(*inputs), wanted[seed - 1])
    assert not torch.equal(*wanted)
    assert before == {name: buffer.data_ptr() for name, buffer in layer.module.named_buffers()}


def test_what_cannot_be_is_said_when_the_layer_is_made() -> None:
    with pytest.raises(ShapeError, match=r"(?s)mlp\.down_proj.*k = 160 over 2 ranks"):
        EngineLoad(Mxfp4Config(), stored=True).layer(
            Mxfp4Linear(N, 80, device="meta"), "mlp.down_proj", dtype=torch.bfloat16, ranks=2
        )
    with pytest.raises(BackendError, match=r"(?s)mlp\.up_proj: .*cuda-marlin"):
        EngineLoad(Mxfp4Config(backend="cuda-marlin")).layer(
            Mxfp4Linear(N, K, device="meta"), "mlp.up_proj", dtype=torch.bfloat16
        )


@pytest.mark.parametrize("stored", [False, True])
def test_weights_may_be_made_up(stored: bool) -> None:
    load = EngineLoad(Mxfp4Config(tail="pad"), stored=stored)
    layer = load.layer(Mxfp4Experts(E, N, 40, top_k=2, device="meta"), "experts", dtype=torch.bfloat16)
    layer.make_up()
    layer.finish()
    y = layer.module(random_x(4, 40), *random_routes(4, E, 2))
    assert y.isfinite().all() and y.abs().sum() > 0


def test_parts_have_the_names_that_the_checkpoint_gives_them() -> None:
    decision = EngineDecision(True, "in the checkpoint", suffixes={"codes": "_packed", "scales": "_scale"})
    load = EngineLoad(Mxfp4Config(), stored=True)
    layer = load.layer(Mxfp4Linear(N, K, device="meta"), "up", dtype=torch.bfloat16, decision=decision)
    assert [place.suffix for place in layer.places()] == ["_packed", "_scale"]


class Plain:
    """What an engine takes for a layer in high precision; it hears when the model is loaded."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def process_weights_after_loading(self, layer: str) -> None:
        self.heard.append(layer)


def test_what_is_refused_stays_where_the_config_says_so(caplog: pytest.LogCaptureFixture) -> None:
    load, plain = EngineLoad(Mxfp4Config(refused="keep")), Plain()
    layer, params = row_parallel(load, 0, 1)
    with pytest.raises(ShapeError) as caught:
        load.linear(
            "odd", N, 48, whole_k=96, dtype=torch.bfloat16, decision=EngineDecision(True, "everything")
        )
    assert load.refuse("odd", plain, kind="linear", error=caught.value) is plain
    assert "odd stays in high precision, refused: odd.weight cannot be sharded along k" in caplog.text
    load_in(params, {"weight": weights(N, K)})
    layer.finish()
    plain.process_weights_after_loading("odd")
    assert plain.heard == ["odd"]
    (kept,) = load.report.build().kept
    assert kept.kind == "linear" and kept.reason == "refused: odd.weight cannot be sharded along k"


def test_a_method_that_quantises_nothing_is_refused() -> None:
    load = EngineLoad(Mxfp4Config(refused="keep"))
    error = BackendError("up", seen="no backend", rule="one takes it", fix="name another")
    plain = load.refuse("up", Plain(), kind="linear", error=error)
    with pytest.raises(ConfigError, match=r"(?s)nothing is left to quantise.*1 layers.*up: no backend"):
        plain.process_weights_after_loading("up")


STORED = EngineDecision(True, "in the checkpoint")


def loaded(layer: Any, module: Any, stored: dict[Any, Any]) -> None:
    """Load a layer as an engine does that cuts nothing."""
    for place in layer.places():
        param = torch.empty(place.shape, dtype=place.dtype, device="meta")
        follow = layer.loader(place, lambda param, weight: param.copy_(weight))
        follow(param, stored[place.matrix].parts[place.part])
    layer.finish()


@pytest.mark.parametrize("format", ["mxfp4", "mxfp8"])
def test_of_a_folder_what_no_backend_takes_is_widened_where_the_config_says_so(
    caplog: pytest.LogCaptureFixture, format: str
) -> None:
    load = EngineLoad(Mxfp4Config(refused="keep", backend="cuda-marlin"), stored=True)
    decision = replace(STORED, format=format)
    layer = load.linear("up", N, K, whole_k=K, dtype=torch.bfloat16, decision=decision)
    assert layer.widens and "up stays in high precision, refused: " in caplog.text
    stored = quantize(weights(N, K), format=format)
    loaded(layer, layer.module, {"weight": stored})
    host = torch.nn.Module()
    for place in layer.places():
        host.register_parameter(f"weight{place.suffix}", None)
    with pytest.raises(ShapeError, match="room for"):
        layer.widen(host, lambda: host.register_buffer("weight", torch.empty(N, K + 1)), {"weight": "weight"})
    host = torch.nn.Module()
    make = functools.partial(host.register_buffer, "weight", torch.empty(N, K, dtype=torch.bfloat16))
    layer.widen(host, make, {"weight": "weight"})
    assert torch.equal(host.get_buffer("weight"), stored.dequantize(torch.bfloat16))
    assert all(part.is_meta for part in layer.module.buffers()), "the codes are held"
    (kept,) = load.report.build().kept
    assert kept.kind == "linear" and kept.reason.startswith("refused: no backend for linear")


def test_experts_whose_gate_is_unknown_are_widened_too() -> None:
    def gate() -> Gate:
        raise ConfigError("experts", seen="activation 'tanh'", rule="SiLU", fix="keep them")

    config = Mxfp4Config(refused="keep")
    load = EngineLoad(config, stored=True)
    how: dict[str, Any] = {"ranks": 1, "dtype": torch.bfloat16, "decision": STORED, "top_k": 2, "gate": gate}
    layer = load.experts("experts", E, 64, 96, **how)
    stored = {"gate_up": quantize(weights(E, 128, 96)), "down": quantize(weights(E, 96, 64))}
    loaded(layer, layer.module, stored)
    host = torch.nn.Module()

    def make() -> None:
        for name, each in stored.items():
            host.register_buffer(name, torch.empty(each.shape, dtype=torch.bfloat16))

    layer.widen(host, make, {"gate_up": "gate_up", "down": "down"})
    assert all(torch.equal(host.get_buffer(name), each.dequantize()) for name, each in stored.items())
    for other in (EngineLoad(config), EngineLoad(Mxfp4Config(), stored=True)):
        with pytest.raises(ConfigError, match="tanh"):
            other.experts("experts", E, 64, 96, **how)


@pytest.mark.parametrize(("refused", "stored"), [("error", False), ("keep", True)])
def test_what_is_refused_is_an_error_else(refused: Any, stored: bool) -> None:
    load = EngineLoad(Mxfp4Config(refused=refused), stored=stored)
    error = BackendError("up", seen="no backend", rule="one takes it", fix="name another")
    with pytest.raises(BackendError, match=r"(?s)up.*name another") as caught:
        load.refuse("up", Plain(), kind="linear", error=error)
    assert ("mxfp4 dequantize" in caught.value.fix) is stored
