"""What the vendors' own exporters made of one tiny model: written byte for byte, read, and brought through others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from mxfp4_core import Mxfp4Config, dialects
from mxfp4_core.checkpoint.files import MARK
from mxfp4_core.checkpoint.hashing import tensor_sha256
from mxfp4_core.checkpoint.reader import Checkpoint, open_checkpoint
from mxfp4_core.dialects.source import Source
from mxfp4_core.jobs import convert_checkpoint, quantize_checkpoint, verify_checkpoint
from mxfp4_core.jobs.settled import settings_of

# The file, its dialect, the profile of its codes, the activation mode, what is kept beside lm_head.
VENDORS = {
    "autoround": ("auto-round", "auto-round", "mxfp4", ()),
    "autoround_ct": ("compressed-tensors", "auto-round", "mxfp4", ()),
    "modelopt_default": ("modelopt", "modelopt", "mxfp4", ()),
    "modelopt_mlp": ("modelopt", "modelopt", "mxfp4", ("self_attn",)),
    "modelopt_w4a8": ("modelopt", "modelopt", "fp8", ()),
    "torchao": ("torchao", "torchao-rceil", "mxfp4", ()),
    "ct_mxfp4": ("compressed-tensors", "compressed-tensors", "mxfp4", ()),
    "quark_mxfp4": ("quark", "quark", "mxfp4", ()),
}
# What only the vendor's own run knows, or what names releases.
OWN = {
    "autoround": {"model_free", "extra_config"},
    "autoround_ct": {"sparsity_config", "transform_config", "version", "ignore", "config_groups"},
    "modelopt_mlp": {"ignore"},
    "modelopt_default": {"ignore"},
    "modelopt_w4a8": {"ignore"},
    "torchao": {"quant_type"},
}
Vendor = tuple[str, dict[str, Any]]


@pytest.fixture(params=VENDORS)
def vendor(request: pytest.FixtureRequest, vendor_llama: Path) -> Vendor:
    return str(request.param), json.loads((vendor_llama / f"{request.param}.json").read_text())


def told(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    return {
        name: {"dtype": info.dtype, "shape": list(info.shape), "sha256": tensor_sha256(checkpoint, name)}
        for name, info in checkpoint.tensors.items()
    }


def made(vendor_llama: Path, folder: Path, evidence: str) -> Path:
    """Quantise the model as the vendor did, and bring it into the dialect of the vendor."""
    dialect, profile, activation, ignore = VENDORS[evidence]
    config = Mxfp4Config.from_dict(
        {"profile": profile, "dialect": "mxfp4-core", "activation": activation, "ignore": list(ignore)}
    )
    quantize_checkpoint(vendor_llama, folder / "native", config)
    convert_checkpoint(folder / "native", folder / "made", dialect)
    return folder / "made"


def test_it_is_written_byte_for_byte(vendor: Vendor, vendor_llama: Path, tmp_path: Path) -> None:
    evidence, expected = vendor
    folder = made(vendor_llama, tmp_path, evidence)
    written = open_checkpoint(folder)
    assert told(written) == expected["tensors"]
    described, own = written.config["quantization_config"], OWN.get(evidence, set())
    for key in (described.keys() | expected["quantization_config"].keys()) - own:
        assert described.get(key) == expected["quantization_config"].get(key), key
    if document := expected.get("hf_quant_config.json"):
        beside = json.loads((folder / "hf_quant_config.json").read_text())
        assert beside["producer"] == document["producer"]
        wanted = {key: value for key, value in document["quantization"].items() if key != "exclude_modules"}
        assert wanted.items() <= beside["quantization"].items()


@pytest.mark.parametrize("evidence", ["autoround", "modelopt_w4a8", "torchao", "quark_mxfp4"])
def test_it_comes_back_through_every_dialect_of_linears(
    evidence: str, vendor_llama: Path, tmp_path: Path
) -> None:
    """Its tensors come back, whatever dialect they went through, and its profile with them: one of each layout."""
    expected = json.loads((vendor_llama / f"{evidence}.json").read_text())
    dialect, profile, activation, _ = VENDORS[evidence]
    folder = made(vendor_llama, tmp_path, evidence)
    for name in dialects.names():
        fits = dialects.get(name).linear_only and name != "fp-quant"  # which is no target
        if not fits or (activation == "fp8" and name in FP8_UNSAID):
            continue
        convert_checkpoint(folder, tmp_path / name, name)
        assert verify_checkpoint(tmp_path / name).ok
        convert_checkpoint(tmp_path / name, tmp_path / f"{name}-back", dialect)
        back = open_checkpoint(tmp_path / f"{name}-back")
        assert told(back) == expected["tensors"], name
        found = dialects.read(back)
        assert found is not None and found[1].activation == activation
        # The manifest names the profile, where a file has no word for it.
        assert settings_of(back, *found)[1] == profile


FP8_UNSAID = ("auto-round", "quark", "torchao", "torchao-plain", "modelslim")
"""Dialects without a word for FP8 activations."""


def test_it_is_read(vendor: Vendor) -> None:
    evidence, expected = vendor
    dialect, profile, activation, _ = VENDORS[evidence]
    tensors = {name: (row["dtype"], tuple(row["shape"])) for name, row in expected["tensors"].items()}
    source = Source({"quantization_config": expected["quantization_config"]}, tensors)
    found = [name for name in dialects.names() if dialects.get(name).recognise(source)]
    assert found == [dialect]
    contents = dialects.get(dialect).read(source)
    assert (len(contents.entries), contents.activation) == (
        3 if evidence == "modelopt_mlp" else 7,
        activation,
    )
    assert (contents.profile or profile) == profile
    assert "lm_head" in contents.kept


def test_the_metadata_of_torchao_is_as_its_own(vendor_llama: Path, tmp_path: Path) -> None:
    expected = json.loads((vendor_llama / "torchao.json").read_text())["metadata"]
    folder = made(vendor_llama, tmp_path, "torchao")
    with safe_open(folder / "model.safetensors", "pt") as file:
        metadata = file.metadata()
        assert sorted(json.loads(metadata["tensor_names"])) == sorted(
            set(metadata) - {"format", "tensor_names", MARK}
        )
    for name, text in expected.items():
        # On a machine without the kernels it was told to emulate them; we leave the choice to the reader.
        assert json.loads(metadata[name]) == json.loads(text.replace("EMULATED", "AUTO")), name
