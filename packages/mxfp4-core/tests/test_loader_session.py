"""Accounting, second loads, threads, and what a session refuses."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import Parameter

from mxfp4_core import Mxfp4Config, quantize
from mxfp4_core.errors import FormatError, LoadError, NonFiniteError, ShapeError
from mxfp4_core.load_report import LoadReportBuilder
from mxfp4_core.loader import LoadSession, QuantTarget
from mxfp4_core.testing import engine_loaders as engines

torch.set_num_threads(1)


def weights(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


class Layer:
    """A merged column of three shards of 4 rows and k = 64, on one rank, as an adapter sets it up."""

    def __init__(self, session: LoadSession, name: str = "layers.0.qkv_proj.weight") -> None:
        self.engine = engines.MergedColumn([4, 4, 4], 64, rank=0, tp=1)
        self.target = session.target(name, self.engine.shape, dtype=torch.bfloat16)
        self.param = Parameter(self.target.codes, requires_grad=False)
        self.param.output_dim = 0
        self.param.weight_loader = session.wrap(name, self.engine.weight_loader)

    def load(self, shard: int, source: torch.Tensor) -> None:
        self.param.weight_loader(self.param, source, shard)

    def load_all(self, source: torch.Tensor) -> None:
        for shard in range(3):
            self.load(shard, source[shard * 4 : shard * 4 + 4])

    def holds(self, source: torch.Tensor) -> bool:
        want, got = quantize(source), self.target.mx_tensor()
        return torch.equal(got.codes, want.codes) and torch.equal(got.scales, want.scales)


def simple(
    session: LoadSession, shape: tuple[int, ...], loader: Callable[..., Any], **options: Any
) -> tuple[QuantTarget, Callable[..., Any]]:
    """Make a target and return it with its wrapped loader, the parameter already bound."""
    target = session.target("w", shape, **{"dtype": torch.bfloat16, **options})
    wrapped = session.wrap("w", loader)
    param = Parameter(target.codes, requires_grad=False)
    return target, lambda *args, **kwargs: wrapped(param, *args, **kwargs)


def copy_whole(param: Parameter, loaded_weight: torch.Tensor) -> None:
    param.data.copy_(loaded_weight)


# What close() finds.


def test_a_complete_load_closes_and_can_be_read() -> None:
    session = LoadSession()
    layer, source = Layer(session), weights(12, 64)
    layer.load_all(source)
    session.close()
    assert layer.holds(source)


def test_missing_rows_are_named_with_what_was_loaded() -> None:
    session = LoadSession()
    layer = Layer(session)
    layer.load(0, weights(4, 64))
    layer.load(2, weights(4, 64))
    with pytest.raises(LoadError) as caught:
        session.close()
    message = str(caught.value)
    assert "layers.0.qkv_proj.weight: missing: rows 4:8, k 0:64" in message
    assert "loaded: shard 0 rows 0:4; shard 2 rows 8:12" in message


def test_missing_experts_are_named_by_shard() -> None:
    session = LoadSession()
    moe = engines.FusedMoE(6, 32, 32, rank=0, tp=1)
    _, load = simple(session, moe.w13, moe.weight_loader)
    for expert, shards in enumerate((("w1", "w3"), ("w1",), ("w1",), (), ("w3", "w1"), ("w3",))):
        for shard in shards:
            load(weights(32, 32), f"experts.{expert}", shard_id=shard, expert_id=expert)
    with pytest.raises(LoadError) as caught:
        session.close()
    for line in (
        "missing: experts 1:3, rows 32:64, k 0:32 (shard w3)",
        "missing: expert 3, rows 0:64, k 0:32",
        "missing: expert 5, rows 0:32, k 0:32 (shard w1)",
    ):
        assert line in caught.value.seen


def test_a_target_that_nothing_loaded_is_missing() -> None:
    session = LoadSession()
    Layer(session).load_all(weights(12, 64))
    Layer(session, "layers.1.qkv_proj.weight")
    with pytest.raises(LoadError, match=r"layers\.1\.qkv_proj\.weight: missing: nothing was loaded"):
        session.close()


def test_a_shard_loaded_twice_is_a_duplicate() -> None:
    session = LoadSession()
    layer = Layer(session)
    layer.load_all(weights(12, 64))
    layer.load(1, weights(4, 64))
    with pytest.raises(LoadError, match=r"duplicate: shard 1 was loaded twice \(rows 4:8, k 0:64\)"):
        session.close()


def test_shards_that_overlap_are_both_named() -> None:
    session = LoadSession()

    def loader(param: Parameter, loaded_weight: torch.Tensor, shard_id: str) -> None:
        start = {"q": 0, "k": 6}[shard_id]
        param.data[start : start + len(loaded_weight)].copy_(loaded_weight)

    _, load = simple(session, (10, 32), loader)
    load(weights(7, 32), "q")
    load(weights(4, 32), "k")
    with pytest.raises(
        LoadError, match=r"overlap: shard k \(rows 6:10, .*\) covers part of shard q \(rows 0:7"
    ):
        session.close()


def test_zeros_may_not_wipe_what_another_shard_brought() -> None:
    session = LoadSession()

    def loader(param: Parameter, loaded_weight: torch.Tensor, shard_id: str) -> None:
        if shard_id == "q":
            param.data.zero_()
            param.data[:2].copy_(loaded_weight)
        else:
            param.data[2:].copy_(loaded_weight)

    _, load = simple(session, (4, 32), loader)
    load(weights(2, 32), "q")
    session.check()
    load(weights(2, 32), "k")
    with pytest.raises(LoadError, match=r"overlap: shard k .* covers part of shard q"):
        session.check()


def test_a_long_list_is_cut_but_counted() -> None:
    session = LoadSession()
    for index in range(50):
        session.target(f"w{index}", (1, 32), dtype=torch.bfloat16)
    with pytest.raises(LoadError) as caught:
        session.close()
    assert "50 findings" in str(caught.value)
    assert "and 30 more" in str(caught.value)


def test_an_unfinished_weight_cannot_be_read() -> None:
    session = LoadSession()
    layer = Layer(session)
    layer.load(0, weights(4, 64))
    with pytest.raises(LoadError, match="is not complete"):
        layer.target.mx_tensor()


# Loaders that fail.


def test_a_loader_that_fails_after_copying_counts_for_nothing() -> None:
    session = LoadSession()
    fails = [True]

    def loader(param: Parameter, loaded_weight: torch.Tensor, shard_id: int) -> None:
        param.data[:2].copy_(loaded_weight[:2])
        if fails:
            raise OSError("disk gone")
        param.data[2:].copy_(loaded_weight[2:])

    target, load = simple(session, (4, 32), loader)
    with pytest.raises(OSError, match="disk gone"):
        load(weights(4, 32), 7)
    with pytest.raises(LoadError) as caught:
        session.check()
    assert "missing: rows 0:4" in caught.value.seen
    assert "its loader for shard 7 raised OSError: disk gone" in caught.value.seen
    fails.clear()
    load(weights(4, 32), 7)
    session.close()
    assert torch.equal(target.mx_tensor().codes, quantize(weights(4, 32)).codes)


def test_a_failure_that_was_made_good_is_forgotten() -> None:
    session = LoadSession()
    layer, bad = Layer(session), weights(4, 64)
    bad[0, 0] = float("nan")
    with pytest.raises(NonFiniteError):
        layer.load(1, bad)
    layer.load(1, weights(4, 64))
    with pytest.raises(LoadError) as caught:
        session.check()
    assert "missing: rows 0:4" in caught.value.seen
    assert "raised" not in caught.value.seen


@pytest.mark.parametrize("subset", [False, True])
def test_a_failed_second_load_leaves_its_range_torn(subset: bool) -> None:
    session = LoadSession()
    layer = Layer(session)
    layer.load_all(weights(12, 64))
    session.close()
    session.begin(subset=subset)
    bad = weights(4, 64)
    bad[3, 40] = float("nan")
    with pytest.raises(NonFiniteError):
        layer.load(1, bad)
    with pytest.raises(LoadError, match="rows 4:8" if subset else "rows 0:12") as caught:
        session.close()
    assert "its loader for shard 1 raised NonFiniteError" in caught.value.seen
    with pytest.raises(LoadError, match="is not complete"):
        layer.target.mx_tensor()


def test_nan_is_located_in_the_slice_that_was_loaded() -> None:
    session = LoadSession()
    layer, bad = Layer(session), weights(4, 64)
    bad[3, 40] = float("inf")
    with pytest.raises(NonFiniteError) as caught:
        layer.load(1, bad)
    assert "layers.0.qkv_proj.weight[4:8, 0:64]" in str(caught.value)
    assert "[3, 40]" in str(caught.value)


def test_nan_policy_comes_from_the_config() -> None:
    session = LoadSession(Mxfp4Config(nonfinite="nan"))
    target, load = simple(session, (1, 64), copy_whole)
    source = weights(1, 64)
    source[0, 40] = float("nan")
    load(source)
    session.close()
    assert target.scales[0, 1] == 255
    assert target.scales[0, 0] != 255


# Second loads.


def test_a_second_load_refreshes_the_same_memory() -> None:
    session = LoadSession()
    layer, first, second = Layer(session), weights(12, 64), weights(12, 64, seed=1)
    layer.load_all(first)
    session.close()
    before = (layer.param.data_ptr(), layer.target.codes.data_ptr(), layer.target.scales.data_ptr())
    identity = id(layer.param), id(layer.target.codes)
    session.begin()
    layer.load_all(second)
    session.close()
    assert layer.holds(second)
    assert before == (layer.param.data_ptr(), layer.target.codes.data_ptr(), layer.target.scales.data_ptr())
    assert identity == (id(layer.param), id(layer.target.codes))


def test_a_full_second_load_that_forgets_a_shard_is_an_error() -> None:
    session = LoadSession()
    layer = Layer(session)
    layer.load_all(weights(12, 64))
    session.close()
    session.begin()
    layer.load(0, weights(4, 64, seed=1))
    with pytest.raises(LoadError, match="rows 4:12"):
        session.close()


def test_a_subset_may_be_loaded_again() -> None:
    session = LoadSession()
    layer, other = Layer(session), Layer(session, "other")
    first, second = weights(12, 64), weights(12, 64, seed=1)
    layer.load_all(first)
    other.load_all(first)
    session.close()
    for _ in range(3):
        session.begin(subset=True)
        layer.load(2, second[8:])
        report = session.close()
    assert layer.holds(torch.cat([first[:8], second[8:]]))
    assert len(layer.target.ledger._past) == 1, "the account must not grow with the number of loads"
    assert other.holds(first)
    assert [group.count for group in report.quantised] == [1]


def test_a_subset_does_not_excuse_what_was_never_loaded() -> None:
    session = LoadSession()
    layer = Layer(session)
    layer.load(0, weights(4, 64))
    with pytest.raises(LoadError):
        session.close()
    session.begin(subset=True)
    layer.load(1, weights(4, 64))
    with pytest.raises(LoadError, match="rows 8:12"):
        session.close()
    session.begin(subset=True)
    layer.load(2, weights(4, 64))
    session.close()


def test_duplicates_are_counted_within_one_load_only() -> None:
    session = LoadSession()
    layer = Layer(session)
    for seed in range(3):
        layer.load_all(weights(12, 64, seed=seed))
        session.close()
        session.begin()


# Threads.


def test_eight_threads_load_many_shards() -> None:
    experts, hidden, inter = 16, 64, 64
    w1, w2, w3 = (weights(experts, inter, hidden, seed=seed) for seed in (1, 2, 3))
    session = LoadSession(threads=1)
    moe = engines.FusedMoE(experts, hidden, inter, rank=0, tp=1)
    targets = {name: session.target(name, getattr(moe, name), dtype=torch.bfloat16) for name in ("w13", "w2")}
    params = {name: Parameter(one.codes, requires_grad=False) for name, one in targets.items()}
    loaders = {name: session.wrap(name, moe.weight_loader) for name in targets}
    jobs = [
        ("w2" if shard == "w2" else "w13", source[expert], shard, expert)
        for expert in range(experts)
        for shard, source in (("w1", w1), ("w2", w2), ("w3", w3))
    ]
    start, failures = threading.Barrier(8), []

    def work(mine: list[tuple[str, torch.Tensor, str, int]]) -> None:
        start.wait()
        try:
            for name, source, shard, expert in mine:
                loaders[name](params[name], source, f"e{expert}", shard, expert)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(jobs[index::8],)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    report = session.close()
    for name, want in (("w13", quantize(torch.cat([w1, w3], dim=1))), ("w2", quantize(w2))):
        assert torch.equal(targets[name].mx_tensor().codes, want.codes)
        assert torch.equal(targets[name].mx_tensor().scales, want.scales)
    assert report.phases["quantising"].threads >= report.phases["quantising"].wall > 0


def test_threads_leave_the_dispatcher_as_it_was() -> None:
    """A dispatch mode flips flags of the process, which threads do not restore in order."""
    from torch.utils import _python_dispatch as dispatch

    session = LoadSession(threads=1)
    _, load = simple(session, (64, 32), lambda param, source, shard_id: param.data[shard_id].copy_(source))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(load, [weights(32)] * 64, range(64)))
    session.close()
    assert not dispatch.is_in_torch_dispatch_mode()


def test_other_threads_use_the_meta_device_undisturbed() -> None:
    session = LoadSession()
    seen = []

    def loader(param: Parameter, loaded_weight: torch.Tensor) -> None:
        def other() -> None:
            tensor = torch.empty(4, 32, device="meta")
            tensor.add_(1)
            seen.append(tensor.to("meta").device.type)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        param.data.copy_(loaded_weight)

    _, load = simple(session, (4, 32), loader)
    load(weights(4, 32))
    session.close()
    assert seen == ["meta"]


# The ways in which loaders copy.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_a_source_is_cast_to_the_parameter_first(dtype: torch.dtype) -> None:
    """As the engine's own copy would do; the values are such that the order decides bytes."""
    source = torch.randn(64, 64, generator=torch.Generator().manual_seed(3)).to(dtype)
    target, load = simple(LoadSession(), (64, 64), copy_whole)
    load(source)
    assert torch.equal(target.mx_tensor().codes, quantize(source.to(torch.bfloat16)).codes)
    assert torch.equal(target.mx_tensor().scales, quantize(source.to(torch.bfloat16)).scales)
    if dtype == torch.float32:
        assert not torch.equal(target.mx_tensor().codes, quantize(source).codes)


