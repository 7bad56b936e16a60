"""``verify --against``: the error of each weight, the worst first; and what else a checkpoint says about itself."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mxfp4_core import Mxfp4Config, quantize
from mxfp4_core.cli import main
from mxfp4_core.jobs import convert_checkpoint, processes, quantize_checkpoint, verify_checkpoint

Save = Callable[..., Path]
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def source(save: Save, dense: dict[str, torch.Tensor]) -> Path:
    return save(dense, config={"model_type": "llama"})


@pytest.fixture
def target(source: Path) -> Path:
    quantize_checkpoint(source, source.parent / "target", max_shard_bytes=6000)
    return source.parent / "target"


def sqnr(weight: torch.Tensor, stored: torch.Tensor) -> float:
    signal, noise = weight.double().square().sum(), (weight.double() - stored.double()).square().sum()
    return float(10 * torch.log10(signal / noise))


def test_the_error_of_each_weight_the_worst_first(
    source: Path, target: Path, dense: dict[str, torch.Tensor]
) -> None:
    result = verify_checkpoint(target, against=source)
    assert result.ok
    assert len(result.layers) == 7
    told = [layer.sqnr_db or 0.0 for layer in result.layers]
    assert told == sorted(told)
    for layer in result.layers:
        weight = dense[layer.weight]
        stored = quantize(weight, rule="even").dequantize(torch.float32)
        assert layer.sqnr_db == pytest.approx(sqnr(weight, stored))
        assert layer.max_error == float((weight.float() - stored).abs().max())
        assert layer.values == weight.numel()
    assert any("SQNR of 7 weights" in check for check in result.checks)


def test_dialects_and_processes_make_no_difference(source: Path, target: Path) -> None:
    other = source.parent / "other"
    convert_checkpoint(target, other, "quark", max_shard_bytes=6000)
    with processes(2) as executor:
        spread = verify_checkpoint(other, against=source, executor=executor)
    assert spread.layers == verify_checkpoint(target, against=source).layers


def test_a_rule_that_nobody_wrote_down_is_measured_all_the_same(save: Save) -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    packed = quantize(weight, rule="floor")
    group = {"weights": {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}}
    described = {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}
    stored = {"a.proj.weight_packed": packed.codes, "a.proj.weight_scale": packed.scales}
    target = save(stored, config={"quantization_config": described}, name="target")
    (layer,) = verify_checkpoint(target, against=save({"a.proj.weight": weight})).layers
    assert layer.sqnr_db == pytest.approx(sqnr(weight, packed.dequantize(torch.float32)))


def test_experts_that_are_stored_with_k_first(save: Save) -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(3, 64, 96, generator=generator).bfloat16()
    source = save(
        {"model.layers.0.mlp.experts.down_proj": weight}, config={"model_type": "gpt_oss"}, name="experts"
    )
    quantize_checkpoint(source, source.parent / "target", Mxfp4Config(dialect="mxfp4-core"))
    (layer,) = verify_checkpoint(source.parent / "target", against=source).layers
    logical = weight.transpose(1, 2).contiguous()
    stored = quantize(logical, rule="even").dequantize(torch.float32)
    assert layer.sqnr_db == pytest.approx(sqnr(logical, stored))


def test_what_no_number_tells_comes_first(save: Save, dense: dict[str, torch.Tensor]) -> None:
    source = save(dense, config={"model_type": "llama"})
    quantize_checkpoint(source, source.parent / "target")
    dense[Q][3, 3] = math.nan
    dense["model.layers.0.self_attn.k_proj.weight"].zero_()
    dense["model.layers.0.mlp.up_proj.weight"] = quantize(
        dense["model.layers.0.mlp.up_proj.weight"]
    ).dequantize(torch.bfloat16)
    result = verify_checkpoint(source.parent / "target", against=save(dense, name="other"))
    states = [layer.state for layer in result.layers]
    assert states == ["nonfinite", "no_signal", *["finite"] * 4, "exact"]
    assert result.layers[0].weight == Q
    assert [layer.sqnr_db is None for layer in result.layers] == [state != "finite" for state in states]


def test_what_only_one_of_the_two_has_and_what_is_kept(
    save: Save, target: Path, dense: dict[str, torch.Tensor]
) -> None:
    del dense["model.norm.weight"]
    dense["model.extra.weight"] = torch.ones(3)
    dense[Q] = torch.ones(64, 32)
    dense["lm_head.weight"] = dense["lm_head.weight"] + 1
    result = verify_checkpoint(target, against=save(dense, name="other"))
    assert {finding.where: finding.found for finding in result.findings} == {
        "model.norm.weight": "the source has no such tensor",
        "model.extra.weight": "the tensor is missing",
        "lm_head.weight": "the tensor differs from the source",
        Q: "shape [64, 64], [64, 32] in the source",
    }
    assert len(result.layers) == 6


def test_the_command(source: Path, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(target), "--against", str(source), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0
    assert [layer["weight"] for layer in told["layers"]] == [
        layer.weight for layer in verify_checkpoint(target, against=source).layers
    ]
    with pytest.raises(SystemExit):
        main(["verify", str(target), "--against", str(source)])
    lines = capsys.readouterr().out.splitlines()
    worst = told["layers"][0]
    assert next(line for line in lines if line.startswith("error ")).startswith(
        f"error {worst['weight']}: {worst['sqnr_db']:.2f} dB"
    )


def test_scale_bytes_of_0_are_noted(save: Save) -> None:
    weight = torch.ones(4, 64)
    source = save({"a.proj.weight": weight})
    target = source.parent / "target"
    quantize_checkpoint(source, target, Mxfp4Config(dialect="mxfp4-core"))
    assert not any("scale byte" in note for note in verify_checkpoint(target).notes)
    tensors = load_file(target / "model.safetensors")
    tensors["a.proj.weight_scale"][1:3, 1] = 0
    save_file(tensors, target / "model.safetensors")
    (target / "mxfp4_manifest.json").unlink()
    result = verify_checkpoint(target)
    assert result.ok
    assert "2 scale byte(s) 0 in 1 tensor(s), for example a.proj.weight_scale" in result.notes[-1]


def test_a_result_whose_manifest_was_removed(source: Path, target: Path) -> None:
    one = source.parent / "one"
    convert_checkpoint(target, one, "quark")
    assert not (one / "model.safetensors.index.json").exists()
    for folder in (target, one):
        (folder / "mxfp4_manifest.json").unlink()
        told(folder)
    (target / "model.safetensors.index.json").unlink()
    told(target)
    convert_checkpoint(target, source.parent / "again", "quark", max_shard_bytes=6000)
    assert verify_checkpoint(source.parent / "again").ok


def told(folder: Path) -> None:
    (finding,) = verify_checkpoint(folder).findings
    assert (finding.check, finding.where) == ("manifest", "mxfp4_manifest.json")
    assert "a weight file says that there was one" in finding.found


CODE = """
import sys, torch
torch.set_num_threads(1)
from mxfp4_core.jobs import verify_checkpoint
assert verify_checkpoint(sys.argv[1], against=sys.argv[2]).layers[0].sqnr_db > 10
with open("/proc/self/status") as status:
    print(next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""


def test_memory_does_not_grow_with_the_weight(save: Save) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(16384, 4096, generator=generator).bfloat16()  # 128 MiB, in FP64 half a GiB
    source = save({"model.layers.0.mlp.up_proj.weight": weight}, config={"model_type": "llama"})
    quantize_checkpoint(source, source.parent / "target")
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(source.parent / "target"), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < (512 << 20) + (256 << 20)
