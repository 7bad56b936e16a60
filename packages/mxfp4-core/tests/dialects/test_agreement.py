"""A checkpoint whose own patterns keep what it holds quantised is refused, by every job, before data is read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mxfp4_core import Mxfp4Config, dialects
from mxfp4_core.checkpoint.reader import Checkpoint, open_checkpoint
from mxfp4_core.errors import DialectError
from mxfp4_core.jobs.convert import convert_checkpoint
from mxfp4_core.jobs.opened import open_quantized
from mxfp4_core.jobs.plan import plan_checkpoint
from mxfp4_core.jobs.quantize import quantize_checkpoint
from mxfp4_core.jobs.verify import verify_checkpoint
from mxfp4_core.naming import ModelView, Parameter, providers

Save = Callable[..., Path]
LAYER = "model.layers.0"
K_PROJ = f"{LAYER}.self_attn.k_proj.weight"


@pytest.fixture
def source(save: Save, dense: dict[str, torch.Tensor]) -> Path:
    return save(dense, config={"model_type": "none_that_is_known"})


def made(source: Path, **settings: Any) -> Path:
    config = Mxfp4Config.from_dict({"dialect": "mxfp4-core", **settings})
    quantize_checkpoint(source, source.parent / "target", config)
    return source.parent / "target"


def say(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= settings
    path.write_text(json.dumps(config))


def read(folder: Path) -> None:
    assert dialects.read(open_checkpoint(folder)) is not None


def convert(folder: Path) -> None:
    convert_checkpoint(folder, folder.parent / "converted", "quark")


@pytest.mark.parametrize("job", [read, verify_checkpoint, convert, plan_checkpoint])
@pytest.mark.parametrize(
    ("settings", "weight", "reason"),
    [
        ({"ignore": ["re:.*"]}, None, "ignored by 're:.*'"),
        ({"ignore": ["nothing", "k_proj"]}, K_PROJ, "ignored by 'k_proj'"),
        ({"overrides": [{"pattern": f"={K_PROJ}", "keep": True}]}, K_PROJ, f"kept by override '={K_PROJ}'"),
    ],
)
def test_patterns_that_keep_what_is_quantised(
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    job: Callable[[Path], object],
    settings: dict[str, Any],
    weight: str | None,
    reason: str,
) -> None:
    target = made(source)
    first = next(iter(dialects.read(open_checkpoint(target))[1].entries))  # type: ignore[index]
    say(target, **settings)

    def touched(*_: object) -> None:
        raise RuntimeError("data was read")

    for method in ("read_into", "rows", "matrix_rows", "load"):
        monkeypatch.setattr(Checkpoint, method, touched)
    with pytest.raises(DialectError, match=re.escape(repr(weight or first))) as caught:
        job(target)
    assert reason in caught.value.seen
    assert "quantization_config" in caught.value.fix
    assert not (source.parent / "converted").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"ignore": ["k_proj", "q_proj", "v_proj"]},
        {"overrides": [{"pattern": "lm_head", "keep": False}, {"pattern": "mlp", "keep": True}]},
        {"targets": ["self_attn"]},
        {"keep_defaults": False, "ignore": ["re:.*norm", "embed_tokens"]},
    ],
)
def test_patterns_that_it_was_made_with(source: Path, settings: dict[str, Any]) -> None:
    target = made(source, **settings)
    assert verify_checkpoint(target, source).ok
    read(target)


def test_what_the_defaults_keep_is_not_held_against_it(source: Path) -> None:
    target = made(source, overrides=[{"pattern": "lm_head", "keep": False}], ignore=["mlp"])
    say(target, overrides=[])  # as another version wrote it, whose defaults quantise heads
    read(target)


@pytest.mark.parametrize("key", ["targets", "ignore"])
def test_patterns_in_the_names_of_the_modules(
    source: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """Only a provider knows that a pattern in the names of the modules means a weight of the file."""
    good, bad = ("tower.layers.0.self_attn", "tower.layers.0.mlp")[:: 1 if key == "targets" else -1]
    target = made(source, targets=["self_attn"])

    def described(config: Any, headers: Any, models: str = "auto") -> providers.Described:
        names = {name: Parameter(name, "linear", shape) for name, (_, shape) in headers.items()}
        return providers.Described(ModelView("test", "Test", names, renames=(("tower", "model"),)), "test")

    monkeypatch.setattr("mxfp4_core.dialects.agreement.describe", described)
    say(target, **{"targets": [], key: [good]})
    open_quantized(target, "verify")
    say(target, **{key: [bad]})
    with pytest.raises(DialectError, match="no target matches it" if key == "targets" else "ignored by"):
        open_quantized(target, "verify")
