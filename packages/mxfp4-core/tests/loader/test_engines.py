"""Loaders of engines, wrapped: each rank's bytes equal the slice of the whole weight's bytes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import Parameter

from mxfp4_core import Mxfp4Config, MxTensor, quantize
from mxfp4_core.errors import ShapeError
from mxfp4_core.loader import LoadSession, QuantTarget
from mxfp4_core.testing import engine_loaders as engines

torch.set_num_threads(1)

SIZES = pytest.mark.parametrize("tp", [1, 2, 4, 8])


def weights(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * 0.05).to(dtype)


def register(target: QuantTarget, loader: Callable[..., Any], **attributes: Any) -> Parameter:
    """Do what an adapter does: make the codes the engine's parameter, with the engine's attributes on it."""
    param = Parameter(target.codes, requires_grad=False)
    for key, value in {"weight_loader": loader, **attributes}.items():
        setattr(param, key, value)
    return param


def assert_same(got: MxTensor, want: MxTensor) -> None:
    assert torch.equal(got.codes, want.codes)
    assert torch.equal(got.scales, want.scales)


def rows_of(whole: MxTensor, *ranges: tuple[int, int]) -> MxTensor:
    codes = torch.cat([whole.codes[..., start:stop, :] for start, stop in ranges], dim=-2)
    scales = torch.cat([whole.scales[..., start:stop, :] for start, stop in ranges], dim=-2)
    return MxTensor(codes, scales, torch.Size((*codes.shape[:-1], whole.shape[-1])), whole.profile)


def cols_of(whole: MxTensor, start: int, stop: int) -> MxTensor:
    codes, scales = whole.codes[..., start // 2 : stop // 2], whole.scales[..., start // 32 : stop // 32]
    return MxTensor(codes, scales, torch.Size((*whole.shape[:-1], stop - start)), whole.profile)


def loaded(
    shape: tuple[int, ...], loader: Callable[..., Any], calls: list[tuple[Any, ...]], **attributes: Any
) -> MxTensor:
    """Load one parameter through a wrapped loader and return what it holds."""
    session = LoadSession()
    target = session.target("layer.weight", shape, dtype=torch.bfloat16)
    param = register(target, session.wrap("layer.weight", loader), **attributes)
    for call in calls:
        param.weight_loader(param, *call)
    session.close()
    return target.mx_tensor()


@SIZES
def test_column_parallel(tp: int) -> None:
    weight = weights(48, 96)
    for rank in range(tp):
        layer = engines.ColumnParallel(48, 96, rank, tp)
        got = loaded(layer.shape, layer.weight_loader, [(weight,)], output_dim=0)
        assert_same(got, rows_of(quantize(weight), (rank * 48 // tp, (rank + 1) * 48 // tp)))


@SIZES
def test_row_parallel_of_whole_blocks(tp: int) -> None:
    weight = weights(8, 512)
    step = 512 // tp
    for rank in range(tp):
        layer = engines.RowParallel(8, 512, rank, tp)
        got = loaded(layer.shape, layer.weight_loader, [(weight,)], input_dim=1)
        assert_same(got, cols_of(quantize(weight), rank * step, (rank + 1) * step))


@SIZES
@pytest.mark.parametrize("fused", [False, True], ids=["per-shard", "fused-checkpoint"])
def test_merged_column(tp: int, fused: bool) -> None:
    gate, up = weights(64, 64, seed=1), weights(32, 64, seed=2)
    for rank in range(tp):
        layer = engines.MergedColumn([64, 32], 64, rank, tp)
        calls = [(torch.cat([gate, up]),)] if fused else [(up, 1), (gate, 0)]
        got = loaded(layer.shape, layer.weight_loader, calls, output_dim=0)
        g, u = 64 // tp, 32 // tp
        ranges = (rank * g, (rank + 1) * g), (64 + rank * u, 64 + (rank + 1) * u)
        assert_same(got, rows_of(quantize(torch.cat([gate, up])), *ranges))


@SIZES
@pytest.mark.parametrize("style", ["attributes", "methods", "packed"])
def test_qkv_with_grouped_and_replicated_heads(tp: int, style: str) -> None:
    """8 query heads over 2 key and value heads: above TP 2, ranks share a head."""
    head, k = 4, 64
    parts = {"q": weights(8 * head, k, seed=1), "k": weights(2 * head, k, seed=2), "v": weights(2 * head, k)}
    for rank in range(tp):
        cls = engines.QKV if style == "attributes" else engines.QKVMethods
        layer = cls(8, 2, head, k, rank, tp)
        session = LoadSession()
        target = session.target("qkv.weight", layer.shape, dtype=torch.bfloat16)
        wrapped = session.wrap("qkv.weight", layer.weight_loader)
        if style == "attributes":
            param = register(target, wrapped, output_dim=0)
        elif style == "methods":
            param = engines.EngineParameter(target.codes, weight_loader=wrapped, rank=rank)
        else:
            packed = {"packed_dim": 0, "packed_factor": 2}
            param = engines.PackedParameter(target.codes, weight_loader=wrapped, rank=rank, **packed)
        for shard in ("v", "q", "k"):
            param.weight_loader(param, parts[shard], loaded_shard_id=shard)
        session.close()
        want = []
        for shard, heads in (("q", 8), ("k", 2), ("v", 2)):
            mine = max(1, heads // tp) * head
            index = rank // max(1, tp // heads)
            want.append(rows_of(quantize(parts[shard]), (index * mine, (index + 1) * mine)))
        codes, scales = torch.cat([one.codes for one in want]), torch.cat([one.scales for one in want])
        assert_same(target.mx_tensor(), MxTensor(codes, scales, torch.Size(layer.shape), want[0].profile))


@SIZES
def test_row_parallel_through_parameter_methods(tp: int) -> None:
    weight = weights(8, 256)
    step = 256 // tp
    for rank in range(tp):
        layer = engines.RowMethods(8, 256, rank, tp)
        session = LoadSession()
        target = session.target("o.weight", layer.shape, dtype=torch.bfloat16)
        wrapped = session.wrap("o.weight", layer.weight_loader)
        param = engines.EngineParameter(target.codes, weight_loader=wrapped, rank=rank)
        param.weight_loader(param, weight)
        session.close()
        assert_same(target.mx_tensor(), cols_of(quantize(weight), rank * step, (rank + 1) * step))


def load_experts(
    moe: engines.FusedMoE, w1: torch.Tensor, w2: torch.Tensor, w3: torch.Tensor
) -> tuple[MxTensor, MxTensor]:
    session = LoadSession()
    shapes = {"w13": moe.w13, "w2": moe.w2}
    targets = {name: session.target(name, shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    params = {name: register(one, session.wrap(name, moe.weight_loader)) for name, one in targets.items()}
    for expert in range(len(w1)):
        for shard, source in (("w3", w3), ("w1", w1), ("w2", w2)):
            param = params["w2" if shard == "w2" else "w13"]
            name = f"experts.{expert}.{shard}.weight"
            here = param.weight_loader(param, source[expert], name, shard_id=shard, expert_id=expert)
            assert here is (moe.map[expert] >= 0)
    session.close()
    return targets["w13"].mx_tensor(), targets["w2"].mx_tensor()


@pytest.mark.parametrize("ep", [1, 2, 4])
@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("gate_first", [True, False])
def test_fused_experts(ep: int, tp: int, gate_first: bool) -> None:
    experts, hidden, inter = 8, 64, 128
    w1, w3 = weights(experts, inter, hidden, seed=1), weights(experts, inter, hidden, seed=3)
    w2 = weights(experts, hidden, inter, seed=2)
    q1, q2, q3 = quantize(w1), quantize(w2), quantize(w3)
    for group in range(ep):
        mine = range(group * experts // ep, (group + 1) * experts // ep)
        expert_map = [mine.index(expert) if expert in mine else -1 for expert in range(experts)]
        for rank in range(tp):
            moe = engines.FusedMoE(experts, hidden, inter, rank, tp, expert_map, gate_first)
            w13_got, w2_got = load_experts(moe, w1, w2, w3)
            step = inter // tp
            rows = rank * step, (rank + 1) * step
            first, second = (q1, q3) if gate_first else (q3, q1)
            halves = [rows_of(half, rows) for half in (first, second)]
            for local, expert in enumerate(mine):
                want = torch.cat([half.codes[expert] for half in halves])
                assert torch.equal(w13_got.codes[local], want)
                want = torch.cat([half.scales[expert] for half in halves])
                assert torch.equal(w13_got.scales[local], want)
                down = cols_of(q2, *rows)
                assert torch.equal(w2_got.codes[local], down.codes[expert])
                assert torch.equal(w2_got.scales[local], down.scales[expert])


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_experts_of_a_fused_checkpoint(tp: int) -> None:
    """One tensor holds every expert: copies are boxes through all of them."""
    w13, w2 = weights(4, 2 * 128, 64, seed=1), weights(4, 64, 128, seed=2)
    step = 128 // tp
    for rank in range(tp):
        moe = engines.FusedMoE(4, 64, 128, rank, tp)
        got = loaded(moe.w13, moe.weight_loader_fused, [(w13, "gate_up", "w13")])
        halves = (rank * step, (rank + 1) * step), (128 + rank * step, 128 + (rank + 1) * step)
        assert_same(got, rows_of(quantize(w13), *halves))
        got = loaded(moe.w2, moe.weight_loader_fused, [(w2, "down", "w2")])
        assert_same(got, cols_of(quantize(w2), rank * step, (rank + 1) * step))


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("per_expert", [False, True])
def test_parameters_with_k_first(tp: int, per_expert: bool) -> None:
    """The engine's parameter is [E, K, N]; blocks still run along K."""
    weight = weights(2, 64, 96)
    want = quantize(weight.transpose(1, 2).contiguous())
    for rank in range(tp):
        moe = engines.TransposedMoE(2, 64, 48, rank, tp)
        session = LoadSession()
        target = session.target("gate_up", moe.shape, dtype=torch.bfloat16, transposed=True)
        param = register(target, session.wrap("gate_up", moe.weight_loader))
        sources = [(weight[expert], expert) for expert in range(2)] if per_expert else [(weight, None)]
        for source, expert in sources:
            param.weight_loader(param, source, "gate_up", "w13", expert)
        session.close()
        step = 96 // tp
        assert_same(target.mx_tensor(), rows_of(want, (rank * step, (rank + 1) * step)))


