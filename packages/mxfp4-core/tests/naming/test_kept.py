from __future__ import annotations

import pytest

from mxfp4_core.config import Mxfp4Config
from mxfp4_core.naming.resolver import Resolver


@pytest.mark.parametrize(
    "name",
    [
        "output",
        "model.output",
        "transformer.output_layer",
        "cls.predictions.decoder",
        "lm_heads.0",
        "codec_head",
        "emb",
        "model.tok_emb",
        "shared",
        "encoder.shared",
        "quantizer.codebook",
        "codebooks.3",
    ],
)
def test_heads_and_tables_by_their_other_names(name: str) -> None:
    assert not Resolver(Mxfp4Config()).decide(f"{name}.weight", (96, 64)).quantize


@pytest.mark.parametrize("name", ["layers.0.attention.output", "layers.0.mlp.shared", "layers.0.decoder.fc1"])
def test_linears_that_sound_alike(name: str) -> None:
    assert Resolver(Mxfp4Config()).decide(f"{name}.weight", (96, 64)).quantize