def set_item(param: Parameter, loaded_weight: torch.Tensor) -> None:
    for row in range(len(loaded_weight)):
        param.data[row] = loaded_weight[row]


def through_a_buffer(param: Parameter, loaded_weight: torch.Tensor) -> None:
    buffer = torch.zeros(loaded_weight.shape, dtype=param.dtype, device=param.device)
    buffer[:, ::2], buffer[:, 1::2] = loaded_weight[:, ::2], loaded_weight[:, 1::2]
    param.data.copy_(buffer)


def through_a_like_buffer(param: Parameter, loaded_weight: torch.Tensor) -> None:
    for make in (torch.empty_like, torch.zeros_like, lambda one: one.new_zeros(one.shape)):
        buffer = make(param.data)
    buffer[:] = loaded_weight
    param.data[...] = buffer


COPIES: dict[str, Callable[[Parameter, torch.Tensor], Any]] = {
    "copy": copy_whole,
    "set item": set_item,
    "not blocking": lambda param, source: param.data.copy_(source, non_blocking=True),
    "moved": lambda param, source: param.data.copy_(source.to(param.device)),
    "moved and cast": lambda param, source: param.data.copy_(
        source.to(device=param.device, dtype=param.dtype)
    ),
    "reshaped": lambda param, source: param.data.view(2, 2, 64)[:].copy_(source.view(2, 2, 64)),
    "flattened": lambda param, source: param.data.view(-1).copy_(source.reshape(-1)),
    "split": lambda param, source: [
        a.copy_(b) for a, b in zip(param.data.split(1), source.split(1), strict=True)
    ],
    "not contiguous": lambda param, source: param.data.copy_(source.t().contiguous().t()),
    "k by k": lambda param, source: [param.data[:, k : k + 32].copy_(source[:, k : k + 32]) for k in (32, 0)],
    "through a buffer": through_a_buffer,
    "through a buffer like the parameter": through_a_like_buffer,
    "zeros first": lambda param, source: (param.data.zero_(), param.data.copy_(source)),
    "fill first": lambda param, source: (param.data.fill_(0), param.data[:].copy_(source)),
    "with a gradient": lambda param, source: param.data.copy_(source.clone().requires_grad_()),
    "and nothing": lambda param, source: (param.data[4:].copy_(source[4:]), param.data.copy_(source)),
    "in two halves": lambda param, source: [
        half.copy_(piece) for half, piece in zip(param.chunk(2, 1), source.chunk(2, 1), strict=True)
    ],
}


