"""Real linear layers of SGLang: what each rank holds, online and from saved parts, and what it computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sgl_layers import parts_of, weights
from sglang.srt.layers.linear import (
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from sglang.srt.layers.quantization import QUANTIZATION_METHODS
from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod
from sglang.srt.layers.vocab_parallel_embedding import VocabParallelEmbedding

from mxfp4_core import MxTensor, quantize
from mxfp4_core.errors import BackendError, ConfigError, LoadError, PatternError, ShapeError

FORMATS = pytest.mark.parametrize("method", ["mxfp4-core", "mxfp8-core"])
PREFIX = "model.layers.0."


def config(method: str = "mxfp4-core", stored: bool = False) -> Any:
    kind = QUANTIZATION_METHODS[method]
    return kind.from_config({"quant_method": "mxfp4-core"}) if stored else kind()


def gate_up(how: Any, rank: int = 0, tp: int = 1, k: int = 64) -> Any:
    return MergedColumnParallelLinear(
        k,
        [96, 96],
        bias=False,
        quant_config=how,
        prefix=f"{PREFIX}mlp.gate_up_proj",
        tp_rank=rank,
        tp_size=tp,
    )


def qkv(how: Any, rank: int = 0, tp: int = 1) -> Any:
    return QKVParallelLinear(
        64,
        32,
        4,
        2,
        bias=False,
        quant_config=how,
        prefix=f"{PREFIX}self_attn.qkv_proj",
        tp_rank=rank,
        tp_size=tp,
    )


def down(how: Any, rank: int = 0, tp: int = 1, k: int = 128) -> Any:
    return RowParallelLinear(
        k, 64, bias=False, quant_config=how, prefix=f"{PREFIX}mlp.down_proj", tp_rank=rank, tp_size=tp
    )


CASES: dict[str, tuple[Callable[..., Any], dict[Any, tuple[int, int]], int]] = {
    "merged": (gate_up, {0: (96, 64), 1: (96, 64)}, 0),
    "qkv": (qkv, {"q": (128, 64), "k": (64, 64), "v": (64, 64)}, 0),
    "row": (down, {None: (64, 128)}, 1),
}
KINDS = pytest.mark.parametrize("kind", list(CASES))


def load(layer: Any, sources: dict[Any, torch.Tensor], name: str = "weight") -> None:
    param = dict(layer.named_parameters())[name]
    for shard, source in sources.items():
        param.weight_loader(param, source, *([] if shard is None else [shard]))


def finish(layer: Any) -> None:
    layer.quant_method.process_weights_after_loading(layer)


@FORMATS
@KINDS
@pytest.mark.parametrize("tp", [1, 2])
def test_each_rank_holds_the_bytes_of_its_slice(kind: str, tp: int, method: str) -> None:
    make, shapes, axis = CASES[kind]
    sources = {shard: weights(*shape, seed=place) for place, (shard, shape) in enumerate(shapes.items())}
    form = {"mxfp4-core": "mxfp4", "mxfp8-core": "mxfp8"}[method]
    whole = {shard: quantize(source, format=form) for shard, source in sources.items()}
    for rank in range(tp):
        layer = make(config(method), rank, tp)
        assert all(each.is_meta for each in layer.parameters())  # nothing is held in high precision
        load(layer, sources)
        finish(layer)
        for part, found in parts_of(layer).items():
            want = torch.cat([each.parts[part].chunk(tp, axis)[rank] for each in whole.values()])
            assert torch.equal(found.view(torch.uint8), want.view(torch.uint8))


@KINDS
@pytest.mark.parametrize("tp", [1, 2])
def test_saved_parts_are_kept_byte_for_byte(kind: str, tp: int) -> None:
    make, shapes, axis = CASES[kind]
    whole = {shard: quantize(weights(*shape, seed=n)) for n, (shard, shape) in enumerate(shapes.items())}
    for rank in range(tp):
        layer = make(config(stored=True), rank, tp)
        for part, name in (("codes", "weight"), ("scales", "weight_scale")):
            load(layer, {shard: each.parts[part] for shard, each in whole.items()}, name)
        finish(layer)
        for part, found in parts_of(layer).items():
            assert torch.equal(
                found, torch.cat([each.parts[part].chunk(tp, axis)[rank] for each in whole.values()])
            )


@FORMATS
def test_it_computes_with_what_it_holds(method: str) -> None:
    layer = ReplicatedLinear(64, 48, bias=True, quant_config=config(method), prefix=f"{PREFIX}mlp.fc1")
    load(layer, {None: weights(48, 64)})
    layer.bias.data.copy_(weights(48, seed=2))
    finish(layer)
    x = weights(5, 64, seed=3)
    held: MxTensor = layer.get_submodule("mxfp4").canonical("weight")
    want = torch.nn.functional.linear(x.float(), held.dequantize(torch.float32), layer.bias.float())
    assert (layer(x)[0].float() - want).abs().max() <= 2**-7 * want.abs().max()


def test_the_weight_looks_like_the_one_in_high_precision() -> None:
    layer = gate_up(config())
    load(layer, {0: weights(96, 64), 1: weights(96, 64, seed=1)})
    finish(layer)
    assert (layer.weight.shape, layer.weight.dtype, layer.weight.device.type) == (
        (192, 64),
        torch.bfloat16,
        "cpu",
    )
    values = layer.weight[:96].float() @ torch.ones(64, dtype=torch.float32)
    assert torch.equal(
        values, quantize(weights(96, 64)).dequantize(torch.float32) @ torch.ones(64, dtype=torch.float32)
    )


def test_other_weights_take_the_same_memory() -> None:
    layer = gate_up(config())
    first = {0: weights(96, 64), 1: weights(96, 64, seed=1)}
    load(layer, first)
    finish(layer)
    address = parts_of(layer)["codes"].data_ptr()
    second = {0: weights(96, 64, seed=7), 1: weights(96, 64, seed=8)}
    load(layer, second)  # update_weights of SGLang calls load_weights, and nothing else
    found = parts_of(layer)
    assert found["codes"].data_ptr() == address
    assert torch.equal(found["codes"], torch.cat([quantize(each).codes for each in second.values()]))


def test_missing_scales_are_an_error_that_names_them() -> None:
    layer = gate_up(config(stored=True))
    made = [quantize(weights(96, 64, seed=n)) for n in range(2)]
    load(layer, {0: made[0].codes, 1: made[1].codes})
    load(layer, {0: made[0].scales}, "weight_scale")
    with pytest.raises(LoadError, match=r"gate_up_proj.weight.*scales: missing: rows 96:192"):
        finish(layer)


def test_a_tp_size_that_cuts_a_block_is_refused_before_loading() -> None:
    with pytest.raises(ShapeError, match="down_proj") as caught:
        down(config(), tp=2, k=96)
    assert "96" in str(caught.value) and "32" in caught.value.rule


def test_what_is_refused_stays_where_the_config_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MXFP4_CONFIG", '{"refused": "keep"}')
    how = config()
    layer, other = down(how, tp=2, k=96), gate_up(how)
    assert isinstance(layer.quant_method, UnquantizedLinearMethod)
    assert not isinstance(other.quant_method, UnquantizedLinearMethod)
    assert "mlp.down_proj stays in high precision" in caplog.text
    load(layer, {None: weights(64, 96)})
    finish(layer)
    assert torch.equal(layer.weight, weights(64, 96)[:, :48])


@KINDS
@pytest.mark.parametrize("tp", [1, 2])
def test_of_a_folder_what_no_backend_takes_is_widened(
    monkeypatch: pytest.MonkeyPatch, kind: str, tp: int
) -> None:
    monkeypatch.setenv("MXFP4_CONFIG", '{"backend": "cuda-marlin", "refused": "keep"}')
    make, sizes, cut = CASES[kind]
    made = {shard: quantize(weights(*size, seed=n)) for n, (shard, size) in enumerate(sizes.items())}
    for rank in range(tp):
        layer = make(config(stored=True), rank, tp)
        assert isinstance(layer.quant_method, UnquantizedLinearMethod)
        load(layer, {shard: each.codes for shard, each in made.items()})
        load(layer, {shard: each.scales for shard, each in made.items()}, "weight_scale")
        for _ in range(2):
            finish(layer)
        want = torch.cat([each.dequantize().chunk(tp, cut)[rank] for each in made.values()])
        assert torch.equal(layer.weight, want) and [*dict(layer.named_parameters())] == ["weight"]


def test_of_a_folder_what_cuts_a_block_is_refused_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MXFP4_CONFIG", '{"refused": "keep"}')
    with pytest.raises(ShapeError, match="down_proj") as caught:
        down(config(stored=True), tp=2, k=96)
    assert "widens whole blocks" in caught.value.rule and "mxfp4 dequantize" in caught.value.fix


def test_a_method_that_quantises_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MXFP4_CONFIG", '{"backend": "cuda-marlin", "refused": "keep"}')
    layer = down(config())
    load(layer, {None: weights(64, 128)})
    with pytest.raises(ConfigError, match=r"(?s)nothing is left to quantise.*down_proj.*cuda-marlin"):
        finish(layer)


def test_no_backend_is_an_error_with_the_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MXFP4_CONFIG", '{"backend": "cuda-marlin"}')
    with pytest.raises(BackendError, match="gate_up_proj") as caught:
        gate_up(config())
    assert "cuda-marlin  rejected      the device is cpu" in caught.value.seen
    assert "reference    accepted      widens the weights in every call" in caught.value.seen


def test_routers_heads_and_ignored_layers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MXFP4_CONFIG", '{"ignore": ["layers.0.mlp"]}')
    how = config()
    assert isinstance(gate_up(how).quant_method, UnquantizedLinearMethod)
    router = ReplicatedLinear(64, 8, bias=False, quant_config=how, prefix=f"{PREFIX}mlp.gate")
    assert isinstance(router.quant_method, UnquantizedLinearMethod)
    assert not isinstance(qkv(how).quant_method, UnquantizedLinearMethod)
    absorbed = ReplicatedLinear(64, 64, bias=False, quant_config=how, prefix=f"{PREFIX}self_attn.kv_b_proj")
    assert isinstance(absorbed.quant_method, UnquantizedLinearMethod)


def test_embeddings_and_heads_stay_and_cannot_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    class Table(VocabParallelEmbedding):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

    assert config().get_quant_method(Table(), "lm_head") is None
    forced = '{"overrides": [{"pattern": "lm_head", "keep": false}]}'
    monkeypatch.setenv("MXFP4_CONFIG", forced)
    with pytest.raises(ConfigError, match="lm_head cannot be MXFP4 in SGLang"):
        config().get_quant_method(Table(), "lm_head")


def test_a_pattern_that_splits_a_fused_layer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MXFP4_CONFIG", '{"ignore": ["q_proj"]}')
    with pytest.raises(PatternError, match="qkv_proj would be split"):
        qkv(config())


def test_a_pattern_that_matches_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MXFP4_CONFIG", '{"ignore": ["gate_up_prj"]}')
    layer = gate_up(config())
    load(layer, {0: weights(96, 64), 1: weights(96, 64, seed=1)})
    with pytest.raises(PatternError, match="match nothing"):
        finish(layer)


def test_a_config_that_contradicts_the_method_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MXFP4_CONFIG", '{"format": "mxfp8"}')
    with pytest.raises(ConfigError, match="contradicts"):
        config()
