"""transformers with our adapter: what it holds and says is judged by the kit of the serving engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kit
import made
import pytest
import torch

from mxfp4_core.modules import Mxfp4Module
from mxfp4_core.testing import PROMPTS, check_parts, expected_parts, held_by

mxfp4_transformers = pytest.importorskip("mxfp4_transformers")


def load(folder: Path, **more: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **more)


@torch.no_grad()
def said(model: Any) -> list[dict[str, Any]]:
    outputs = []
    for prompt in PROMPTS:
        first = model(torch.tensor([prompt])).logits[0, -1].float().log_softmax(-1).topk(20)
        pairs = zip(first.indices.tolist(), first.values.tolist(), strict=True)
        outputs.append({"tokens": [int(first.indices[0])], "first": dict(pairs)})
    return outputs


def held(model: Any) -> dict[str, torch.Tensor]:
    return held_by((name, each) for name, each in model.named_modules() if isinstance(each, Mxfp4Module))


@pytest.mark.parametrize("name", kit.MODELS)
def test_it_holds_the_bytes_of_the_core_and_says_what_its_own_arithmetic_says(
    name: str, tmp_path: Path
) -> None:
    source = kit.MODELS[name]
    weights = {key: each for key, each in kit.tensors(source).items() if key.endswith("_proj.weight")}
    made.stored(source, tmp_path / "stored", "mxfp4-core")
    online = load(source, quantization_config=mxfp4_transformers.Mxfp4Config())
    for model in (online, load(tmp_path / "stored")):
        kit.check_said(said(model), source)
        check_parts(held(model), expected_parts(weights, fused={}))


def test_other_bytes_are_seen() -> None:
    source = kit.MODELS["dense"]
    held_now = held(load(source, quantization_config=mxfp4_transformers.Mxfp4Config(rule="floor")))
    weights = {key: each for key, each in kit.tensors(source).items() if key.endswith("_proj.weight")}
    with pytest.raises(AssertionError, match="has other bytes"):
        check_parts(held_now, expected_parts(weights, fused={}))
    with pytest.raises(AssertionError, match="not both"):
        check_parts({}, expected_parts(weights, fused={}))


def test_another_model_is_heard(tmp_path: Path) -> None:
    made.shifted(kit.MODELS["dense"], tmp_path / "other")
    other = load(tmp_path / "other", quantization_config=mxfp4_transformers.Mxfp4Config())
    with pytest.raises(AssertionError, match="log-probability"):
        kit.check_said(said(other), kit.MODELS["dense"])
