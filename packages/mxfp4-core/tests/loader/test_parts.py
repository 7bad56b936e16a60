"""Loaders of engines that bring parts which are quantised already: every rank holds the bytes of its slice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from loader_layers import weights
from torch.nn import Parameter

from mxfp4_core import MxTensor, quantize
from mxfp4_core.arithmetic import MXFP8, get_format
from mxfp4_core.errors import FormatError, LoadError, ShapeError
from mxfp4_core.loader import LoadSession
from mxfp4_core.testing import engine_loaders as engines

SIZES = pytest.mark.parametrize("tp", [1, 2, 4])


def begin(
    shape: tuple[int, ...], loader: Callable[..., Any], format: str = "mxfp4", **attributes: Any
) -> tuple[LoadSession, dict[str, Parameter]]:
    """Do what an adapter does for a saved weight: a placeholder for each part, with the engine's attributes."""
    session, kind = LoadSession(), get_format(format)
    session.target("w", shape, dtype=torch.bfloat16, format=kind)
    params = {}
    for part, size in kind.shapes(shape).items():
        dtype = getattr(torch, kind.part(part).dtype)
        params[part] = Parameter(torch.empty(size, dtype=dtype, device="meta"), requires_grad=False)
        vars(params[part]).update(attributes, weight_loader=session.wrap("w", loader, part=part))
    return session, params


def feed(params: dict[str, Parameter], whole: MxTensor, *args: Any, **kwargs: Any) -> None:
    for part, param in params.items():
        param.weight_loader(param, whole.parts[part], *args, **kwargs)


def held(session: LoadSession) -> dict[str, torch.Tensor]:
    session.close()
    return session.targets["w"].mx_tensor().parts


@SIZES
def test_columns(tp: int) -> None:
    whole = quantize(weights(48, 96))
    for rank in range(tp):
        layer = engines.ColumnParallel(48, 96, rank, tp)
        session, params = begin(layer.shape, layer.weight_loader, output_dim=0)
        feed(params, whole)
        for part, bytes in held(session).items():
            assert torch.equal(bytes, whole.parts[part].chunk(tp, 0)[rank])


@SIZES
def test_rows_of_whole_blocks(tp: int) -> None:
    whole = quantize(weights(8, 256))
    for rank in range(tp):
        layer = engines.RowParallel(8, 256, rank, tp)
        session, params = begin(layer.shape, layer.weight_loader, input_dim=1)
        feed(params, whole)
        for part, bytes in held(session).items():
            assert torch.equal(bytes, whole.parts[part].chunk(tp, 1)[rank])


@SIZES
def test_merged_columns_and_another_format(tp: int) -> None:
    members = [quantize(weights(8, 64, seed=seed), format="mxfp8") for seed in range(2)]
    for rank in range(tp):
        layer = engines.MergedColumn([8, 8], 64, rank, tp)
        session, params = begin(layer.shape, layer.weight_loader, MXFP8.name, output_dim=0)
        for index, member in enumerate(members):
            feed(params, member, index)
        for part, bytes in held(session).items():
            want = torch.cat([member.parts[part].chunk(tp, 0)[rank] for member in members])
            assert torch.equal(bytes.view(torch.uint8), want.view(torch.uint8))


@SIZES
def test_experts(tp: int) -> None:
    gate, up = (quantize(weights(4, 64, 64, seed=seed)) for seed in range(2))
    for rank in range(tp):
        moe = engines.FusedMoE(4, 64, 64, rank=rank, tp=tp)
        session, params = begin(tuple(moe.w13), moe.weight_loader)
        for expert in range(4):
            for shard, source in (("w1", gate), ("w3", up)):
                for part, param in params.items():
                    piece = source.parts[part][expert]
                    param.weight_loader(param, piece, f"{expert}.{part}", shard_id=shard, expert_id=expert)
        for part, bytes in held(session).items():
            want = torch.cat([each.parts[part].chunk(tp, 1)[rank] for each in (gate, up)], 1)
            assert torch.equal(bytes, want)


def test_missing_scales_are_named_with_their_shard() -> None:
    members = [quantize(weights(8, 64, seed=seed)) for seed in range(2)]
    layer = engines.MergedColumn([8, 8], 64, 0, 1)
    session, params = begin(layer.shape, layer.weight_loader, output_dim=0)
    feed(params, members[0], 0)
    params["codes"].weight_loader(params["codes"], members[1].codes, 1)
    with pytest.raises(LoadError, match=r"w: scales: missing: rows 8:16, k 0:64"):
        session.close()


def test_a_shard_that_comes_twice_is_refused() -> None:
    whole = quantize(weights(8, 64))
    layer = engines.ColumnParallel(8, 64, 0, 1)
    session, params = begin(layer.shape, layer.weight_loader, output_dim=0)
    feed(params, whole)
    feed(params, whole)
    with pytest.raises(LoadError, match="loaded twice"):
        session.close()


def test_high_precision_for_a_part_is_refused() -> None:
    layer = engines.ColumnParallel(8, 64, 0, 1)
    _, params = begin(layer.shape, layer.weight_loader, output_dim=0)
    with pytest.raises(LoadError, match=r"(?s)codes of w cannot be loaded.*never converted.*in ignore"):
        params["codes"].weight_loader(params["codes"], weights(8, 64))


def test_a_place_that_cuts_a_block_is_refused() -> None:
    """Codes can be cut where a block cannot; scales of the other half would be lost."""
    session, params = begin((8, 64), lambda param, loaded: param.data[:, 8:].copy_(loaded[:, 8:]))
    with pytest.raises(ShapeError, match="blocks of 32"):
        params["codes"].weight_loader(params["codes"], quantize(weights(8, 64)).codes)
    with pytest.raises(LoadError, match="missing"):
        session.close()


def test_zeros_that_fill_up_are_refused() -> None:
    _, params = begin((8, 64), lambda param, loaded: param.data[4:].zero_())
    with pytest.raises(LoadError, match="zeros to fill up codes"):
        params["codes"].weight_loader(params["codes"], quantize(weights(8, 64)).codes)


def test_a_part_that_the_format_lacks_is_refused() -> None:
    session = LoadSession()
    session.target("w", (8, 64), dtype=torch.bfloat16)
    with pytest.raises(FormatError, match="no part 'level0'"):
        session.wrap("w", print, part="level0")
