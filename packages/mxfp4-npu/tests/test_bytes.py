"""Whole files of the dialect ``modelslim``: those that msmodelslim wrote, and beside them what `verify` needs."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor

from mxfp4_core import quantize
from mxfp4_core.config import Mxfp4Config
from mxfp4_core.errors import Mxfp4Error
from mxfp4_core.jobs import convert_checkpoint, quantize_checkpoint, verify_checkpoint
from mxfp4_npu import names

ROOT = Path(__file__).resolve().parents[3]
VECTORS = ROOT / "golden" / "v2" / "dual.safetensors.xz"
LLAMA = ROOT / "packages" / "mxfp4-core" / "tests" / "data" / "vendor_llama"
WEIGHTS = "quant_model_weights.safetensors"
OURS = {"mxfp4_manifest.json", "mxfp4.manifest"}
"""The files of ours beside those of the vendor."""

FOLDERS = os.environ.get("MXFP4_VENDOR_FOLDERS", "")
"""A folder with ``msmodelslim_w4a4_mxfp4`` and ``msmodelslim_w4a4_mxfp4_dualscale``, written by msmodelslim 26.1.0."""


def settings(format: str, **more: Any) -> Mxfp4Config:
    asked = {"format": format, "profile": "msmodelslim", "dialect": "modelslim", "activation": "mxfp4"}
    return Mxfp4Config.from_dict({**asked, **more})


def written(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any] | None = None) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "llama"}))
    return folder


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_two_levels_are_the_file_that_msmodelslim_wrote(tmp_path: Path) -> None:
    """Its example holds one linear and, under another name, the weight that it was made from."""
    weight = load(lzma.decompress(VECTORS.read_bytes()))["input/normal_bf16"]
    source = written(tmp_path / "source", {"layer.weight": weight, "original.layer.weight": weight.clone()})
    quantize_checkpoint(source, tmp_path / "target", settings("mxfp4-dual", ignore=["original"]))
    assert (
        sha256(tmp_path / "target" / WEIGHTS)
        == "b0099610a56bc4f70cd49afc6324aeccd2e4a36243c44ac8859e3706729bfd19"
    )
    source = written(tmp_path / "alone", {"layer.weight": weight})
    quantize_checkpoint(source, tmp_path / "one", settings("mxfp4-dual"))
    assert (
        sha256(tmp_path / "one" / names.DESCRIPTION)
        == "444c41a8ce4229272312d577556125577af7927cb98e2aedf86e344a4496eae9"
    )


def test_one_level_is_the_file_that_msmodelslim_wrote(tmp_path: Path) -> None:
    """A Llama of one layer without its embedding; the hashes are those of the vendor's tensors, stored as it does."""
    quantize_checkpoint(LLAMA, tmp_path / "target", settings("mxfp4"))
    assert [sha256(tmp_path / "target" / name) for name in (WEIGHTS, names.DESCRIPTION)] == [
        "32767e15426d43f2562528d49150b9ac111302623795e908589fd4484a0f1628",
        "ceffd4fa8231765f124ae81e2883c6f23ab770b3e71c60943899e36b7539f0fd",
    ]


@pytest.mark.skipif(not FOLDERS, reason="set MXFP4_VENDOR_FOLDERS to folders that msmodelslim wrote")
@pytest.mark.parametrize("name", ["msmodelslim_w4a4_mxfp4", "msmodelslim_w4a4_mxfp4_dualscale"])
def test_folders_of_the_vendor_come_back_whole(name: str, tmp_path: Path) -> None:
    theirs, ours = Path(FOLDERS) / name, tmp_path / "ours"
    convert_checkpoint(theirs, ours, "modelslim")
    assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()} | OURS
    for path in theirs.iterdir():
        assert sha256(ours / path.name) == sha256(path), path.name
    assert verify_checkpoint(ours).ok


def smoothed(dual: bool, bias: bool) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, str]]:
    """Return a source with two linears, and what msmodelslim makes of it: tensors and types in the order it writes."""
    generator = torch.Generator().manual_seed(5)
    kind = names.DUAL if dual else names.SINGLE
    source: dict[str, Tensor] = {"a_norm.weight": torch.ones(32).bfloat16()}
    stored, types = dict(source), {"a_norm.weight": names.FLOAT}
    for module in ("b.up_proj", "c.down_proj"):
        weight = torch.randn(64, 1024, generator=generator).bfloat16()
        made = quantize(weight, format="mxfp4-dual" if dual else "mxfp4", profile="msmodelslim")
        parts = {"weight": made.codes, "weight_scale": made.scales}
        if dual:
            parts["weight_dual_scale"] = made.parts["level0"][..., None].contiguous()
        source[f"{module}.weight"] = weight
        stored |= {f"{module}.{part}": tensor for part, tensor in parts.items()}
        types |= {f"{module}.{part}": kind for part in parts}
        if bias:
            source[f"{module}.bias"] = torch.randn(64, generator=generator).bfloat16()
            stored[f"{module}.bias"] = source[f"{module}.bias"].float()
            types[f"{module}.bias"] = kind if dual else names.FLOAT
    return source, stored, types


