"""Names of weights that are yet to be quantised: a matrix that is no ``.weight`` needs somebody who knows it."""

from __future__ import annotations

import pytest

from mxfp4_core import dialects
from mxfp4_core.config import Mxfp4Config
from mxfp4_core.errors import DialectError
from mxfp4_core.jobs.planned import planned, stored_as
from mxfp4_core.naming import ModelView, Parameter

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
