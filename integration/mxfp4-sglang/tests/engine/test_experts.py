"""Real stacks of experts of SGLang: under tensor and expert parallelism, online and saved, and what they compute."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sgl_layers import parts_of, weights
from sglang.srt.layers.moe.fused_moe_triton import layer as moe_layer
from sglang.srt.layers.moe.topk import StandardTopKOutput
from sglang.srt.layers.quantization import QUANTIZATION_METHODS
from sglang.srt.layers.quantization.unquant import UnquantizedFusedMoEMethod

from mxfp4_core import MxTensor, quantize
from mxfp4_core.errors import ConfigError, LoadError, ShapeError

E, H, I, TOP = 4, 64, 64, 2  # noqa: E741 - experts, hidden, intermediate, experts per token
NAME = "model.layers.0.mlp.experts"
SHAPES = {"w1": (I, H), "w3": (I, H), "w2": (H, I)}


def make(stored: bool = False, **options: Any) -> Any:
    kind = QUANTIZATION_METHODS["mxfp4-core"]
    how = kind.from_config({"quant_method": "mxfp4-core"}) if stored else kind()
    sizes = {"num_experts": E, "hidden_size": H, "intermediate_size": I, "layer_id": 0, "top_k": TOP}
    return moe_layer.FusedMoE(**{**sizes, **options}, quant_config=how, prefix=NAME)


def sources() -> dict[tuple[str, int], torch.Tensor]:
    return {
        (shard, expert): weights(*shape, seed=10 * expert + place)
        for place, (shard, shape) in enumerate(SHAPES.items())
        for expert in range(E)
    }


def load(layer: Any, given: dict[tuple[str, int], torch.Tensor], suffix: str = "") -> None:
    params = dict(layer.named_parameters())
    for (shard, expert), source in given.items():
        name = f"{'w2' if shard == 'w2' else 'w13'}_weight{suffix}"
        params[name].weight_loader(params[name], source, f"{NAME}.{name}", shard_id=shard, expert_id=expert)


def finish(layer: Any) -> Any:
    layer.quant_method.process_weights_after_loading(layer)
    return layer


def expected(part: str, ep: int, tp: int, rank: int) -> dict[str, torch.Tensor]:
    """Return what a rank holds of a part: gate above up, its experts, its slice of each."""
    made = {key: quantize(source).parts[part] for key, source in sources().items()}
    first, count, cut = (rank * E // ep if ep > 1 else 0), E // ep, (rank if tp > 1 else 0)
    held = range(first, first + count)
    gate_up = [torch.cat([made[s, e].chunk(tp, 0)[cut] for s in ("w1", "w3")]) for e in held]
    return {
        "gate_up": torch.stack(gate_up),
        "down": torch.stack([made["w2", e].chunk(tp, 1)[cut] for e in held]),
    }


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(("ep", "tp"), [(1, 1), (2, 1), (1, 2)])
def test_each_rank_holds_its_experts(parallel: Any, ep: int, tp: int, stored: bool) -> None:
    for rank in range(ep * tp):
        parallel(ep, tp, rank)
        layer = make(stored)
        if stored:
            made = {key: quantize(source) for key, source in sources().items()}
            load(layer, {key: each.codes for key, each in made.items()})
            load(layer, {key: each.scales for key, each in made.items()}, "_scale")
        else:
            load(layer, sources())
        finish(layer)
        for part in ("codes", "scales"):
            for matrix, want in expected(part, ep, tp, rank).items():
                assert torch.equal(parts_of(layer, matrix)[part], want)


def routed(seed: int = 5, tokens: int = 6) -> tuple[torch.Tensor, StandardTopKOutput]:
    scores = torch.randn(tokens, E, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    chosen = scores.softmax(-1).topk(TOP)
    return weights(tokens, H, seed=seed), StandardTopKOutput(chosen.values, chosen.indices.int(), scores)


def reference(
    x: torch.Tensor,
    routes: StandardTopKOutput,
    factor: float = 1.0,
    gate: Callable[[torch.Tensor], torch.Tensor] = torch.nn.functional.silu,
) -> torch.Tensor:
    made = {key: quantize(source).dequantize(torch.float32) for key, source in sources().items()}
    result = torch.zeros(x.shape, dtype=torch.float32)
    for token, (ids, shares) in enumerate(zip(routes.topk_ids, routes.topk_weights, strict=True)):
        for expert, share in zip(ids.tolist(), shares, strict=True):
            first, up = (made[shard, expert] @ x[token].float() for shard in ("w1", "w3"))
            result[token] += share * factor * (made["w2", expert] @ (gate(first) * up))
    return result


def close(found: torch.Tensor, want: torch.Tensor) -> bool:
    """Say whether two results differ by the rounding of BF16 between the matmuls, and no more."""
    return bool((found.float() - want).abs().max() <= 2**-6 * want.abs().max())


@pytest.mark.parametrize("factor", [None, 2.5])
def test_they_compute(parallel: Any, factor: float | None) -> None:
    layer = make(routed_scaling_factor=factor)
    load(layer, sources())
    x, routes = routed()
    assert close(finish(layer)(x, routes), reference(x, routes, factor or 1.0))


@pytest.mark.parametrize("function", ["gelu", "gelu_tanh"])
def test_another_function_with_a_gate(parallel: Any, function: str) -> None:
    layer = make(activation=function)
    load(layer, sources())
    x, routes = routed()
    kind = "tanh" if function == "gelu_tanh" else "none"
    found = finish(layer)(x, routes)
    assert close(
        found, reference(x, routes, gate=lambda each: torch.nn.functional.gelu(each, approximate=kind))
    )


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("tp", [1, 2])
def test_experts_without_a_gate(parallel: Any, tp: int, stored: bool) -> None:
    """SGLang loads their first weight as w1, and names no w3."""
    given = {key: each for key, each in sources().items() if key[0] != "w3"}
    made = {key: quantize(source) for key, source in given.items()}
    x, routes = routed()
    total = torch.zeros(x.shape, dtype=torch.float32)
    for rank in range(tp):
        parallel(1, tp, rank)
        layer = make(stored, activation="relu2", is_gated=False)
        if stored:
            load(layer, {key: each.codes for key, each in made.items()})
            load(layer, {key: each.scales for key, each in made.items()}, "_scale")
        else:
            load(layer, given)
        total += finish(layer)(x, routes).float()
    want = torch.zeros(x.shape, dtype=torch.float32)
    for token, (ids, shares) in enumerate(zip(routes.topk_ids, routes.topk_weights, strict=True)):
        for expert, share in zip(ids.tolist(), shares, strict=True):
            first, second = (made[shard, expert].dequantize(torch.float32) for shard in ("w1", "w2"))
            want[token] += share * (second @ (first @ x[token].float()).relu().square())
    assert close(total, want)


def test_the_shares_of_expert_parallel_ranks_add_up(parallel: Any) -> None:
    x, routes = routed()
    total = torch.zeros(x.shape, dtype=torch.float32)
    for rank in range(2):
        parallel(2, 1, rank)
        layer = make()
        load(layer, sources())
        total += finish(layer)(x, routes).float()
    assert close(total, reference(x, routes))


def test_missing_experts_are_named(parallel: Any) -> None:
    layer = make()
    load(layer, {key: source for key, source in sources().items() if key != ("w3", 2)})
    with pytest.raises(LoadError, match=r"missing: expert 2, rows 64:128, k 0:64 \(shard w3\)"):
        finish(layer)


def test_a_tp_size_that_cuts_a_block_is_refused(parallel: Any) -> None:
    parallel(1, 2, 0)
    with pytest.raises(ShapeError, match="experts"):
        make(intermediate_size=96)


def test_what_is_refused_stays_where_the_config_says_so(
    parallel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MXFP4_CONFIG", '{"refused": "keep"}')
    parallel(1, 2, 0)
    layer = make(intermediate_size=96)
    assert isinstance(layer.quant_method, UnquantizedFusedMoEMethod)
    assert layer.w13_weight.shape == (E, 96, H)


@pytest.mark.parametrize("options", [{}, {"apply_router_weight_on_input": True}], ids=["backend", "routing"])
@pytest.mark.parametrize(("ep", "tp"), [(1, 1), (2, 1), (1, 2)])
def test_of_a_folder_what_nobody_takes_is_widened(
    parallel: Any, monkeypatch: pytest.MonkeyPatch, ep: int, tp: int, options: dict[str, Any]
) -> None:
    backend = {} if options else {"backend": "cuda-marlin"}
    monkeypatch.setenv("MXFP4_CONFIG", json.dumps({"refused": "keep", **backend}))
    made = {key: quantize(source) for key, source in sources().items()}
    for rank in range(ep * tp):
        parallel(ep, tp, rank)
        layer = make(stored=True, **options)
        load(layer, {key: each.codes for key, each in made.items()})
        load(layer, {key: each.scales for key, each in made.items()}, "_scale")
        finish(layer)
        wanted = [expected(part, ep, tp, rank) for part in ("codes", "scales")]
        for matrix, name in (("gate_up", "w13_weight"), ("down", "w2_weight")):
            codes, scales = (each[matrix] for each in wanted)
            shape = torch.Size((*codes.shape[:-1], 2 * codes.shape[-1]))
            assert torch.equal(getattr(layer, name), MxTensor(codes, scales, shape).dequantize())
        assert sorted(dict(layer.named_parameters())) == ["w13_weight", "w2_weight"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"activation": "situ"}, "activation 'situ'"),
        ({"activation": "gelu_tanh", "is_gated": False}, "without a gate"),
        ({"apply_router_weight_on_input": True}, "on the input"),
        ({"no_combine": True}, "one by one"),
    ],
)
def test_what_they_do_not_do_is_refused(parallel: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make(**options)


def test_another_runner_is_refused(parallel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.layers.moe.utils import MoeRunnerBackend

    from mxfp4_sglang import compat

    monkeypatch.setattr(compat, "get_moe_runner_backend", lambda: MoeRunnerBackend("flashinfer_trtllm"))
    with pytest.raises(ConfigError, match="--moe-runner-backend flashinfer_trtllm"):
        make()