@pytest.mark.parametrize("how", COPIES)
def test_copies_that_are_followed(how: str) -> None:
    session = LoadSession()
    target, load = simple(session, (4, 64), COPIES[how])
    load(weights(4, 64))
    session.close()
    assert torch.equal(target.mx_tensor().codes, quantize(weights(4, 64)).codes)
    assert torch.equal(target.mx_tensor().scales, quantize(weights(4, 64)).scales)


def replace_data(param: Parameter, source: torch.Tensor) -> None:
    param.data = source


def replace_by_meta(param: Parameter, source: torch.Tensor) -> None:
    param.data = torch.empty_like(param.data)
    param.data.size()


REFUSED: dict[str, tuple[Callable[[Parameter, torch.Tensor], Any], str]] = {
    "add": (lambda param, source: param.data.add_(source), "aten.add_"),
    "fill": (lambda param, source: param.data.fill_(1), "aten.fill_"),
    "index copy": (
        lambda param, source: param.data.index_copy_(0, torch.arange(4), source),
        "aten.index_copy_",
    ),
    "index put": (lambda param, source: param.data.__setitem__(torch.arange(4), source), "aten.index_put_"),
    "foreach": (lambda param, source: torch._foreach_copy_([param.data], [source]), "aten._foreach_copy_"),
    "out": (lambda param, source: torch.add(source, 1, out=param.data), "aten.add.out"),
    "data": (replace_data, "an assignment to param.data"),
    "meta data": (replace_by_meta, "an assignment to param.data"),
    "other storage": (lambda param, source: param.set_(source), "aten.set_"),
    "own values": (lambda param, source: param.data.copy_(param.data * 2), "aten.mul"),
    "itself": (lambda param, source: param.data.copy_(param.data), "aten.copy_"),
    "one value": (lambda param, source: param.data.max().item(), "aten.max"),
    "equal": (lambda param, source: torch.equal(param.data, source), "aten.equal"),
    "stride": (lambda param, source: param.data[::2].copy_(source[::2]), "strides (128, 1)"),
    "repeat": (lambda param, source: param.data.copy_(source[0]), "shape (64,) for a place of shape (4, 64)"),
    "integers": (lambda param, source: param.data.copy_(source.to(torch.int32)), "torch.int32"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_what_cannot_be_followed_is_refused_and_named(how: str) -> None:
    loader, name = REFUSED[how]
    session = LoadSession()
    target, load = simple(session, (4, 64), loader)
    with pytest.raises(LoadError) as caught:
        load(weights(4, 64))
    assert name in caught.value.seen
    assert "the loader of w" in caught.value.what
    with pytest.raises(LoadError, match="is not complete"):
        target.mx_tensor()


def test_what_never_reaches_the_parameter_is_missing() -> None:
    session = LoadSession()
    _, load = simple(session, (4, 64), lambda param, source: torch.empty_like(param).copy_(source))
    load(weights(4, 64))
    with pytest.raises(LoadError, match="nothing was loaded"):
        session.close()


def test_the_stand_in_looks_like_the_parameter() -> None:
    seen: dict[str, Any] = {}

    def loader(param: Any, loaded_weight: torch.Tensor) -> None:
        seen.update(device=param.device, dtype=param.dtype, shape=param.shape, meta=param.is_meta)
        seen.update(kind=isinstance(param, engines.PackedParameter), strides=param.data.stride())
        seen.update(row=param.data[1].storage_offset(), requires_grad=param.requires_grad)

    session = LoadSession()
    target = session.target("w", (4, 64), dtype=torch.float16)
    param = engines.PackedParameter(target.codes, weight_loader=loader, rank=0, packed_dim=1, packed_factor=2)
    session.wrap("w", loader)(param, weights(4, 64))
    assert seen == {
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "shape": (4, 64),
        "meta": False,
        "kind": True,
        "strides": (64, 1),
        "row": 64,
        "requires_grad": False,
    }


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float8_e4m3fn])
def test_a_checkpoint_that_is_quantised_already_is_refused(dtype: torch.dtype) -> None:
    moe = engines.FusedMoE(1, 32, 32, rank=0, tp=1)
    _, load = simple(LoadSession(), moe.w2, moe.weight_loader)
    with pytest.raises(LoadError) as caught:
        load(torch.zeros(32, 32).to(dtype), "experts.0.down_proj.weight", "w2", 0)
    assert "w cannot be quantised from experts.0.down_proj.weight" in caught.value.what
    assert str(dtype) in caught.value.seen


