from __future__ import annotations

import pytest

from mxfp4_core.config import Mxfp4Config
from mxfp4_core.naming.kept import kept_by_default
from mxfp4_core.naming.resolver import Resolver
from mxfp4_core.naming.view import ModelView, Parameter


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


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("roberta_prelayernorm.encoder.layer.0.output.dense", False),
        ("embed_tokens_extend.image_embed.encoder.layers.3.mlp.fc1", False),
        ("encoder.blocks.0.1.attention.v_head", False),
        ("model.layers.0.altup.modality_router", True),
        ("transformer_blocks.0.norm1.linear", True),
        ("embeddings.projection", True),
        ("codec_head", True),
    ],
)
def test_a_library_knows_linears_better_than_what_is_around_them(name: str, kept: bool) -> None:
    parameter = Parameter(f"{name}.weight", "linear", (96, 64))
    view = ModelView("a library", "Model", {parameter.name: parameter})
    assert Resolver(Mxfp4Config(), view=view).decide(parameter.name, (96, 64)).quantize != kept


def test_a_linear_is_no_normalisation_because_it_lies_below_one() -> None:
    deep = "transformer.blocks.3.norm_attn_norm.attn.Wqkv"  # DBRX
    assert kept_by_default(deep, known=True) is None
    assert "a normalisation" in (kept_by_default(deep) or "")  # where names are all that is known
    for own in ("transformer_blocks.3.norm1.linear", "layers.0.input_layernorm", "layers.0.norm.proj"):
        assert "a normalisation" in (kept_by_default(own, known=True) or "")
