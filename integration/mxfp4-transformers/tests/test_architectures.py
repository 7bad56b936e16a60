"""The families people use, each through the whole trial of ``tools/architectures``; every other type runs on demand."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[3] / "tools"))

from architectures import trial
from architectures.build import configured
from architectures.catalogue import TASKS, kinds
from architectures.judge import same_bytes, same_output, widen
from architectures.rows import NOTHING, WORKS, Fault
from architectures.steps import load, load_quantized

from mxfp4_core.config import Mxfp4Config
from mxfp4_core.modules import decide
from mxfp4_transformers.view import view_of

FAMILIES = (
    "bert",  # masked: a head with a bias of its own
    "deepseek_v3",  # latent attention, shared experts, biases of routers in float32
    "gemma2",
    "glmga",  # image and text; its class is that of another type
    "gpt_oss",
    "jamba",  # marks of quantised models in configs count
    "llama",
    "mixtral",
    "phi3",
    "qwen3_5",  # image and text, linear attention
    "roberta-prelayernorm",  # called a norm, and is none
    "t5",  # seq2seq, and linears in float32
    "vit",  # image
    "whisper",  # speech
    "xlnet",  # its first parameter is float32 in every model
)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_works(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row = trial.run(kinds()[name], tmp_path)
    assert (row.status, row.step, row.message) == (WORKS, "", "")
    assert row.weights and row.share > 0.3  # XLNet has most of its matrices in three axes
    assert row.forward.startswith("equal")


@pytest.mark.parametrize("name", ["deepseek_v3", "gemma3"])
def test_what_the_table_of_families_keeps_is_kept_in_every_step(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row = trial.run(kinds()[name], tmp_path, family_defaults=True)
        with torch.device("meta"):
            model = kinds()[name].auto_class.from_config(configured(kinds()[name]))
    assert (row.status, row.step, row.message) == (WORKS, "", "")
    every = decide(Mxfp4Config(family_defaults=False), view_of(model, {})).values()
    assert 0 < row.weights < sum(each.quantize for each in every)


def test_a_model_of_convolutions_has_nothing_to_quantise(tmp_path: Path) -> None:
    row = trial.run(kinds()["resnet"], tmp_path)  # but for its classifier, which is an output head
    assert (row.status, row.message) == (NOTHING, "")


def test_every_task_of_the_catalogue_has_types() -> None:
    assert {kind.task for kind in kinds().values()} == set(TASKS)
    assert len(kinds()) > 350


def test_the_judge_finds_what_is_wrong(tmp_path: Path) -> None:
    kind = kinds()["llama"]
    trial.build(kind, tmp_path)
    model = load_quantized(kind, tmp_path, torch.float32, {})
    weights = model.hf_quantizer.plan.weights
    layer = model.model.layers[0].mlp.down_proj
    plain, other = load(kind, tmp_path, torch.float32), load(kind, tmp_path, torch.float32)
    same_bytes("bytes", model, plain, weights)
    widen(other, weights)
    ids = torch.arange(5, 12)[None]
    with torch.no_grad():
        same_output("forward", model(ids), other(ids))
        with pytest.raises(Fault, match="relative difference"):
            same_output("forward", model(ids), plain(ids))
    layer.weight_scale[[0, 1]] = layer.weight_scale[[1, 0]]  # the scales of another row
    with pytest.raises(Fault, match="other bits"):
        same_bytes("bytes", model, plain, weights)
    plain.model.norm.weight.data[3] += 1e-3
    layer.weight_scale[[0, 1]] = layer.weight_scale[[1, 0]]
    with pytest.raises(Fault, match=r"norm.weight: other bits"):
        same_bytes("bytes", model, plain, weights)
