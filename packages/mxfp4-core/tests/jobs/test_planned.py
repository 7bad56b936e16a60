"""Names of weights that are yet to be quantised: a matrix that is no ``.weight`` needs somebody who knows it."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest

from mxfp4_core import dialects
from mxfp4_core.checkpoint.header import DTYPE_BITS, TensorInfo
from mxfp4_core.config import Mxfp4Config
from mxfp4_core.errors import DialectError
from mxfp4_core.jobs import rows as made
from mxfp4_core.jobs.planned import planned, stored_as
from mxfp4_core.jobs.rows import Row, Rows, row_of
from mxfp4_core.naming import ModelView, Parameter
from mxfp4_core.naming.decision import Decision
from mxfp4_core.naming.facts import ModelFacts
from mxfp4_core.parallel.shards import Parallel

NAME = "layers.0.attn.in_proj_weight"


def view(refusal: str = "") -> ModelView:
    return ModelView("library", "Model", {NAME: Parameter(NAME, "linear", (96, 64), refusal=refusal)})


def test_a_matrix_that_the_library_knows_is_stored_under_its_own_name() -> None:
    config, native = Mxfp4Config(), dialects.get("mxfp4-core")
    names, _ = stored_as(planned(NAME, (96, 64), False, "", view=view()), config, native)
    assert names == (NAME, f"{NAME}_scale")


@pytest.mark.parametrize("told", [None, view("it does not multiply")])
def test_a_matrix_that_nobody_knows_is_refused(told: ModelView | None) -> None:
    entry = planned(NAME, (96, 64), False, "", view=told)
    with pytest.raises(DialectError, match="cannot be quantised") as caught:
        stored_as(entry, Mxfp4Config(), dialects.get("mxfp4-core"))
    assert "bare parameter" in caught.value.seen


@pytest.mark.parametrize("dialect", ["mxfp4-core", "quark", "gpt-oss"])
@pytest.mark.parametrize("parallel", [Parallel(), Parallel(4, 2), Parallel(8, 8)])
def test_rows_that_differ_by_a_number_are_made_once_and_are_the_same(
    dialect: str, parallel: Parallel
) -> None:
    config = Mxfp4Config.from_dict({"dialect": dialect})
    facts, target = ModelFacts(heads=4, kv_heads=2, experts=4, layers=3), dialects.get(dialect)
    shapes = {
        "layers.{}.self_attn.k_proj.weight": [(32, 64), (32, 64), (32, 96), (32, 50)],
        "model.layers.{}.mlp.experts.{}.down_proj.weight": [(64, 32), (64, 32), (64, 256), (64, 256)],
        "model.layers.{}.mlp.experts.down_proj": [(4, 64, 32), (4, 64, 256), (4, 64, 32), (3, 64, 32)],
        "blocks.{}.ff.net.2.weight": [(64, 128)] * 4,
        "blocks.0.ff.net.{}.weight": [(64, 128)] * 4,
        "layers.{}.norm.weight": [(64,)] * 4,
    }
    rows = Rows(config, target, parallel, facts)
    for text, sizes in shapes.items():
        for number, shape in enumerate(sizes):
            for dtype, keep in itertools.product(("BF16", "F32", "U8"), (True, False)):
                name, size = text.format(number, number), math.prod(shape) * DTYPE_BITS[dtype] // 8
                info = TensorInfo(name, dtype, shape, Path("x"), 0, size)
                entry = None if keep or len(shape) < 2 else planned(name, shape, False, "")
                decision = Decision(name, entry is not None, f"number {number}")
                assert rows.of(info, decision, entry) == row_of(
                    info, decision, entry, config, target, parallel, facts
                )


def test_the_work_does_not_grow_with_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = made.row_of

    def noted(info: TensorInfo, *rest: Any) -> Row:
        asked.append(info.name)
        return real(info, *rest)

    monkeypatch.setattr(made, "row_of", noted)
    config = Mxfp4Config()
    rows = Rows(config, dialects.get("quark"), Parallel(), ModelFacts())
    for layer, expert in itertools.product(range(20), range(30)):
        name = f"model.layers.{layer}.mlp.experts.{expert}.up_proj.weight"
        info = TensorInfo(name, "BF16", (32, 64), Path("x"), 0, 4096)
        row = rows.of(info, Decision(name, True, "an expert"), planned(name, info.shape, False, ""))
        assert (row.name, row.decision.name) == (name, name)
    assert asked == ["model.layers.0.mlp.experts.0.up_proj.weight"]
