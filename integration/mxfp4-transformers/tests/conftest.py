"""Checkpoints for the tests; what they are made of is in ``tiny.py``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import settings as hypothesis_settings
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode does not

from families import MODELS
from tiny import CONFIGS, NAMES, load, settings, tensors

import mxfp4_transformers
from mxfp4_core import quantize

# A machine that does other things, too, takes as long as it likes.
hypothesis_settings.register_profile("mxfp4", deadline=None)
hypothesis_settings.load_profile("mxfp4")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One BF16 checkpoint of each kind, with weights of the size that trained models have."""
    root = tmp_path_factory.mktemp("bf16")
    for number, (name, config) in enumerate(CONFIGS.items()):
        torch.manual_seed(number)
        model = AutoModelForCausalLM.from_config(config(), dtype=torch.bfloat16)
        for key, parameter in model.named_parameters():
            # Large enough for every weight to matter for the logits.
            scale = 0.3 if key.endswith("bias") or parameter.ndim == 1 else 0.2
            parameter.data = torch.randn(parameter.shape).mul_(scale).to(torch.bfloat16)
            if "norm" in key:
                parameter.data += 1
        model.save_pretrained(root / name)
    return {name: root / name for name in CONFIGS}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One checkpoint of each family."""
    root = tmp_path_factory.mktemp("families")
    for name, build in MODELS.items():
        torch.manual_seed(0)
        build().to(torch.bfloat16).save_pretrained(root / name)
    return {name: root / name for name in MODELS}


@pytest.fixture(params=NAMES)
def checkpoint(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> Path:
    return checkpoints[request.param]


@pytest.fixture
def edited(tmp_path: Path) -> Callable[[Path, dict[str, torch.Tensor | None]], Path]:
    """Copy a checkpoint with some tensors changed, added, or (None) left out."""

    def edit(path: Path, changes: dict[str, torch.Tensor | None]) -> Path:
        target = tmp_path / "edited"
        target.mkdir(exist_ok=True)
        for name in ("config.json", "generation_config.json"):
            if (path / name).exists():
                (target / name).write_text((path / name).read_text())
        kept = {**tensors(path), **changes}
        save_file(
            {n: t for n, t in kept.items() if t is not None}, target / "model.safetensors", {"format": "pt"}
        )
        return target

    return edit


@pytest.fixture(scope="session")
def made(
    checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    """Return a quantised copy of a tiny model in a dialect."""
    root = tmp_path_factory.mktemp("serialised")

    def make(model: str, dialect: str) -> Path:
        path = root / f"{model}-{dialect}"
        if not path.exists():
            loaded = load(checkpoints[model], settings(profile="quark"))
            mxfp4_transformers.save(loaded, path, dialect=dialect)
        return path

    return make


@pytest.fixture(scope="session")
def gpt_oss(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as OpenAI stores its models: experts in blocks of 16 bytes, all else in high precision."""
    path = tmp_path_factory.mktemp("gpt_oss")
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in tensors(checkpoints["gpt_oss"]).items():
        if name.endswith(("gate_up_proj", "down_proj")):
            packed = quantize(tensor.transpose(-1, -2).contiguous(), profile="triton-kernels")
            stored[f"{name}_blocks"] = packed.codes.unflatten(-1, (-1, 16)).contiguous()
            stored[f"{name}_scales"] = packed.scales
        else:
            stored[name] = tensor
    save_file(stored, path / "model.safetensors", {"format": "pt"})
    config = json.loads((checkpoints["gpt_oss"] / "config.json").read_text())
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": kept}
    (path / "config.json").write_text(json.dumps(config))
    return path
