"""The shipped suite of dialects on ``modelslim``, and the checkpoints that msmodelslim wrote."""

from __future__ import annotations

from mxfp4_core.testing import DialectConformance
from mxfp4_core.testing.suite_dialect import Stored


class TestModelSlim(DialectConformance):
    dialect_name = "modelslim"
    settings = {"activation": "mxfp4"}  # noqa: RUF012, read only
    weights = (
        Stored("model.layers.0.self_attn.q_proj.weight", (64, 512)),
        Stored("model.layers.0.mlp.down_proj.weight", (48, 1024)),
    )
