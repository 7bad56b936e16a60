"""The ways in which loaders copy, and which are followed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from loader_layers import copy_whole, simple, weights
from torch.nn import Parameter

from mxfp4_core import quantize
from mxfp4_core.errors import LoadError
from mxfp4_core.loader import LoadSession
from mxfp4_core.loader.report import LoadReportBuilder
from mxfp4_core.testing import engine_loaders as engines

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


def test_memory_is_sampled_while_the_source_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    samples: list[int] = []
    monkeypatch.setattr(LoadReportBuilder, "sample", lambda self: samples.append(len(alive)))
    alive = [weights(4, 64)]
    session = LoadSession()
    _, load = simple(session, (4, 64), COPIES["in two halves"])
    load(alive[0])
    alive.clear()
    assert samples == [1, 1]
