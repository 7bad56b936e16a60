"""Names and targets: how an engine's arguments become words, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loader_layers import copy_whole, simple, weights

from mxfp4_core import quantize
from mxfp4_core.arithmetic.formats import registry as formats
from mxfp4_core.errors import FormatError, LoadError, ShapeError
from mxfp4_core.loader import LoadSession
from mxfp4_core.testing import engine_loaders as engines

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
    target, load = simple(LoadSession(), (4, 32), copy_whole, parts={"codes": codes, "scales": scales})
    load(weights(4, 32))
    assert target.codes is codes
    assert torch.equal(codes, quantize(weights(4, 32)).codes)
    assert torch.equal(scales, quantize(weights(4, 32)).scales)


def parts(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**formats.get("mxfp4").empty((4, 32)), **changes}


@pytest.mark.parametrize(
    ("shape", "options", "error"),
    [
        ((4,), {}, ShapeError),
        ((0, 32), {}, ShapeError),
        ((1, 2, 3, 32), {}, ShapeError),
        ((4, 33), {}, ShapeError),
        ((4, 32), {"dtype": torch.uint8}, FormatError),
        ((4, 32), {"parts": parts(codes=torch.zeros(4, 15, dtype=torch.uint8))}, ShapeError),
        ((4, 32), {"parts": parts(codes=torch.zeros(4, 16))}, FormatError),
        ((4, 32), {"parts": parts(scales=torch.zeros(4, 1, dtype=torch.uint8, device="meta"))}, FormatError),
        ((4, 32), {"parts": {"codes": torch.zeros(4, 16, dtype=torch.uint8)}}, FormatError),
        ((4, 32), {"parts": parts(level0=torch.zeros(4, 1))}, FormatError),
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
