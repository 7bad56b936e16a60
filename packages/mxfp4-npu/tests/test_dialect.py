"""The dialect ``modelslim``: both spellings of names, the older container, folders that contradict themselves."""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, save_file
from torch import Tensor

from mxfp4_core import dialects, quantize
from mxfp4_core.checkpoint import open_checkpoint
from mxfp4_core.config import Mxfp4Config
from mxfp4_core.errors import DialectError
from mxfp4_core.jobs import convert_checkpoint, quantize_checkpoint, verify_checkpoint
from mxfp4_npu import names

BLOCK = "blocks.0.attn1.to_q"
VECTORS = Path(__file__).resolve().parents[3] / "golden" / "v2" / "dual.safetensors.xz"
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
SETTINGS = {
    "version": "1.0.0",
    "model_quant_type": names.DUAL,
    "metadata": {},
    "group_size": 32,
    "optional": {},
}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a folder as msmodelslim does; further tensors and types replace those of the layer."""

    def made(
        tensors: Mapping[str, Tensor | None] | None = None,
        kinds: Mapping[str, str | None] | None = None,
        *,
        wrapped: bool = False,
        dual: bool = True,
        name: str = "folder",
    ) -> Path:
        module = f"{BLOCK}.linear" if wrapped else BLOCK
        weight = quantize(values(), format="mxfp4-dual" if dual else "mxfp4", profile="msmodelslim")
        stored: dict[str, Tensor | None] = {
            f"{module}.weight": weight.codes,
            f"{module}.weight_scale": weight.scales,
            f"{module}.bias": torch.ones(48),
            f"{BLOCK}{'.div' if wrapped else ''}.mul_scale": torch.linspace(0.5, 2, 1024),
            "norm.weight": torch.ones(48),
        }
        if dual:
            stored[f"{module}.weight_dual_scale"] = weight.parts["level0"][..., None]
        kind = names.DUAL if dual else names.SINGLE
        types: dict[str, Any] = {key: kind for key in stored if "norm" not in key}
        types["norm.weight"] = names.FLOAT
        stored |= dict(tensors or {})
        types |= dict(kinds or {})
        folder = tmp_path / name
        folder.mkdir()
        kept = {key: tensor.contiguous() for key, tensor in stored.items() if tensor is not None}
        save_file(kept, folder / "quant_model_weights.safetensors")
        (folder / "config.json").write_text(json.dumps({"model_type": "wan"}))
        described = {key: kind for key, kind in types.items() if kind is not None} | SETTINGS
        (folder / names.DESCRIPTION).write_text(json.dumps(described))
        return folder

    return made


def values() -> Tensor:
    return torch.randn(48, 1024, generator=torch.Generator().manual_seed(0)).bfloat16()


def read(folder: Path) -> dialects.Contents:
    found = dialects.read(open_checkpoint(folder))
    assert found is not None and found[0].name == "modelslim"
    return found[1]


@pytest.mark.parametrize("dual", [True, False], ids=["two levels", "one level"])
@pytest.mark.parametrize("wrapped", [True, False], ids=["wrapped", "repacked"])
def test_both_spellings_are_one_weight(write: Write, wrapped: bool, dual: bool) -> None:
    contents = read(write(wrapped=wrapped, dual=dual))
    (entry,) = contents.entries.values()
    assert (entry.weight, entry.shape) == (f"{BLOCK}.weight", (48, 1024))
    assert entry.format == ("mxfp4-dual+input_scale" if dual else "mxfp4+input_scale")
    assert set(contents.tensors) == {f"{BLOCK}.bias", "norm.weight"} and contents.activation == "mxfp4"


def test_a_model_may_have_a_linear_of_its_own(write: Write) -> None:
    folder = write({f"{BLOCK}.div.mul_scale": None}, {f"{BLOCK}.div.mul_scale": None}, wrapped=True)
    (entry,) = read(folder).entries.values()
    assert (entry.weight, entry.format) == (f"{BLOCK}.linear.weight", "mxfp4-dual")


def test_a_repack_that_left_the_description_as_it_was(write: Write) -> None:
    kinds = {f"{BLOCK}.{name}": None for name in ("weight", "weight_scale", "weight_dual_scale", "bias")}
    kinds |= {
        f"{BLOCK}.linear.weight": names.DUAL,
        f"{BLOCK}.mul_scale": None,
        f"{BLOCK}.div.mul_scale": "FLOAT",
    }
    assert set(read(write(kinds=kinds)).entries) == {f"{BLOCK}.weight"}


def test_the_older_container_has_one_value_a_byte(write: Write) -> None:
    folder = write(name="packed")
    (entry,) = read(folder).entries.values()
    codes = entry.parts["codes"].load(open_checkpoint(folder))
    both = torch.stack([codes & 15, codes >> 4], -1).flatten(1)
    wide = E2M1[(both & 7).long()] * torch.where(both >= 8, -1.0, 1.0)
    older = write({f"{BLOCK}.weight": wide.to(torch.float8_e4m3fn)}, name="older")
    (same,) = read(older).entries.values()
    assert torch.equal(same.parts["codes"].load(open_checkpoint(older)), codes)
    assert torch.equal(same.parts["codes"].load(open_checkpoint(older), 7, 9), codes[7:9])
    broken = wide.clone()
    broken[5, 9] = 5.0
    folder = write({f"{BLOCK}.weight": broken.to(torch.float8_e4m3fn)}, name="broken")
    (entry,) = read(folder).entries.values()
    with pytest.raises(DialectError, match=r"5\.0 at \[5, 9\]"):
        entry.parts["codes"].load(open_checkpoint(folder))


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf, -1.0], ids=str)
def test_a_multiplier_that_is_no_multiplier(write: Write, value: float) -> None:
    wrong = torch.ones(1024)
    wrong[77] = value
    folder = write({f"{BLOCK}.mul_scale": wrong})
    (entry,) = read(folder).entries.values()
    with pytest.raises(DialectError, match=r"at \[77\]"):
        entry.parts["input_scale"].load(open_checkpoint(folder))


WRONG: dict[str, tuple[dict[str, Tensor | None], dict[str, str | None], str]] = {
    "a described tensor is absent": ({}, {"gone.weight": names.FLOAT}, "gone.weight"),
    "an unknown type": ({}, {f"{BLOCK}.weight": "W8A8_DYNAMIC"}, "W8A8_DYNAMIC"),
    "no scales": ({f"{BLOCK}.weight_scale": None}, {f"{BLOCK}.weight_scale": None}, "weight_scale"),
    "no outer scales": ({f"{BLOCK}.weight_dual_scale": None}, {f"{BLOCK}.weight_dual_scale": None}, "level0"),
    "scales of another shape": ({f"{BLOCK}.weight_scale": torch.zeros(48, 31, dtype=torch.uint8)}, {}, "31"),
    "outer scales of another shape": ({f"{BLOCK}.weight_dual_scale": torch.ones(48, 2)}, {}, r"\[48, 2\]"),
    "outer scales of one level": ({}, {f"{BLOCK}.weight": names.SINGLE}, "weight_dual_scale"),
    "a multiplier of another size": ({f"{BLOCK}.mul_scale": torch.ones(512)}, {}, "mul_scale"),
    "scales without codes": ({"x.weight_scale": torch.zeros(2, 2, dtype=torch.uint8)}, {}, "x.weight_scale"),
    "bytes that are called floats": (
        {"y.weight": torch.zeros(2, 2, dtype=torch.uint8)},
        {"y.weight": names.FLOAT},
        "y.weight",
    ),
}


@pytest.mark.parametrize(("tensors", "kinds", "seen"), WRONG.values(), ids=WRONG)
def test_folders_that_contradict_themselves(
    write: Write, tensors: dict[str, Tensor | None], kinds: dict[str, str | None], seen: str
) -> None:
    folder = write(tensors, kinds)
    with pytest.raises(DialectError, match=seen) as caught:
        read(folder)
    assert caught.value.rule and caught.value.fix


@pytest.mark.parametrize("method", ["modelslim", "ascend"])
def test_a_method_without_a_description(write: Write, method: str) -> None:
    folder = write()
    (folder / names.DESCRIPTION).unlink()
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": method}}))
    with pytest.raises(DialectError, match=names.DESCRIPTION):
        read(folder)


def test_other_types_alone_are_not_ours(write: Write) -> None:
    other = "W8A8_DYNAMIC"
    folder = write(kinds={key: other for key in ("norm.weight", f"{BLOCK}.bias", f"{BLOCK}.mul_scale")})
    described = dict.fromkeys(json.loads((folder / names.DESCRIPTION).read_text()), other)
    (folder / names.DESCRIPTION).write_text(json.dumps(described))
    with pytest.raises(DialectError, match="msmodelslim"):
        dialects.read(open_checkpoint(folder))


def test_a_repack_by_convert(write: Write, tmp_path: Path) -> None:
    source, target = write(wrapped=True), tmp_path / "repacked"
    convert_checkpoint(source, target, "modelslim")
    stored = load_file(target / "quant_model_weights.safetensors")
    assert f"{BLOCK}.weight" in stored and f"{BLOCK}.mul_scale" in stored
    assert not any(".linear." in name or ".div." in name for name in stored)
    described = json.loads((target / names.DESCRIPTION).read_text())
    assert set(stored) == set(described) - set(SETTINGS)
    assert described[f"{BLOCK}.weight"] == names.DUAL and described["norm.weight"] == names.FLOAT
    assert verify_checkpoint(target).ok


def test_what_quantize_writes(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    name = "model.layers.0.mlp.up_proj"
    save_file({f"{name}.weight": values()}, source / "model.safetensors")
    (source / "config.json").write_text(json.dumps({"model_type": "llama"}))
    config = {"format": "mxfp4-dual", "profile": "msmodelslim", "dialect": "modelslim", "activation": "mxfp4"}
    quantize_checkpoint(source, target, Mxfp4Config.from_dict(config))
    want = quantize(values(), format="mxfp4-dual", profile="msmodelslim")
    stored = load_file(target / "quant_model_weights.safetensors")
    assert torch.equal(stored[f"{name}.weight"], want.codes)
    assert torch.equal(stored[f"{name}.weight_scale"], want.scales)
    assert torch.equal(stored[f"{name}.weight_dual_scale"], want.parts["level0"][..., None])
    assert "quantization_config" not in json.loads((target / "config.json").read_text())
    assert verify_checkpoint(target, source).ok
    with pytest.raises(DialectError, match="activation"):
        quantize_checkpoint(source, tmp_path / "no", Mxfp4Config.from_dict({**config, "activation": "none"}))


EXAMPLE = """{
  "layer.weight": "W4A4_MXFP4_DUALSCALE",
  "layer.weight_scale": "W4A4_MXFP4_DUALSCALE",
  "layer.weight_dual_scale": "W4A4_MXFP4_DUALSCALE",
  "version": "1.0.0",
  "model_quant_type": "W4A4_MXFP4_DUALSCALE",
  "metadata": {},
  "group_size": 32,
  "optional": {}
}"""
"""quant_model_description.json beside the vectors that msmodelslim 26.1.0 wrote for one linear of 48 x 1024."""


def test_a_checkpoint_of_two_levels_is_the_one_that_msmodelslim_wrote(tmp_path: Path) -> None:
    """Each tensor byte for byte, and the text of the description."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    vectors = load(lzma.decompress(VECTORS.read_bytes()))
    save_file({"layer.weight": vectors["input/normal_bf16"]}, source / "model.safetensors")
    (source / "config.json").write_text(json.dumps({"model_type": "llama"}))
    config = {"format": "mxfp4-dual", "profile": "msmodelslim", "dialect": "modelslim", "activation": "mxfp4"}
    quantize_checkpoint(source, target, Mxfp4Config.from_dict(config))
    stored = load_file(target / "quant_model_weights.safetensors")
    assert {name: stored[name].dtype for name in stored} == {
        "layer.weight": torch.uint8,
        "layer.weight_scale": torch.uint8,
        "layer.weight_dual_scale": torch.float32,
    }
    for name, part in {"weight": "codes", "weight_scale": "scales"}.items():
        assert torch.equal(stored[f"layer.{name}"], vectors[f"msmodelslim/normal_bf16/{part}"]), name
    outer = vectors["msmodelslim/normal_bf16/level0"][..., None]
    assert torch.equal(stored["layer.weight_dual_scale"].view(torch.int32), outer.view(torch.int32))
    assert (target / names.DESCRIPTION).read_text().rstrip() == EXAMPLE