@pytest.mark.parametrize("bias", [True, False], ids=["biases", "no biases"])
@pytest.mark.parametrize("dual", [True, False], ids=["two levels", "one level"])
def test_files_are_those_of_the_vendors_steps(dual: bool, bias: bool, tmp_path: Path) -> None:
    """Its writer hands a dict to safetensors: each weight's parts, biases in float32, no metadata; then `json.dump`."""
    source, stored, types = smoothed(dual, bias)
    config = {"model_type": "llama", "rms_norm_eps": 1e-05}
    folder = written(tmp_path / "source", source, config)
    quantize_checkpoint(folder, tmp_path / "target", settings("mxfp4-dual" if dual else "mxfp4"))
    assert (tmp_path / "target" / WEIGHTS).read_bytes() == save(stored)
    kind = names.DUAL if dual else names.SINGLE
    more = {"version": "1.0.0", "model_quant_type": kind, "metadata": {}, "group_size": 32, "optional": {}}
    assert (tmp_path / "target" / names.DESCRIPTION).read_text() == json.dumps({**types, **more}, indent=2)
    assert (tmp_path / "target" / "config.json").read_text() == json.dumps(config, indent=2)
    assert verify_checkpoint(tmp_path / "target", folder).ok


def test_several_shards_have_the_names_of_the_vendor(tmp_path: Path) -> None:
    source, stored, _ = smoothed(dual=True, bias=True)
    folder, target = written(tmp_path / "source", source), tmp_path / "target"
    quantize_checkpoint(folder, target, settings("mxfp4-dual"), max_shard_bytes=40_000)
    shards = sorted(target.glob("*.safetensors"))
    assert [path.name for path in shards] == [
        f"quant_model_weights-0000{i}-of-00002.safetensors" for i in (1, 2)
    ]
    assert {name for path in shards for name in load_file(path)} == stored.keys()
    for path in shards:
        assert path.read_bytes() == save(load_file(path))
    index = json.loads((target / "quant_model_weights.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == stored.keys()
    assert verify_checkpoint(target, folder).ok
    convert_checkpoint(target, tmp_path / "again", "modelslim")
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == save(stored)


@pytest.fixture
def result(tmp_path: Path) -> Path:
    weight = torch.randn(2, 512, generator=torch.Generator().manual_seed(1)).bfloat16()
    source = written(tmp_path / "source", {"up_proj.weight": weight, "norm.weight": torch.ones(2).bfloat16()})
    quantize_checkpoint(source, tmp_path / "target", settings("mxfp4-dual"))
    assert verify_checkpoint(tmp_path / "target").ok
    return tmp_path / "target"


def test_flipped_bits_of_any_file_are_found(result: Path) -> None:
    files = sorted(result.iterdir())
    assert {path.name for path in files} == {WEIGHTS, names.DESCRIPTION, "config.json", *OURS}
    for path in files:
        raw = path.read_bytes()
        for number in random.Random(0).sample(range(8 * len(raw)), 20):
            byte, bit = divmod(number, 8)
            path.write_bytes(raw[:byte] + bytes([raw[byte] ^ 1 << bit]) + raw[byte + 1 :])
            with suppress(Mxfp4Error):  # which finds it, too
                assert not verify_checkpoint(result, models="none").ok, (path.name, byte, bit)
        path.write_bytes(raw)
    assert verify_checkpoint(result).ok


@pytest.mark.parametrize("gone", sorted(OURS))
def test_a_result_without_a_file_of_ours_is_not_called_good(result: Path, gone: str) -> None:
    (result / gone).unlink()
    (finding,) = verify_checkpoint(result).findings
    assert (finding.check, finding.where) == ("manifest", gone) and "missing" in finding.found


def test_a_result_as_the_vendor_has_it_is_read_and_converted(result: Path, tmp_path: Path) -> None:
    """Without both of them it is an export of msmodelslim, of which `verify` notes that it has no hashes."""
    convert_checkpoint(result, tmp_path / "with", "mxfp4-core")
    assert not (tmp_path / "with" / "mxfp4.manifest").exists()
    for name in OURS:
        (result / name).unlink()
    found = verify_checkpoint(result)
    assert found.ok and found.notes == ["no mxfp4_manifest.json: hashes are not checked"]
