"""The provider of this package passes the suite that every model provider inherits."""

from __future__ import annotations

import json

import components
import pytest
import torch

from mxfp4_core.errors import ModelError
from mxfp4_core.testing import ModelExample, ModelProviderConformance
from mxfp4_diffusers_models import provider


def example(name: str, kinds: dict[str, str]) -> ModelExample:
    with torch.device("meta"):
        model = components.BUILDERS[name]()
    headers = {key: ("BF16", tuple(tensor.shape)) for key, tensor in model.state_dict().items()}
    return ModelExample(json.loads(model.to_json_string()), headers, kinds)


EXAMPLES = {
    "wan": example("wan", {"proj_out.weight": "head", "blocks.0.attn1.to_q.weight": "linear"}),
    "z_image": example("z_image", {"all_final_layer.2-1.linear.weight": "head"}),
    "flux": example("flux", {"single_transformer_blocks.0.proj_out.weight": "linear"}),
    "qwen_image": example("qwen_image", {"img_in.weight": "linear", "proj_out.weight": "head"}),
    "sd3": example("sd3", {"transformer_blocks.0.norm1.linear.weight": "linear"}),
}


class TestDiffusers(ModelProviderConformance):
    provider_name = "diffusers"
    examples = EXAMPLES


def test_what_is_no_model_of_diffusers_is_left_to_others() -> None:
    assert provider.describe({}, {}) is None
    assert provider.describe({"_class_name": "WanPipeline"}, {}) is None
    assert provider.describe({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}, {}) is None


@pytest.mark.parametrize(
    ("change", "match"),
    [({"patch_size": "two"}, "cannot be built"), ({"num_layers": 9}, "no place in it|is not one of|lacks")],
)
def test_a_config_that_is_not_that_of_the_tensors(change: dict[str, object], match: str) -> None:
    found = EXAMPLES["sd3"]
    headers = dict(found.headers)
    if "num_layers" in change:
        headers = {f"other.{name}": header for name, header in headers.items()}
    with pytest.raises(ModelError, match=match):
        provider.describe({**found.config, **change}, headers)
