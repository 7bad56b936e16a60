"""The small trained models end to end on the emulated device: online, from a Quark folder, from compressed-tensors."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rocm_emulated import aiter, registered

from mxfp4_core import Mxfp4Config as CoreConfig
from mxfp4_core.backend import Problem, select_backend
from mxfp4_core.dialects import NATIVE
from mxfp4_core.errors import ConfigError
from mxfp4_core.jobs import convert_checkpoint, quantize_checkpoint
from mxfp4_core.loader import EngineNames
from mxfp4_core.modules import Mxfp4Module, quantize_

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "demo"))

mxfp4_transformers = pytest.importorskip(
    "mxfp4_transformers", reason="the adapter for transformers is not here"
)
transformers = pytest.importorskip("transformers")
import perplexity  # noqa: E402

NAMES = ("qwen3-tiny", "qwen3-moe-tiny")
TEXT = (ROOT / "models" / "heldout.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module", autouse=True)
def in_place() -> Iterator[None]:
    """The wheel that was proven, emulated, and the backend of this package on it."""
    with aiter("wheel"), registered():
        yield


def from_pretrained(path: Path, **settings: Any) -> Any:
    return mxfp4_transformers.from_pretrained(path, config=mxfp4_transformers.Mxfp4Config(**settings)).eval()


def windows(name: str, count: int = 3) -> torch.Tensor:
    tokenizer = transformers.AutoTokenizer.from_pretrained(ROOT / "models" / name)
    return perplexity.cut(tokenizer(TEXT).input_ids, length=128, count=count)


def layouts(model: Any) -> list[str]:
    """Return the layout of each module."""
    modules = [module for module in model.modules() if isinstance(module, Mxfp4Module)]
    return [name for one in modules for name in re.findall(r"\((aiter-[\w-]+)\)", one.extra_repr())]


@pytest.mark.parametrize(
    ("name", "activation"), [(NAMES[0], "auto"), (NAMES[1], "none"), (NAMES[1], "auto")], ids=str
)
def test_online_it_computes_what_the_reference_does(name: str, activation: str) -> None:
    """W4A16 and W4A4: the losses of windows of the held-out text, beside those of the judge."""
    path, ids = ROOT / "models" / name, windows(name)
    model = from_pretrained(path, backend="rocm-emulated", activation=activation)
    reference = from_pretrained(
        path, backend="reference", activation={"auto": "mxfp4"}.get(activation, "none")
    )
    found, wanted = perplexity.measure(model, ids), perplexity.measure(reference, ids)
    assert abs(found.minus(wanted).value) < 0.03, (found.loss, wanted.loss)
    assert found.loss.value < 4.0
    used = layouts(model)
    if activation == "none":
        assert set(used) == {"aiter-raw-128-bf16"}
    else:
        assert "aiter-16x16" in used and ("aiter-16x16-experts" in used) == (name == "qwen3-moe-tiny")


@pytest.mark.parametrize("name", NAMES)
def test_folders_of_others_compute_what_the_online_model_does(name: str, tmp_path: Path) -> None:
    """The bytes that Quark writes, from a Quark folder and from one of compressed-tensors."""
    ids = windows(name, 2)
    online = from_pretrained(
        ROOT / "models" / name, backend="rocm-emulated", activation="mxfp4", profile="quark"
    )
    with torch.inference_mode():
        want = online(ids).logits
    quantize_checkpoint(
        ROOT / "models" / name,
        tmp_path / "quark",
        CoreConfig(profile="quark", dialect="quark", activation="mxfp4"),
    )
    convert_checkpoint(tmp_path / "quark", tmp_path / "compressed-tensors", "compressed-tensors")
    for folder in ("quark", "compressed-tensors"):
        model = from_pretrained(tmp_path / folder, backend="rocm-emulated", activation="mxfp4")
        with torch.inference_mode():
            assert torch.equal(model(ids).logits, want), folder
        assert layouts(model) == layouts(online)


def test_every_report_says_that_it_is_emulated() -> None:
    model = from_pretrained(ROOT / "models" / "qwen3-tiny", backend="rocm-emulated", activation="auto")
    assert "even/even on rocm-emulated" in str(mxfp4_transformers.summary(model))
    chosen = select_backend(Problem(op="linear", n=256, k=256, activation="auto"), backend="rocm-emulated")
    assert chosen.numerics is not None and chosen.numerics.emulated
    assert "emulated; W4A4" in str(chosen) and chosen.answer is not None and chosen.answer.emulated


def test_a_folder_says_what_was_asked_and_nothing_else(tmp_path: Path) -> None:
    """Where nobody asked, the load decides as it does for weights in high precision; a word stays a word."""
    source, ids = ROOT / "models" / NAMES[0], windows(NAMES[0], 2)
    want = {}
    for word in ("auto", "none"):
        online = from_pretrained(source, backend="rocm-emulated", activation=word)
        with torch.inference_mode():
            want[word] = online(ids).logits
    for name, said in (("unsaid", {}), ("none", {"activation": "none"})):
        quantize_checkpoint(source, tmp_path / name, CoreConfig(dialect="mxfp4-core", **said))
        described = json.loads((tmp_path / name / "config.json").read_text())["quantization_config"]
        assert ("activation" in described) == bool(said)
    old = tmp_path / "old"  # what was written before says `none`, and means it
    shutil.copytree(tmp_path / "unsaid", old)
    config = json.loads((old / "config.json").read_text())
    config["quantization_config"]["activation"] = "none"
    (old / "config.json").write_text(json.dumps(config))
    for name, asked, word in (
        ("unsaid", {}, "auto"),
        ("unsaid", {"activation": "none"}, "none"),
        ("unsaid", {"activation": "mxfp4"}, "auto"),
        ("none", {}, "none"),
        ("old", {}, "none"),
    ):
        model = from_pretrained(tmp_path / name, backend="rocm-emulated", **asked)
        with torch.inference_mode():
            assert torch.equal(model(ids).logits, want[word]), (name, asked)
        model.save_pretrained(tmp_path / "again")
        saved = json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"]
        assert saved.get("activation") == (asked.get("activation") or ("none" if name != "unsaid" else None))
    with pytest.raises(ConfigError, match="activation: 'mxfp4' asked, 'none' in the folder"):
        from_pretrained(tmp_path / "none", backend="rocm-emulated", activation="mxfp4")
    for name, word in (("unsaid", "auto"), ("none", "none")):
        described = json.loads((tmp_path / name / "config.json").read_text())
        config = NATIVE.settings(described["quantization_config"])
        names = EngineNames(
            CoreConfig.from_dict({**config, "backend": "rocm-emulated"}),
            model_config=described,
            folder=tmp_path / name,
            stored=True,
        )
        assert names.decide("model.layers.0.mlp.down_proj").activation == word
    convert_checkpoint(tmp_path / "unsaid", tmp_path / "converted", "mxfp4-core")
    described = json.loads((tmp_path / "converted" / "config.json").read_text())["quantization_config"]
    assert "activation" not in described


def test_w4a4_is_what_a_plain_config_gets(tmp_path: Path) -> None:
    """Saved and loaded again, too; ``none`` is W4A16 by name, and engines ask in the same way."""
    ids = windows(NAMES[0], 2)
    plain, asked, wide = (
        from_pretrained(ROOT / "models" / NAMES[0], backend="rocm-emulated", **more)
        for more in ({}, {"activation": "auto"}, {"activation": "none"})
    )
    assert layouts(plain) == layouts(asked) and "aiter-16x16" in layouts(plain)
    assert set(layouts(wide)) == {"aiter-raw-128-bf16"}
    plain.save_pretrained(tmp_path / "saved")
    again = from_pretrained(tmp_path / "saved", backend="rocm-emulated")
    with torch.inference_mode():
        want = plain(ids).logits
        assert torch.equal(asked(ids).logits, want) and torch.equal(again(ids).logits, want)
    quantised = quantize_(
        transformers.AutoModelForCausalLM.from_pretrained(ROOT / "models" / NAMES[0], dtype=torch.bfloat16),
        CoreConfig(backend="rocm-emulated"),
        refused="keep",
    )
    assert layouts(quantised.model) == layouts(plain)
    for config, word in ((CoreConfig(backend="rocm-emulated"), "auto"), (CoreConfig(), "none")):
        names = EngineNames(config, model_config={})
        assert names.decide("model.layers.0.mlp.down_proj").activation == word
