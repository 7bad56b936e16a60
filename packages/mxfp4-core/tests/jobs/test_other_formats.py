"""Checkpoints of formats with other parts than codes and scales: stored, converted, verified and measured."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mxfp4_core import Mxfp4Config, dialects, quantize
from mxfp4_core.arithmetic.formats import registry as formats
from mxfp4_core.checkpoint.reader import open_checkpoint
from mxfp4_core.dialects.base import Description, Entry
from mxfp4_core.dialects.native import NATIVE
from mxfp4_core.errors import DialectError
from mxfp4_core.jobs import convert_checkpoint, verify_checkpoint
from mxfp4_core.jobs.units import QuantizeUnit
from mxfp4_core.report.measure import measure

Save = Callable[..., Path]
FORMATS = ["mxfp4-dual", "mxfp8", "mxfp4+input_scale"]
LINEAR, STACK = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.experts.down_proj"
PROFILES = {"mxfp4-dual": "ascend"}


def profile_of(format: str) -> str:
    return PROFILES.get(format, formats.get(format).resolve().name)


@pytest.fixture(params=FORMATS)
def format(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def source(save: Save) -> Path:
    generator = torch.Generator().manual_seed(5)
    weights = {
        LINEAR: torch.randn(48, 520, generator=generator).bfloat16(),
        STACK: torch.randn(2, 32, 64, generator=generator).bfloat16(),
        "model.norm.weight": torch.ones(64).bfloat16(),
    }
    return save(weights, config={"model_type": "llama"})


@pytest.fixture
def target(source: Path, format: str) -> Path:
    """The native checkpoint that units of this format make."""
    checkpoint = open_checkpoint(source)
    form, profile = formats.get(format), profile_of(format)
    tensors: dict[str, torch.Tensor] = {"model.norm.weight": checkpoint.load("model.norm.weight")}
    entries = []
    for name in (LINEAR, STACK):
        names = tuple(f"{name}{part.suffix}" for part in form.parts)
        unit = QuantizeUnit(checkpoint, name, names, profile, format=format)
        unit = pickle.loads(pickle.dumps(unit))
        raw = dict.fromkeys(names, b"")
        for stored, piece in unit.stream(lambda nbytes: None):
            raw[stored] += bytes(piece)
        for spec, part in zip(unit.specs, form.parts, strict=True):
            data = torch.frombuffer(bytearray(raw[spec.name]), dtype=getattr(torch, part.dtype))
            tensors[spec.name] = data.reshape(spec.shape)
        expected = quantize(checkpoint.load(name), format=format, profile=profile, tail="pad")
        for part in form.parts:
            stored_bytes = tensors[f"{name}{part.suffix}"].view(torch.uint8)
            assert torch.equal(stored_bytes, expected.parts[part.name].view(torch.uint8)), (name, part.name)
        entries.append(Entry(name, unit.shape, {}, format))
    folder = source.parent / "target"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    config = Mxfp4Config.from_dict({"dialect": "mxfp4-core", "tail": "pad"})
    documents = NATIVE.documents(Description(checkpoint.config, config, entries, [], profile))
    (folder / "config.json").write_text(json.dumps(documents["config.json"]))
    return folder


def test_the_format_is_recorded_and_read(target: Path, format: str) -> None:
    found = dialects.read(open_checkpoint(target))
    assert found is not None
    entries = found[1].entries
    assert {entry.format for entry in entries.values()} == {format}
    assert (entries[LINEAR].shape, entries[STACK].shape) == ((48, 520), (2, 32, 64))
    assert set(found[1].tensors) == {"model.norm.weight"}


def test_it_is_converted_byte_for_byte_or_refused(target: Path, format: str) -> None:
    again = target.parent / "again"
    convert_checkpoint(target, again, "mxfp4-core")
    before, after = open_checkpoint(target), open_checkpoint(again)
    assert before.tensors.keys() == after.tensors.keys()
    for name in before.tensors:
        assert torch.equal(before.load(name).view(torch.uint8), after.load(name).view(torch.uint8)), name
    assert after.config == before.config
    with pytest.raises(DialectError, match=r"proj.*cannot be written in the dialect quark") as caught:
        convert_checkpoint(target, target.parent / "quark", "quark")
    assert caught.value.seen == f"format {format}"
    assert convert_checkpoint(target, target.parent / "chosen", "auto").dialect == "mxfp4-core"


def test_it_is_verified(source: Path, target: Path, format: str) -> None:
    assert verify_checkpoint(target).ok
    assert verify_checkpoint(target, source, profile=profile_of(format)).ok
    last = formats.get(format).weight_parts[-1]
    name = f"{LINEAR}{last.suffix}"
    info = open_checkpoint(target).tensors[name]
    with open(info.file, "r+b") as file:
        file.seek(info.start)
        byte = file.read(1)[0]
        file.seek(info.start)
        file.write(bytes([byte ^ 1]))
    (finding,) = verify_checkpoint(target, source, profile=profile_of(format)).findings
    assert finding.where == LINEAR
    assert finding.found.startswith(
        f"first difference in {name}, row 0, block 0: {last.name.removesuffix('s')} byte"
    )


def test_codes_behind_the_end_of_k_are_found(target: Path, format: str) -> None:
    info = open_checkpoint(target).tensors[LINEAR]
    with open(info.file, "r+b") as file:
        file.seek(info.start + info.row_bytes - 1)
        file.write(b"\x21")
    (finding,) = verify_checkpoint(target).findings
    assert (finding.check, finding.where) == ("padding", LINEAR)


def test_its_error_is_measured(source: Path, target: Path, format: str) -> None:
    report = measure(source, target)
    assert report.findings == ()
    (layer,) = [layer for layer in report.layers if layer.name == LINEAR]
    (metrics,) = layer.results.values()
    weight = open_checkpoint(source).load(LINEAR)
    values = quantize(weight, format=format, profile=profile_of(format), tail="pad").dequantize(torch.float32)
    noise = (weight.double() - values.double()).square().sum().item()
    assert metrics.noise == pytest.approx(noise, rel=1e-9)


def test_a_format_that_is_not_installed(target: Path, format: str) -> None:
    config = json.loads((target / "config.json").read_text())
    config["quantization_config"]["weights_format"] = "mxfp9"
    (target / "config.json").write_text(json.dumps(config))
    with pytest.raises(DialectError, match="not a valid mxfp4-core checkpoint") as caught:
        dialects.read(open_checkpoint(target))
    assert "'mxfp9'" in caught.value.seen