def test_biases_go_their_own_way() -> None:
    layer = engines.ColumnParallel(8, 64, 1, 2)
    weight, bias = weights(8, 64), weights(8)
    param = engines.empty(4)
    param.output_dim = 0
    got = loaded(layer.shape, layer.weight_loader, [(weight,)], output_dim=0)
    layer.weight_loader(param, bias)
    assert torch.equal(param, bias[4:])
    assert_same(got, rows_of(quantize(weight), (4, 8)))


@pytest.mark.parametrize("tp", [2, 3, 4, 6])
def test_rows_that_an_engine_pads_with_zeros(tp: int) -> None:
    weight = weights(10, 64)
    whole = torch.cat([weight, torch.zeros(12, 64, dtype=weight.dtype)])
    for rank in range(tp):
        layer = engines.PaddedColumn(10, 64, rank, tp)
        got = loaded(layer.shape, layer.weight_loader, [(weight,)])
        step = layer.shape[0]
        assert_same(got, rows_of(quantize(whole), (rank * step, (rank + 1) * step)))


# Shards that cut a block: refused, or padded each by itself.


def test_a_shard_that_cuts_a_block_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ShapeError) as caught:
        LoadSession().target("layers.7.down_proj", (8, 80), dtype=torch.bfloat16, tp=2)
    for part in ("layers.7.down_proj", "k = 160 over 2 ranks", "multiple of 32", "128 or 192"):
        assert part in str(caught.value)


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_a_shard_that_cuts_a_block_is_padded_by_itself(tp: int) -> None:
    weight = weights(8, 160 * 2)
    step = 320 // tp
    for rank in range(tp):
        layer = engines.RowParallel(8, 320, rank, tp)
        session = LoadSession(Mxfp4Config(tail="pad"))
        target = session.target("down", layer.shape, dtype=torch.bfloat16)
        param = register(target, session.wrap("down", layer.weight_loader), input_dim=1)
        param.weight_loader(param, weight)
        session.close()
        got = target.mx_tensor()
        shard = weight[:, rank * step : (rank + 1) * step]
        want = quantize(shard, tail="pad")
        assert_same(got, want)
        assert got.shape == (8, step)
        assert got.physical_shape == (8, -(-step // 32) * 32)
        # What the padding added is exactly zero, so a product with a zero-padded input is unchanged.
        physical = MxTensor(got.codes, got.scales, got.physical_shape, got.profile)
        assert not physical.dequantize()[:, step:].any()


def test_a_cut_inside_a_block_is_never_padded_away() -> None:
    """Two shards of 48 columns in one parameter share the block 32:64; zeros there would lose values."""
    session = LoadSession(Mxfp4Config(tail="pad"))
    target = session.target("mixed.weight", (4, 96), dtype=torch.bfloat16)

    def loader(param: Parameter, loaded_weight: torch.Tensor, shard_id: int) -> None:
        param.data.narrow(1, 48 * shard_id, 48).copy_(loaded_weight.narrow(1, 48 * shard_id, 48))

    param = register(target, session.wrap("mixed.weight", loader))
    with pytest.raises(ShapeError) as caught:
        param.weight_loader(param, weights(4, 96), 0)
    for part in ("mixed.weight", "k 0:48 of k = 96", "TP size 2 cuts it", "32 or 64", "TP size 1, 3"):
        assert part in str(caught.value)


@pytest.mark.parametrize("first", [0, 35, 40])
def test_an_engine_may_pad_inside_a_block(first: int) -> None:
    """40 columns and zeros up to 64, as engines do for sizes that the ranks cannot divide."""
    weight = weights(4, 40)

    def loader(param: Parameter, loaded_weight: torch.Tensor) -> None:
        param.data.narrow(1, first, 64 - first).zero_()
        param.data.narrow(1, 0, 40).copy_(loaded_weight)

    assert_same(loaded((4, 64), loader, [(weight,)]), quantize(torch.nn.functional.pad(weight, (0, 24))))


@pytest.mark.parametrize(
    "zeros", [(slice(0, 1), slice(0, 4), 45), (slice(0, 2), slice(1, 4), 40), (slice(1, 2), slice(0, 4), 40)]
)
def test_zeros_elsewhere_do_not_complete_a_block(zeros: tuple[slice, slice, int]) -> None:
    """A gap in the block, a row without zeros, an expert without zeros."""
    session = LoadSession()
    target = session.target("w", (2, 4, 64), dtype=torch.bfloat16)
    experts, rows, start = zeros

    def loader(param: Parameter, loaded_weight: torch.Tensor) -> None:
        param.data[experts, rows, start:].zero_()
        param.data[0, :, :40].copy_(loaded_weight)

    with pytest.raises(ShapeError, match="expert 0, rows 0:4, k 0:40 of k = 64"):
        session.wrap("w", loader)(Parameter(target.codes, requires_grad=False), weights(4, 40))


@settings(deadline=None)
@given(st.data())
def test_any_split_into_any_order_of_pieces_gives_the_same_bytes(data: st.DataObject) -> None:
    """Pieces of whole blocks, cut anywhere along rows and K, arriving in any order and precision."""
    n, blocks = data.draw(st.integers(1, 9), "rows"), data.draw(st.integers(1, 5), "blocks")
    tail = data.draw(st.integers(0, 31), "tail")
    k = blocks * 32 + tail
    dtype = data.draw(st.sampled_from([torch.bfloat16, torch.float16, torch.float32]), "dtype")
    source = weights(n, k, seed=data.draw(st.integers(0, 99), "seed"), dtype=torch.float32)
    rows = sorted({0, n, *data.draw(st.lists(st.integers(0, n), max_size=3), "row cuts")})
    cuts = data.draw(st.lists(st.integers(0, blocks), max_size=3), "block cuts")
    cols = sorted({0, k, *(cut * 32 for cut in cuts)})
    pieces = [(a, b, c, d) for a, b in pairwise(rows) for c, d in pairwise(cols)]
    transposed = data.draw(st.booleans(), "transposed")
    session = LoadSession(Mxfp4Config(tail="pad"))
    target = session.target("w", (n, k), dtype=dtype, transposed=transposed)

    def loader(param: Parameter, loaded_weight: torch.Tensor, shard_id: tuple[int, int, int, int]) -> None:
        a, b, c, d = shard_id
        rows_first = param.data.t() if transposed else param.data
        rows_first[a:b, c:d].copy_(loaded_weight[a:b, c:d])

    wrapped = session.wrap("w", loader)
    for piece in data.draw(st.permutations(pieces), "order"):
        wrapped(Parameter(target.codes, requires_grad=False), source, piece)
    session.close()
    assert_same(target.mx_tensor(), quantize(source.to(dtype), tail="pad"))