def test_a_loader_may_call_itself_through_its_parameter() -> None:
    session = LoadSession()

    def loader(param: Any, loaded_weight: torch.Tensor, shard_id: int | None = None) -> None:
        if shard_id is None:
            for shard, piece in enumerate(loaded_weight.split(2)):
                param.weight_loader(param, piece, shard)
        else:
            param.data.narrow(0, 2 * shard_id, 2).copy_(loaded_weight)

    target = session.target("w", (4, 32), dtype=torch.bfloat16)
    param = Parameter(target.codes, requires_grad=False)
    param.weight_loader = session.wrap("w", loader)
    param.weight_loader(param, weights(4, 32))
    session.close()
    assert torch.equal(target.codes, quantize(weights(4, 32)).codes)


def test_marks_that_a_loader_leaves_on_its_parameter_stay() -> None:
    def loader(param: Any, loaded_weight: torch.Tensor) -> str:
        param.loads += 1
        param.seen.append(tuple(loaded_weight.shape))
        param.data.copy_(loaded_weight)
        return "done"

    session = LoadSession()
    target = session.target("w", (4, 32), dtype=torch.bfloat16)
    param = Parameter(target.codes, requires_grad=False)
    param.loads, param.seen, param.packed_factor = 0, [], 2
    assert session.wrap("w", loader)(param, loaded_weight=weights(4, 32)) == "done"
    assert (param.loads, param.seen, param.packed_factor) == (1, [(4, 32)], 2)


