"""vLLM's released CPU engine without our plug-in, as a client of what is written: its own readers, or its own words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kit
import made
import pytest

from mxfp4_core.jobs import convert_checkpoint, dequantize_checkpoint

kit.need("vllm")

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the engine
TOKENS = 16


def in_fp8(source: Path, folder: Path) -> None:
    """Write FP8 in blocks, with the values rounded where they have to be."""
    convert_checkpoint(source, folder, "fp8", lossy=True)


MODELS: dict[str, Any] = {
    "gpt-oss": lambda folder, models: made.gpt_oss(folder),
    "gpt-oss-stored": lambda folder, models: made.stored_experts(models["gpt-oss"], folder),
    "gpt-oss-values": lambda folder, models: dequantize_checkpoint(models["gpt-oss-stored"], folder),
    "dense-core": lambda folder, models: made.stored(models["dense"], folder, "mxfp4-core"),
    "dense-compressed": lambda folder, models: made.stored(models["dense"], folder, "compressed-tensors"),
    "dense-quark": lambda folder, models: made.stored(models["dense"], folder, "quark"),
    "dense-fp8": lambda folder, models: in_fp8(models["dense-core"], folder),
    "dense-fp8-values": lambda folder, models: dequantize_checkpoint(models["dense-fp8"], folder),
}
ALONE = {"variables": {"VLLM_PLUGINS": "another"}, "tokens": TOKENS}
SCENARIOS: dict[str, dict[str, Any]] = {name: {"model": name, **ALONE} for name in MODELS}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kit.Engine]:
    models = kit.Models(tmp_path_factory.mktemp("models"), MODELS)
    process = kit.Engine("vllm_run.py", models, SCENARIOS, tmp_path_factory.mktemp("vllm"))
    yield process
    process.close()


@pytest.mark.parametrize(
    ("name", "values"), [("gpt-oss-stored", "gpt-oss-values"), ("dense-fp8", "dense-fp8-values")]
)
def test_tokens_are_those_of_the_values(alone: kit.Engine, name: str, values: str) -> None:
    stored, wide = ([output["tokens"] for output in alone.fine(each)["outputs"]] for each in (name, values))
    assert all(len(tokens) == TOKENS for tokens in stored)
    assert stored == wide


@pytest.mark.parametrize("name", ["dense-compressed", "dense-quark"])
def test_linears_need_the_plug_in_on_a_cpu(alone: kit.Engine, name: str) -> None:
    """It says so itself; with the plug-in the same folders hold the bytes of the core (``test_vllm.py``)."""
    assert "MXFP4" in alone[name]["error"].upper() and "kernel" in alone[name]["error"]
