from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mxfp4_core import Mxfp4Config, quantize
from mxfp4_core.checkpoint.manifest import read_manifest
from mxfp4_core.checkpoint.reader import open_checkpoint
from mxfp4_core.errors import CheckpointError, ConfigError, DialectError
from mxfp4_core.jobs.quantize import quantize_checkpoint
from mxfp4_core.jobs.verify import verify_checkpoint

Save = Callable[..., Path]
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def source(save: Save, dense: dict[str, torch.Tensor]) -> Path:
    folder = save(dense, config={"model_type": "llama"})
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def target(source: Path) -> Path:
    config = Mxfp4Config(dialect="mxfp4-core")
    quantize_checkpoint(source, source.parent / "target", config, max_shard_bytes=10_000)
    return source.parent / "target"


def file_of(target: Path, name: str) -> Path:
    return open_checkpoint(target).tensors[name].file


def forget_manifest(target: Path) -> None:
    """Leave a checkpoint as others write it: without a manifest, and with nothing that names one."""
    (target / "mxfp4_manifest.json").unlink()
    for file in target.glob("*.safetensors"):
        save_file(load_file(file), file)


def flip(target: Path, name: str, at: int = 0) -> None:
    info = open_checkpoint(target).tensors[name]
    with open(info.file, "r+b") as file:
        file.seek(info.start + at)
        byte = file.read(1)[0]
        file.seek(info.start + at)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("dialect", ["mxfp4-core", "compressed-tensors", "quark"])
def test_a_good_checkpoint(source: Path, dialect: str) -> None:
    target = source.parent / "good"
    overrides = [{"pattern": "down_proj", "rule": "floor"}]
    quantize_checkpoint(source, target, Mxfp4Config.from_dict({"dialect": dialect, "overrides": overrides}))
    result = verify_checkpoint(target, source)
    assert result.findings == []
    assert result.ok
    assert (result.dialect, result.profile, result.weights) == (dialect, "even/even", 7)
    assert len(result.checks) == 4


def test_a_changed_byte_is_found_and_located(source: Path, target: Path) -> None:
    flip(target, Q, at=32 + 17)  # row 1, byte 17: block 1
    result = verify_checkpoint(target, source)
    assert [(finding.check, finding.where) for finding in result.findings] == [("manifest", Q), ("source", Q)]
    assert "row 1, block 1: code byte" in result.findings[1].found
    assert not verify_checkpoint(target).ok


def test_a_changed_scale_and_a_changed_norm(source: Path, target: Path) -> None:
    flip(target, f"{Q}_scale", at=3)
    flip(target, "model.norm.weight")
    forget_manifest(target)
    result = verify_checkpoint(target, source)
    assert {finding.where: finding.found.split(":")[0] for finding in result.findings} == {
        Q: f"first difference in {Q}_scale, row 1, block 1",
        "model.norm.weight": "the tensor differs from the source",
    }
    assert "hashes are not checked" in result.notes[0]
    assert verify_checkpoint(target).ok  # nothing but the source tells


@pytest.mark.parametrize("change", [0.0, 1e-3])
def test_the_same_numbers_in_a_wider_dtype_are_good(source: Path, target: Path, change: float) -> None:
    """A library saves in float32 what it keeps in float32, whatever the source has."""
    file = file_of(target, "model.norm.weight")
    tensors = load_file(file)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    tensors["model.norm.weight"][3] += change
    save_file(tensors, file)
    forget_manifest(target)
    result = verify_checkpoint(target, source)
    assert result.ok == (change == 0)
    wide = "model.norm.weight: F32 where the source has BF16, and the same numbers"
    assert (wide in result.notes) == result.ok


def test_files_that_changed_or_went(target: Path) -> None:
    (target / "tokenizer.json").write_text("{} ")
    assert [p.where for p in verify_checkpoint(target).findings] == ["tokenizer.json"]
    (target / "tokenizer.json").unlink()
    assert [p.found for p in verify_checkpoint(target).findings] == ["the file is missing"]


def test_a_header_that_changed(target: Path) -> None:
    file = file_of(target, Q)
    save_file(load_file(file), file, metadata={"format": "pt", "by": "me"})
    findings = verify_checkpoint(target).findings
    assert [(p.where, p.found) for p in findings] == [
        (file.name, "the file has another sha256, its tensors have not")
    ]