@pytest.mark.parametrize("kind", ["codes", "meta"])
def test_the_parameter_may_be_the_codes_or_a_placeholder(kind: str) -> None:
    session = LoadSession()
    target = session.target("w", (4, 32), dtype=torch.bfloat16)
    placeholder = torch.empty(4, 32, dtype=torch.bfloat16, device="meta")
    param = Parameter(target.codes if kind == "codes" else placeholder, requires_grad=False)
    session.wrap("w", copy_whole)(param, weights(4, 32))
    session.close()


def test_a_parameter_with_other_memory_is_refused() -> None:
    """The engine would never see bytes that go to the target."""
    session = LoadSession()
    session.target("w", (4, 32), dtype=torch.bfloat16)
    with pytest.raises(LoadError, match="does not share the memory"):
        session.wrap("w", copy_whole)(engines.empty(4, 32), weights(4, 32))


# Keys: how the engine's arguments become words.


@pytest.mark.parametrize("partial", [False, True], ids=["plain", "behind *args"])
def test_names_come_from_the_engines_arguments(partial: bool) -> None:
    session = LoadSession()
    moe = engines.FusedMoE(2, 32, 32, rank=0, tp=1)
    loader = (lambda *args, **kwargs: moe.weight_loader(*args, **kwargs)) if partial else moe.weight_loader
    _, load = simple(session, moe.w13, loader)
    for _ in range(2):
        load(weights(32, 32), "experts.1", "w3", 1)
    with pytest.raises(LoadError, match="duplicate: shard w3, expert 1 was loaded twice"):
        session.close()


