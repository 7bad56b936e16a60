"""What a session counts: complete and missing loads, failures, second loads, and the report."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loader_layers import Layer, copy_whole, simple, weights
from torch.nn import Parameter

from mxfp4_core import Mxfp4Config, quantize
from mxfp4_core.errors import LoadError, NonFiniteError
from mxfp4_core.loader import LoadSession
from mxfp4_core.loader.report import LoadReportBuilder
from mxfp4_core.testing import engine_loaders as engines

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


# The report.


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