def test_tensors_that_came_and_went(target: Path) -> None:
    file = file_of(target, "model.norm.weight")
    tensors = load_file(file)
    tensors["model.extra.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, file)
    index = json.loads((target / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.extra.weight"] = index["weight_map"].pop("model.norm.weight")
    (target / "model.safetensors.index.json").write_text(json.dumps(index))
    found = {finding.where for finding in verify_checkpoint(target).findings}
    assert found == {"model.safetensors.index.json", "model.norm.weight", "model.extra.weight"}


def test_scale_bytes_that_are_nan(save: Save) -> None:
    weight = torch.ones(4, 64)
    weight[2, 40] = float("nan")
    source = save({"a.proj.weight": weight})
    target = source.parent / "target"
    quantize_checkpoint(source, target, Mxfp4Config.from_dict({"nonfinite": "nan"}))
    result = verify_checkpoint(target, source)
    assert result.ok
    assert "1 scale byte(s) 255" in result.notes[0]
    config = json.loads((target / "config.json").read_text())
    config["quantization_config"]["nonfinite"] = "refuse"
    (target / "config.json").write_text(json.dumps(config))
    forget_manifest(target)
    assert [p.check for p in verify_checkpoint(target).findings] == ["scales"]


@pytest.mark.parametrize(
    ("k", "nibble", "ok"), [(40, 39, True), (40, 40, False), (41, 41, False), (41, 63, False)]
)
def test_padding_is_zero(save: Save, k: int, nibble: int, ok: bool) -> None:
    source = save({"a.proj.weight": torch.ones(3, k)})
    target = source.parent / "target"
    quantize_checkpoint(source, target, Mxfp4Config.from_dict({"tail": "pad"}))
    forget_manifest(target)
    assert verify_checkpoint(target).ok
    tensors = load_file(target / "model.safetensors")
    tensors["a.proj.weight"][1, nibble // 2] |= 0x10 if nibble % 2 else 0x01
    save_file(tensors, target / "model.safetensors")
    assert [p.check for p in verify_checkpoint(target).findings] == ([] if ok else ["padding"])
    tensors["a.proj.weight"] = quantize(-torch.ones(3, k), tail="pad").codes
    tensors["a.proj.weight"][:, -1] |= 0x88  # minus zero is zero
    save_file(tensors, target / "model.safetensors")
    assert verify_checkpoint(target).ok


def test_another_source(source: Path, target: Path, save: Save, dense: dict[str, torch.Tensor]) -> None:
    del dense["model.norm.weight"]
    dense["model.extra.weight"] = torch.ones(3)
    dense[Q] = torch.ones(64, 32)
    other = save(dense, name="other")
    found = {finding.where: finding.found for finding in verify_checkpoint(target, other).findings}
    assert found == {
        "model.norm.weight": "the source has no such tensor",
        "model.extra.weight": "the tensor is missing",
        Q: "shape [64, 64], [64, 32] in the source",
    }


def test_a_profile_that_nobody_knows(save: Save) -> None:
    weight = torch.randn(4, 64)
    packed = quantize(weight, rule="floor")
    group = {"weights": {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}}
    described = {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}
    stored = {"a.proj.weight_packed": packed.codes, "a.proj.weight_scale": packed.scales}
    target = save(stored, config={"quantization_config": described}, name="target")
    source = save({"a.proj.weight": weight})
    assert verify_checkpoint(target).ok
    with pytest.raises(ConfigError, match="--profile"):
        verify_checkpoint(target, source)
    assert verify_checkpoint(target, source, profile="floor/even").ok
    assert not verify_checkpoint(target, source, profile="ceil/even").ok


def test_what_cannot_be_verified(source: Path, target: Path) -> None:
    with pytest.raises(DialectError, match="no quantised weights"):
        verify_checkpoint(source)
    (target / "mxfp4_manifest.json").write_text('{"format": "mxfp4-manifest", "version": 9}')
    with pytest.raises(CheckpointError, match="version 9"):
        verify_checkpoint(target)
    (target / "mxfp4_manifest.json").write_text(
        '{"format": "mxfp4-manifest", "version": 1, "files": {"a": 1}}'
    )
    with pytest.raises(CheckpointError, match="a manifest is complete"):
        verify_checkpoint(target)


@pytest.mark.parametrize("option", ["source", "against"])
def test_what_it_is_compared_with_is_not_quantised(target: Path, option: str) -> None:
    with pytest.raises(DialectError, match="is quantised already") as error:
        verify_checkpoint(target, **{option: target})
    assert "made from" in error.value.fix


@pytest.mark.parametrize("name", ["../source/config.json", "/etc/passwd", "a/../../x", ""])
def test_a_manifest_that_leaves_the_folder(target: Path, name: str) -> None:
    manifest = json.loads((target / "mxfp4_manifest.json").read_text())
    manifest["files"][name] = {"size": 1, "sha256": ""}
    (target / "mxfp4_manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="of its own folder"):
        verify_checkpoint(target)


def test_a_manifest_with_a_link_out_of_the_folder(source: Path, target: Path) -> None:
    (target / "tokenizer.json").unlink()
    (target / "tokenizer.json").symlink_to(source / "tokenizer.json")
    with pytest.raises(CheckpointError, match="a link to"):
        verify_checkpoint(target)


def test_a_run_that_did_not_finish_is_noted(target: Path) -> None:
    (target / ".mxfp4-partial").mkdir()
    result = verify_checkpoint(target)
    assert result.ok
    assert "did not finish" in result.notes[0]


def test_static_scales_of_activations_are_noted(save: Save) -> None:
    weight = torch.randn(4, 64)
    packed = quantize(weight, profile="quark")
    spec = {"dtype": "fp4", "group_size": 32, "scale_format": "e8m0"}
    spec |= {"scale_calculation_mode": "even", "round_method": "half_even"}
    scheme = {"weight": spec, "input_tensors": {"dtype": "fp8_e4m3", "is_dynamic": False}}
    stored = {
        "a.proj.weight": packed.codes,
        "a.proj.weight_scale": packed.scales,
        "a.proj.input_scale": torch.ones(()),
    }
    described = {"quant_method": "quark", "global_quant_config": scheme}
    target = save(stored, config={"quantization_config": described}, name="target")
    result = verify_checkpoint(target, save({"a.proj.weight": weight}))
    assert result.ok
    assert any(
        "1 static scale(s) of activations, for example a.proj.input_scale" in note for note in result.notes
    )


def test_every_flip_in_the_manifest_is_found(target: Path) -> None:
    path = target / "mxfp4_manifest.json"
    raw = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for at in torch.randint(len(raw), (150,), generator=generator).tolist():
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << at % 8]) + raw[at + 1 :])
        with pytest.raises(CheckpointError):
            read_manifest(target)
    path.write_bytes(raw)
    assert verify_checkpoint(target).ok


def test_a_manifest_of_an_earlier_version(target: Path) -> None:
    path = target / "mxfp4_manifest.json"
    manifest = json.loads(path.read_text())
    for key in ("sha256", "left_behind", "run"):
        del manifest[key]
    path.write_text(json.dumps({**manifest, "version": 1}))
    assert verify_checkpoint(target).ok
    manifest["tensors"]["model.norm.weight"]["shape"] = [4, 4]
    path.write_text(json.dumps({**manifest, "version": 1}))
    (finding,) = verify_checkpoint(target).findings
    assert finding.where == "model.norm.weight"
    assert "the manifest says BF16 [4, 4]" in finding.found


def test_files_that_were_added(target: Path) -> None:
    (target / "notes.md").write_text("mine")
    (target / ".hidden").write_text("mine")
    result = verify_checkpoint(target)
    assert (result.ok, list(result.notes)) == (True, ["notes.md: the file is not in the manifest"])
    save_file({"x": torch.ones(1)}, target / "mtp.safetensors")
    (target / "voices.pt").write_bytes(b"")
    result = verify_checkpoint(target)
    assert [found.where for found in result.findings] == ["mtp.safetensors", "voices.pt"]


def test_a_commit_that_was_killed(target: Path) -> None:
    (target / ".mxfp4-partial").mkdir()
    (target / "mxfp4_manifest.json").rename(target / ".mxfp4-partial" / "mxfp4_manifest.json")
    (finding,) = verify_checkpoint(target).findings
    assert "a run that did not finish; the same command completes it" in finding.found
    for file in target.glob("*.safetensors"):
        file.unlink()
    (target / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match="run the command that writes it again"):
        verify_checkpoint(target)


def test_what_a_library_rounds_to_the_dtype_of_the_config(save: Save, dense: dict[str, torch.Tensor]) -> None:
    full = {name: torch.randn(tensor.shape) for name, tensor in dense.items()}
    source = save(full, config={"model_type": "llama", "dtype": "bfloat16"}, name="full")
    target = source.parent / "saved"
    quantize_checkpoint(source, target, Mxfp4Config.from_dict({"dialect": "mxfp4-core"}))
    (target / "mxfp4_manifest.json").unlink()
    stored = {
        name: tensor.bfloat16() if tensor.is_floating_point() else tensor
        for name, tensor in load_file(target / "model.safetensors").items()
    }
    save_file(stored, target / "model.safetensors")
    result = verify_checkpoint(target, source)
    assert result.ok
    assert "model.norm.weight: BF16 where the source has F32, rounded, as config.json says" in result.notes
    stored["model.norm.weight"][3] += 1
    save_file(stored, target / "model.safetensors")
    assert [found.where for found in verify_checkpoint(target, source).findings] == ["model.norm.weight"]
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    assert len(verify_checkpoint(target, source).findings) > 3