# Targets.


def test_existing_codes_and_scales_are_filled() -> None:
    codes, scales = torch.zeros(4, 16, dtype=torch.uint8), torch.zeros(4, 1, dtype=torch.uint8)
    target, load = simple(LoadSession(), (4, 32), copy_whole, codes=codes, scales=scales)
    load(weights(4, 32))
    assert target.codes is codes
    assert torch.equal(codes, quantize(weights(4, 32)).codes)
    assert torch.equal(scales, quantize(weights(4, 32)).scales)


@pytest.mark.parametrize(
    ("shape", "options", "error"),
    [
        ((4,), {}, ShapeError),
        ((0, 32), {}, ShapeError),
        ((1, 2, 3, 32), {}, ShapeError),
        ((4, 33), {}, ShapeError),
        ((4, 32), {"dtype": torch.uint8}, FormatError),
        ((4, 32), {"codes": torch.zeros(4, 15, dtype=torch.uint8)}, ShapeError),
        ((4, 32), {"codes": torch.zeros(4, 16)}, FormatError),
        ((4, 32), {"scales": torch.zeros(4, 1, dtype=torch.uint8, device="meta")}, FormatError),
    ],
)
def test_impossible_targets_are_refused(
    shape: tuple[int, ...], options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match="w"):
        LoadSession().target("w", shape, **{"dtype": torch.bfloat16, **options})


