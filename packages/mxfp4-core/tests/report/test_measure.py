"""`measure` and `compare` on small checkpoints, against figures computed from dequantised tensors."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import mxfp4_core
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.errors import ConfigError, PatternError, ShapeError
from mxfp4_core.jobs import pieces as stream
from mxfp4_core.jobs.pieces import Piece, pieces
from mxfp4_core.jobs.quantize import quantize_checkpoint
from mxfp4_core.report import Metrics, Report, compare, measure

torch.set_num_threads(1)

EXPERTS = 3


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.02).bfloat16()

    result = {
        "model.embed_tokens.weight": normal(16, 64),
        "model.norm.weight": torch.ones(64, dtype=torch.bfloat16),
        "model.layers.0.self_attn.q_proj.weight": normal(8, 64),
        "model.layers.0.mlp.down_proj.weight": normal(64, 96) * torch.logspace(-3, 3, 96).bfloat16(),
        "model.layers.10.mlp.up_proj.weight": torch.zeros(4, 32, dtype=torch.bfloat16),
        "model.layers.2.mlp.up_proj.weight": normal(5, 32).float().half(),
    }
    for expert in range(EXPERTS):
        name = f"model.layers.1.mlp.experts.{expert}.down_proj.weight"
        result[name] = (
            normal(4, 64) * (10.0 ** torch.randint(0, expert + 1, (4, 64), generator=generator)).bfloat16()
        )
    return result


def save(path: Path, tensors: dict[str, torch.Tensor], **config: object) -> Path:
    path.mkdir()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps({"architectures": ["X"], "model_type": "x", **config}))
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(tmp_path / "source", weights())


def quantised(source: Path, **settings: object) -> Path:
    target = source.parent / "quantised"
    quantize_checkpoint(source, target, Mxfp4Config.from_dict(settings))
    return target


def metrics(report: Report, name: str) -> Metrics:
    (layer,) = (layer for layer in report.layers if layer.name == name)
    return layer.results[report.variants[0]]


def agrees(found: Metrics, weight: torch.Tensor, **rule: str) -> None:
    tensor = mxfp4_core.quantize(weight, **rule)  # type: ignore[arg-type]
    w, d = weight.double().numpy(), tensor.dequantize(torch.float32).double().numpy()
    power = np.exp2(tensor.scales.double().numpy() - 127).repeat(32, axis=-1)
    assert found.values == w.size
    assert found.signal == pytest.approx((w * w).sum(), rel=1e-13)
    assert found.noise == pytest.approx(((w - d) ** 2).sum(), rel=1e-13)
    assert found.max_error == np.abs(w - d).max()
    assert found.saturated == (np.abs(w) > 6 * power).sum()
    assert found.flushed == ((w != 0) & (d == 0)).sum()
    assert dict(found.histogram) == {
        int(byte): int(count)
        for byte, count in zip(*np.unique(tensor.scales.numpy(), return_counts=True), strict=True)
    }


@pytest.mark.parametrize("dialect", ["mxfp4-core", "compressed-tensors", "quark"])
@pytest.mark.parametrize("rule", ["even", "floor"])
def test_measured_figures_are_right(source: Path, dialect: str, rule: str) -> None:
    report = measure(source, quantised(source, rule=rule, dialect=dialect))
    assert report.findings == ()
    for name, weight in weights().items():
        if "proj" in name and "experts" not in name:
            agrees(metrics(report, name), weight, rule=rule)
    stacked = torch.cat([w for name, w in weights().items() if "experts" in name])
    agrees(metrics(report, "model.layers.1.mlp.experts.*.down_proj.weight"), stacked, rule=rule)


def test_compared_and_measured_figures_are_the_same(source: Path) -> None:
    measured = measure(source, quantised(source, rule="rceil"))
    compared = compare(source, ["floor", "rceil"])
    assert compared.variants == ("floor/even", "rceil/even")
    assert measured.variants == ("rceil/even",)
    for a, b in zip(measured.layers, compared.layers, strict=True):
        assert (a.name, a.decision, a.bytes_before, a.bytes_after) == (
            b.name,
            b.decision,
            b.bytes_before,
            b.bytes_after,
        )
        assert a.results.get("rceil/even") == b.results.get("rceil/even")
        assert a.spread.get("rceil/even") == b.spread.get("rceil/even")


def test_the_size_of_the_pieces_changes_nothing_and_bounds_what_is_read(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = quantised(source)
    whole = measure(source, target)
    largest = 0
    read_into = stream.Checkpoint.read_into

    def watch(self: stream.Checkpoint, name: str, start: int, buffer: memoryview) -> None:
        nonlocal largest
        largest = max(largest, len(buffer) if "proj" in name else 0)
        read_into(self, name, start, buffer)

    monkeypatch.setattr(stream, "CHUNK_VALUES", 100)
    monkeypatch.setattr(stream.Checkpoint, "read_into", watch)
    assert measure(source, target).layers == whole.layers
    assert largest == 96 * 2  # one row of the widest tensor, in BF16


def test_experts_share_a_line_that_names_the_worst(source: Path) -> None:
    report = compare(source, ["even"])
    (layer,) = (layer for layer in report.layers if "experts" in layer.name)
    assert (layer.tensors, layer.shape, layer.kind, layer.index) == (EXPERTS, (4, 64), "experts.down_proj", 1)
    assert layer.bytes_before == EXPERTS * 4 * 64 * 2
    assert layer.bytes_after == EXPERTS * 4 * (32 + 2)
    spread = layer.spread["even/even"]
    each = []
    for expert in range(EXPERTS):
        w = weights()[f"model.layers.1.mlp.experts.{expert}.down_proj.weight"]
        error = w.double() - mxfp4_core.quantize(w).dequantize(torch.float32).double()
        each.append(10 * math.log10((w.double() ** 2).sum().item() / (error**2).sum().item()))
    assert spread.worst == int(np.argmin(each))
    assert (spread.low, spread.high) == (pytest.approx(min(each)), pytest.approx(max(each)))
    assert spread.median == pytest.approx(np.median(each))


@pytest.mark.parametrize("k_first", [False, True])
def test_stacked_experts_are_told_apart(tmp_path: Path, k_first: bool) -> None:
    tensor = (
        torch.randn(3, 8, 64, generator=torch.Generator().manual_seed(1))
        * torch.tensor([1, 1e-3, 1])[:, None, None]
    )
    tensor[1, 0, 0] = 5.0
    tensor = tensor.bfloat16()
    stored = tensor.transpose(1, 2).contiguous() if k_first else tensor
    name = "model.layers.0.mlp.experts.down_proj"
    source = save(tmp_path / "s", {name: stored}, model_type="gpt_oss" if k_first else "qwen3_moe")
    for report in (compare(source, ["even"]), measure(source, quantised(source))):
        (layer,) = report.layers
        assert layer.decision == "quantised"
        assert layer.bytes_after == 3 * 8 * (32 + 2)
        assert layer.spread["even/even"].experts == 3
        assert layer.spread["even/even"].worst == 1
        agrees(layer.results["even/even"], tensor.reshape(-1, 64))


def test_padding_takes_no_part(tmp_path: Path) -> None:
    weight = torch.randn(4, 40, generator=torch.Generator().manual_seed(2)).bfloat16()
    source = save(tmp_path / "s", {"model.layers.0.mlp.up_proj.weight": weight})
    report = measure(source, quantised(source, tail="pad"))
    (layer,) = report.layers
    found = layer.results["even/even"]
    assert found.values == 160
    assert sum(found.histogram.values()) == 8
    assert layer.bytes_after == 4 * (32 + 2)
    assert compare(source, ["even"]).layers[0].results == layer.results


def test_layers_are_in_the_order_of_the_model(source: Path) -> None:
    names = [layer.index for layer in compare(source, ["even"]).layers if layer.index is not None]
    assert names == sorted(names) == [0, 0, 1, 2, 10]


def test_zeros_are_exact(source: Path) -> None:
    found = metrics(compare(source, ["even"]), "model.layers.10.mlp.up_proj.weight")
    assert (found.state, found.sqnr_db, found.relative_error, found.zeros) == ("exact", None, 0.0, 128)


def test_nan_in_the_source_is_a_finding_and_no_figure(tmp_path: Path) -> None:
    tensors = weights()
    tensors["model.layers.0.self_attn.q_proj.weight"][1, 3] = float("nan")
    report = compare(save(tmp_path / "s", tensors), ["even"])
    found = metrics(report, "model.layers.0.self_attn.q_proj.weight")
    assert (found.state, found.nonfinite) == ("nonfinite", 32)
    assert len(report.findings) == 1
    assert "q_proj" in report.findings[0]
    assert (
        json.loads(json.dumps(report.to_dict(), allow_nan=False))["summary"]["even/even"]["sqnr_db"] is None
    )


def test_kept_tensors_are_compared_too(source: Path) -> None:
    target = quantised(source, dialect="mxfp4-core")
    stored = load_file(target / "model.safetensors")
    stored["model.norm.weight"][0] = 2
    stored["model.extra.weight"] = torch.ones(1)
    stored["model.layers.0.self_attn.q_proj.input_amax"] = torch.ones(1)  # belongs to a quantised module
    save_file(stored, target / "model.safetensors", metadata={"format": "pt"})
    report = measure(source, target)
    assert sorted(finding.split(":")[0] for finding in report.findings) == [
        "model.extra.weight",
        "model.norm.weight",
    ]
    assert metrics(report, "model.norm.weight").noise == 1.0
    assert report.summary("even/even") == compare(source, ["even"]).summary("even/even")  # of quantised ones


def test_a_kept_tensor_in_a_wider_dtype_is_no_finding(source: Path) -> None:
    target = quantised(source)
    stored = load_file(target / "model.safetensors")
    stored["model.embed_tokens.weight"] = stored["model.embed_tokens.weight"].float()
    save_file(stored, target / "model.safetensors", metadata={"format": "pt"})
    report = measure(source, target)
    assert report.findings == ()
    assert all(not layer.results for layer in report.layers if layer.decision == "kept")


def test_a_missing_tensor_is_a_finding(source: Path) -> None:
    target = quantised(source)
    stored = load_file(target / "model.safetensors")
    del stored["model.norm.weight"]
    save_file(stored, target / "model.safetensors", metadata={"format": "pt"})
    (finding,) = measure(source, target).findings
    assert "model.norm.weight" in finding
    assert "missing" in finding


def test_another_source_is_refused(source: Path, tmp_path: Path) -> None:
    other = weights()
    other["model.layers.0.self_attn.q_proj.weight"] = torch.ones(4, 64, dtype=torch.bfloat16)
    with pytest.raises(ShapeError, match="q_proj"):
        measure(save(tmp_path / "other", other), quantised(source))


def test_roles_that_are_swapped_are_refused(source: Path) -> None:
    target = quantised(source)
    with pytest.raises(ConfigError, match="quantised already"):
        measure(target, target)
    with pytest.raises(ConfigError, match="quantised already"):
        compare(target, ["even"])
    with pytest.raises(ConfigError, match="not quantised"):
        measure(source, source)


@pytest.mark.parametrize("names", [[], ["even", "even/even"], ["evn"], ["quark", "quark"], ["ceil_d(99)"]])
def test_profiles_that_cannot_be_compared(source: Path, names: list[str]) -> None:
    with pytest.raises(ConfigError):
        compare(source, names)


def test_the_config_chooses_the_tensors(source: Path) -> None:
    report = compare(source, ["even"], config=Mxfp4Config.from_dict({"ignore": ["q_proj"]}))
    kept = {layer.name: layer.reason for layer in report.layers if layer.decision == "kept"}
    assert "q_proj" in kept["model.layers.0.self_attn.q_proj.weight"]
    with pytest.raises(PatternError):
        compare(source, ["even"], config=Mxfp4Config.from_dict({"ignore": ["no_such_layer"]}))


def test_progress_counts_every_byte(source: Path) -> None:
    total = sum(tensor.nbytes for tensor in weights().values())
    for run in (
        lambda progress: compare(source, ["even", "floor"], progress=progress),
        lambda progress: measure(source, quantised(source), progress=progress),
    ):
        seen: list[int] = []
        run(lambda name, nbytes, seen=seen: seen.append(nbytes))
        assert sum(seen) == total


def test_pieces_cover_each_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "CHUNK_VALUES", 64)
    assert list(pieces((5, 32))) == [Piece(None, 0, 2), Piece(None, 2, 4), Piece(None, 4, 5)]
    assert list(pieces((2, 3, 32))) == [Piece(0, 0, 2), Piece(0, 2, 3), Piece(1, 3, 5), Piece(1, 5, 6)]
    assert list(pieces((2, 3, 32), transposed=True)) == [Piece(0, 0, 3), Piece(1, 3, 6)]
    assert list(pieces((32,))) == [Piece(None, 0, 1)]
    assert list(pieces((0, 32))) == []
