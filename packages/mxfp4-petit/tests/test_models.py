"""The small trained models end to end: on the emulated device, and by our kernels in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytest.importorskip("mxfp4_transformers", reason="the adapter for transformers is not here")
pytest.importorskip("transformers")

import support_models
from support_models import NAMES, ROOT, from_pretrained, layouts, perplexity, windows

from mxfp4_core import Mxfp4Config as CoreConfig
from mxfp4_core.backend import Problem, select_backend
from mxfp4_core.jobs import convert_checkpoint, quantize_checkpoint

LAYOUTS = {"qwen3-tiny": {"petit-kernel-0.0.3"}, "qwen3-moe-tiny": {"petit-kernel-0.0.3", "portable-k256"}}


@pytest.fixture(autouse=True)
def in_place() -> Iterator[None]:
    with support_models.registered():
        yield


@pytest.mark.parametrize("name", NAMES)
def test_online_it_computes_what_the_reference_does(name: str) -> None:
    path, ids = ROOT / "models" / name, windows(name)
    model = from_pretrained(path, backend="petit-emulated")
    reference = from_pretrained(path, backend="reference")
    found, wanted = perplexity.measure(model, ids), perplexity.measure(reference, ids)
    assert abs(found.minus(wanted).value) < 0.01, (found.loss, wanted.loss)
    assert found.loss.value < 4.0
    assert layouts(model) == LAYOUTS[name]


@pytest.mark.parametrize("name", NAMES)
def test_folders_of_others_compute_what_the_online_model_does(name: str, tmp_path: Path) -> None:
    """A Quark folder whose every layer is MXFP4, and one of compressed-tensors, with their own bytes."""
    ids = windows(name, 2)
    online = from_pretrained(ROOT / "models" / name, backend="petit-emulated", profile="quark")
    with torch.inference_mode():
        want = online(ids).logits
    quark = tmp_path / "quark"
    quantize_checkpoint(ROOT / "models" / name, quark, CoreConfig(profile="quark", dialect="quark"))
    convert_checkpoint(quark, tmp_path / "compressed-tensors", "compressed-tensors")
    for folder in (quark, tmp_path / "compressed-tensors"):
        model = from_pretrained(folder, backend="petit-emulated")
        with torch.inference_mode():
            assert torch.equal(model(ids).logits, want), folder.name
        assert layouts(model) == layouts(online)


def test_a_folder_of_modelopt_keeps_its_bytes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its word is W4A4; no unit here multiplies FP4, so that tokens stay in bfloat16, which is said."""
    name = NAMES[1]
    ids, settings = windows(name, 2), {"profile": "modelopt"}
    online = from_pretrained(ROOT / "models" / name, backend="petit-emulated", **settings)
    quantize_checkpoint(
        ROOT / "models" / name,
        tmp_path / "made",
        CoreConfig(dialect="modelopt", activation="mxfp4", **settings),
    )
    with caplog.at_level("WARNING"):
        model = from_pretrained(tmp_path / "made", backend="petit-emulated")
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, online(ids).logits)
    assert layouts(model) == LAYOUTS[name]
    assert "activations in mxfp4" in caplog.text


def test_every_report_says_that_it_is_emulated() -> None:
    for problem in (Problem(op="linear", n=64, k=64), Problem(op="moe", n=64, k=64, experts=2, top_k=1)):
        assert "emulated on a CPU" in str(select_backend(problem, backend="petit-emulated"))


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_our_kernels_run_a_model_in_the_interpreter() -> None:
    """The one with experts, whose attention is linear layers."""
    script = Path(__file__).with_name("interpreted_model.py")
    run = subprocess.run(
        [sys.executable, str(script), NAMES[1]],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