def test_a_name_has_one_target() -> None:
    session = LoadSession()
    session.target("w", (4, 32), dtype=torch.bfloat16)
    with pytest.raises(LoadError, match="cannot be a target twice"):
        session.target("w", (4, 32), dtype=torch.bfloat16)


def test_only_targets_can_be_wrapped() -> None:
    with pytest.raises(LoadError, match="no target of that name"):
        LoadSession().wrap("w", copy_whole)


@pytest.mark.parametrize("shard_id", [[0, 1], (0, 1)])
def test_several_shards_at_once_have_one_name(shard_id: object) -> None:
    session = LoadSession()
    _, load = simple(
        session, (4, 32), lambda param, loaded_weight, shard_id: copy_whole(param, loaded_weight)
    )
    for _ in range(2):
        load(weights(4, 32), shard_id)
    with pytest.raises(LoadError, match=r"duplicate: shard \(0, 1\) was loaded twice"):
        session.close()


# The report.


def test_memory_is_sampled_while_the_source_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    samples: list[int] = []
    monkeypatch.setattr(LoadReportBuilder, "sample", lambda self: samples.append(len(alive)))
    alive = [weights(4, 64)]
    session = LoadSession()
    _, load = simple(session, (4, 64), COPIES["in two halves"])
    load(alive[0])
    alive.clear()
    assert samples == [1, 1]


def test_report_of_a_load(caplog: pytest.LogCaptureFixture) -> None:
    session = LoadSession(Mxfp4Config(rule="rceil"), report=LoadReportBuilder(backend="reference"))
    Layer(session).load_all(weights(12, 64))
    experts = session.target(
        "experts.w2", (2, 8, 32), dtype=torch.bfloat16, profile="quark", reason="override 1"
    )
    session.wrap("experts.w2", copy_whole)(Parameter(experts.codes, requires_grad=False), weights(2, 8, 32))
    session.kept("lm_head", kind="linear", reason="default: output head", nbytes=4096)
    with caplog.at_level(logging.INFO, logger="mxfp4_core.loader"):
        report = session.close()
    assert [(one.kind, one.reason, one.count) for one in report.quantised] == [
        ("linear", "", 1),
        ("experts", "override 1", 1),
    ]
    assert report.quantised[0].bytes_before == 12 * 64 * 2
    assert report.quantised[0].bytes_after == 12 * 32 + 12 * 2
    assert report.kept[0].bytes_after == 4096
    assert report.profile == "rceil/even, quark"
    assert report.backend == "reference"
    assert report.phases["quantising"].wall > 0
    assert caplog.messages == [report.line()]
    want = quantize(weights(2, 8, 32), profile="quark")
    assert torch.equal(experts.mx_tensor().codes, want.codes)
    assert experts.mx_tensor().profile == "quark"


@settings(deadline=None)
@given(st.lists(st.sampled_from(["load", "fail", "begin", "subset"]), max_size=12), st.data())
def test_any_history_is_judged_like_a_list_of_rows(history: list[str], data: st.DataObject) -> None:
    """Model: per row, how often this load wrote it and whether its bytes can be trusted."""
    session = LoadSession()
    fail = [False]

    def loader(param: Parameter, loaded_weight: torch.Tensor, shard_id: tuple[int, int]) -> None:
        param.data[shard_id[0] : shard_id[1]].copy_(loaded_weight)
        if fail[0]:
            raise KeyError("stop")

    target, load = simple(session, (4, 32), loader)
    counts, trusted, fresh, subset = [0] * 4, [False] * 4, [False] * 4, False
    for step in history:
        if step in ("begin", "subset"):
            session.begin(subset=step == "subset")
            counts, fresh, subset = [0] * 4, [False] * 4, step == "subset"
            continue
        start = data.draw(st.integers(0, 3))
        stop = data.draw(st.integers(start + 1, 4))
        fail[0] = step == "fail"
        try:
            load(weights(stop - start, 32), (start, stop))
        except KeyError:
            assert fail[0]
        for row in range(start, stop):
            counts[row] += step == "load"
            trusted[row] = fresh[row] = step == "load"
    good = all(trusted if subset else fresh) and max(counts) <= 1
    if good:
        session.close()
    else:
        with pytest.raises(LoadError):
            session.close()
    assert target.ledger.complete() is all(trusted)
