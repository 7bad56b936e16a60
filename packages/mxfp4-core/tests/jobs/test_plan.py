"""The plan: from headers alone, with every finding listed, for people and for programs."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mxfp4_core import _plugins
from mxfp4_core.arithmetic.shapes import mx_bytes
from mxfp4_core.backend import registry
from mxfp4_core.backend.device import Device
from mxfp4_core.backend.select import KNOWN
from mxfp4_core.cli import main
from mxfp4_core.config.checks import KNOWN_BACKENDS
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.errors import BackendError, CheckpointError, ConfigError, DialectError, PatternError
from mxfp4_core.jobs.plan import Plan, plan_checkpoint
from mxfp4_core.naming.braces import collapse

Shapes = Mapping[str, tuple[int, ...]]
H200 = Device("cuda", "sm_90")


def write(path: Path, shapes: Shapes, config: Mapping[str, Any], dtype: str = "BF16") -> Path:
    """Write a checkpoint whose data is a hole in the file, so that it may be of any size."""
    path.mkdir(exist_ok=True)
    width, end, header = {"BF16": 2, "F32": 4, "I32": 4}[dtype], 0, {}
    for name, shape in shapes.items():
        nbytes = width
        for size in shape:
            nbytes *= size
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + nbytes]}
        end += nbytes
    text = json.dumps(header).encode()
    with open(path / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    (path / "config.json").write_text(json.dumps(config))
    return path


def moe(
    layers: int = 2, experts: int = 4, hidden: int = 128, inner: int = 192
) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (512, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.self_attn.{part}_proj.weight": (hidden, hidden) for part in "qo"}
        shapes |= {f"{prefix}.self_attn.{part}_proj.weight": (hidden // 2, hidden) for part in "kv"}
        shapes |= {
            f"{prefix}.input_layernorm.weight": (hidden,),
            f"{prefix}.mlp.gate.weight": (experts, hidden),
        }
        for expert in range(experts):
            shapes |= {
                f"{prefix}.mlp.experts.{expert}.{part}_proj.weight": (inner, hidden)
                for part in ("gate", "up")
            }
            shapes[f"{prefix}.mlp.experts.{expert}.down_proj.weight"] = (hidden, inner)
    config = {
        "model_type": "qwen3_moe",
        "num_hidden_layers": layers,
        "num_experts": experts,
        "num_experts_per_tok": 2,
    }
    return shapes, {**config, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "moe", *moe())


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Any:
    from mxfp4_core.testing.emulated import EmulatedBackend

    backend = EmulatedBackend()
    point = EntryPoint(backend.name, "anywhere:backend", registry.GROUP)
    object.__setattr__(point, "load", lambda: backend)
    real = _plugins.entry_points
    monkeypatch.setattr(
        _plugins, "entry_points", lambda group: [point] if group == registry.GROUP else real(group=group)
    )
    registry.refresh()
    yield backend
    registry.refresh()


def row(found: Plan, name: str) -> Any:
    return next(row for row in found.rows if row.name == name)


def test_sizes_are_those_of_the_bytes(model: Path) -> None:
    found = plan_checkpoint(model)
    shapes, _ = moe()
    quantized = {each.name for each in found.quantized}
    assert quantized == {name for name in shapes if "_proj" in name}
    assert found.bytes_before == sum(each.bytes_before for each in found.rows) == _bytes(shapes, shapes)
    codes_and_scales = sum(mx_bytes(shapes[name]) for name in quantized)
    assert found.bytes_after == codes_and_scales + _bytes(shapes, set(shapes) - quantized)
    assert found.rank_bytes == found.bytes_after and found.padding_bytes == 0


def _bytes(shapes: Shapes, names: Any) -> int:
    total = 0
    for name in names:
        count = 2
        for size in shapes[name]:
            count *= size
        total += count
    return total


@given(st.integers(1, 40), st.integers(1, 200))
def test_the_size_of_a_weight_is_that_of_its_codes_and_scales(n: int, k: int) -> None:
    import torch

    from mxfp4_core import quantize

    packed = quantize(torch.zeros(n, k, dtype=torch.bfloat16), tail="pad")
    assert mx_bytes((n, k)) == packed.codes.numel() + packed.scales.numel()


def test_the_peak_is_everything_quantised_and_the_largest_unit(model: Path) -> None:
    found = plan_checkpoint(model)
    assert found.largest_unit is not None
    assert found.largest_unit.unit_bytes == 192 * 128 * 2
    assert found.peak_bytes() == found.bytes_after + 192 * 128 * 2
    assert found.peak_bytes(device_copy=True) == found.bytes_after + 2 * 192 * 128 * 2


def test_ranks_share_what_engines_cut(model: Path) -> None:
    whole, halves = plan_checkpoint(model), plan_checkpoint(model, tp=2)
    assert halves.findings == []
    for each in whole.quantized:
        assert row(halves, each.name).rank_bytes * 2 == each.rank_bytes, each.name
        assert row(halves, each.name).unit_bytes * 2 == each.unit_bytes
    assert row(halves, "model.embed_tokens.weight").rank_bytes == 512 * 128 * 2
    experts = plan_checkpoint(model, tp=4, ep=4)
    assert row(experts, "model.layers.0.mlp.experts.3.up_proj.weight").rank_bytes == mx_bytes((192, 128)) // 4


def test_kept_weights_are_shared_among_ranks_too(model: Path) -> None:
    found = plan_checkpoint(model, Mxfp4Config(ignore=["self_attn"]), tp=2)
    kept = row(found, "model.layers.0.self_attn.o_proj.weight")
    assert kept.rank_bytes * 2 == kept.bytes_before == kept.bytes_after


def test_every_finding_is_listed_once_with_its_advice(model: Path) -> None:
    found = plan_checkpoint(model, tp=4)
    (finding,) = found.findings
    assert "model.layers.{0-1}.mlp.experts.{0-3}.down_proj.weight" in finding
    assert "k = 192 over 4 ranks" in finding and "here it would be 48" in finding and "2, 3 or 6" in finding
    assert "tail='pad' lets each rank pad" in finding
    assert plan_checkpoint(model, Mxfp4Config(tail="pad"), tp=4).findings == []
    assert len(plan_checkpoint(model, tp=8).findings) == 3
    assert "4 over 3 ranks" in "".join(plan_checkpoint(model, ep=3).findings)


def test_blocks_dtypes_and_dialects_are_checked(tmp_path: Path) -> None:
    odd = write(tmp_path / "odd", {"a.q_proj.weight": (64, 48)}, {})
    assert "K is a multiple of 32" in plan_checkpoint(odd).findings[0]
    assert plan_checkpoint(odd, Mxfp4Config(tail="pad")).findings == []
    assert plan_checkpoint(odd, Mxfp4Config(tail="pad")).bytes_after == 64 * (32 + 2)
    assert (
        "cannot be written in the dialect quark"
        in plan_checkpoint(odd, Mxfp4Config(tail="pad", dialect="quark")).findings[0]
    )
    integers = write(tmp_path / "integers", {"a.q_proj.weight": (64, 64)}, {}, dtype="I32")
    assert "dtype I32" in plan_checkpoint(integers).findings[0]


def test_nothing_to_quantise_is_a_finding(tmp_path: Path) -> None:
    path = write(tmp_path / "norms", {"model.norm.weight": (64,)}, {})
    assert plan_checkpoint(path).findings == ["nothing to quantise: every tensor is kept; see the reasons"]


def test_k_first_tensors_are_shown_with_k_last(tmp_path: Path) -> None:
    shapes = {
        "model.layers.0.mlp.experts.gate_up_proj": (4, 64, 192),
        "model.layers.0.mlp.experts.down_proj": (4, 96, 64),
        "model.layers.0.mlp.experts.gate_up_proj_bias": (4, 192),
    }
    config = {"model_type": "gpt_oss", "num_local_experts": 4, "experts_per_token": 2}
    found = plan_checkpoint(write(tmp_path / "gpt", shapes, config), backend="reference", device=H200)
    assert row(found, "model.layers.0.mlp.experts.gate_up_proj").shape == (4, 192, 64)
    assert row(found, "model.layers.0.mlp.experts.down_proj").shape == (4, 64, 96)
    (fit,) = found.fits
    assert (
        "moe m=any n=96 k=64 experts=4/4 top_k=2" in fit.question
        and "bias gate:clamped rows:interleaved" in fit.question
    )
    assert found.findings == []


class TestBackend:
    def test_fused_modules_are_asked_as_one(self, model: Path) -> None:
        found = plan_checkpoint(model, backend="reference", device=H200)
        asked = {fit.modules[0]: fit.question for fit in found.fits}
        assert "n=256 k=128" in asked["model.layers.0.self_attn.qkv_proj"]
        assert "n=192 k=128 experts=4/4 top_k=2" in asked["model.layers.0.mlp.experts"]
        assert all(fit.backend == "reference" for fit in found.fits)

    def test_a_bias_is_part_of_the_question(self, tmp_path: Path) -> None:
        shapes = {f"model.layers.0.self_attn.{part}_proj.weight": (64, 64) for part in "qkvo"}
        biases = {f"model.layers.0.self_attn.{part}_proj.bias": (64,) for part in "qkv"}
        path = write(tmp_path / "biased", {**shapes, **biases}, {})
        asked = {
            fit.modules[0]: fit.question
            for fit in plan_checkpoint(path, backend="reference", device=H200).fits
        }
        assert " bias " in asked["model.layers.0.self_attn.qkv_proj"]
        assert " bias " not in asked["model.layers.0.self_attn.o_proj"]

    def test_one_rank_of_experts_asks_with_a_map(self, model: Path) -> None:
        found = plan_checkpoint(model, backend="reference", tp=2, ep=2, device=H200)
        assert any("experts=2/4" in fit.question and "expert-map" in fit.question for fit in found.fits)

    def test_padding_is_counted(self, model: Path, emulated: Any) -> None:
        found = plan_checkpoint(model, backend="emulated")
        by_module = {fit.modules[0]: fit for fit in found.fits}
        fit = by_module["model.layers.0.self_attn.o_proj"]
        assert fit.n % 48 == 0 and fit.k % 96 == 0 and fit.n >= 128 and fit.k >= 128
        assert fit.padding_bytes == 2 * (mx_bytes((fit.n, fit.k)) - mx_bytes((128, 128)))
        assert found.rank_bytes == found.bytes_after + sum(fit.padding_bytes for fit in found.fits)

    def test_a_refusal_is_a_finding_with_its_fix(
        self, model: Path, emulated: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from mxfp4_core.backend.answers import No

        monkeypatch.setattr(
            type(emulated), "supports", lambda self, finding: No(f"k = {finding.k}", "use --tp 1")
        )
        findings = plan_checkpoint(model, backend="emulated").findings
        assert any("k = 128" in finding and "use --tp 1" in finding for finding in findings)

    def test_the_backend_of_the_config_is_asked(self, model: Path) -> None:
        assert plan_checkpoint(model, Mxfp4Config(backend="reference"), device=H200).fits

    def test_modules_that_cannot_be_cut_are_not_asked(self, model: Path) -> None:
        found = plan_checkpoint(model, tp=4, backend="reference", device=H200)
        assert not any("experts" in module for fit in found.fits for module in fit.modules)

    def test_an_unknown_backend_is_an_error(self, model: Path) -> None:
        with pytest.raises(BackendError, match="did you mean 'reference'"):
            plan_checkpoint(model, backend="refrence")

    def test_the_config_knows_the_backends_of_this_project(self) -> None:
        assert {*KNOWN, "reference"} == set(KNOWN_BACKENDS)


class TestRefusals:
    def test_a_pattern_that_matches_nothing(self, model: Path) -> None:
        with pytest.raises(PatternError, match=r"mlp\.experts"):
            plan_checkpoint(model, Mxfp4Config(ignore=["mlp.expert"]))

    def test_a_checkpoint_that_is_quantised_already(self, model: Path) -> None:
        config = json.loads((model / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
        (model / "config.json").write_text(json.dumps(config))
        with pytest.raises(DialectError, match="gptq"):
            plan_checkpoint(model)

    def test_a_damaged_checkpoint(self, model: Path) -> None:
        with open(model / "model.safetensors", "r+b") as file:
            file.truncate(100)
        with pytest.raises(CheckpointError):
            plan_checkpoint(model)

    @pytest.mark.parametrize(("tp", "ep"), [(0, 1), (1, 0), (2, 3), (-2, 1)])
    def test_parallel_sizes_that_do_not_go_together(self, model: Path, tp: int, ep: int) -> None:
        with pytest.raises(ConfigError, match="do not go together"):
            plan_checkpoint(model, tp=tp, ep=ep)


def test_a_large_model_is_planned_in_seconds(tmp_path: Path) -> None:
    path = write(tmp_path / "large", *moe(layers=24, experts=128, hidden=2048, inner=768))
    start = time.perf_counter()
    found = plan_checkpoint(path, tp=2)
    assert len(found.rows) > 9000 and found.bytes_before > 25e9 and found.findings == []
    assert time.perf_counter() - start < 20


class TestCommand:
    def run(self, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["plan", *map(str, arguments)])
        out = capsys.readouterr()
        return int(caught.value.code or 0), out.out, out.err

    @pytest.fixture(autouse=True)
    def wide(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "200")

    def test_equal_layers_share_a_line(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, out, _ = self.run(capsys, model, "--ignore", "layers.0.self_attn")
        assert code == 0
        assert "model.layers.{0-1}.mlp.experts.{0-3}.up_proj" in out
        assert "ignored by 'layers.0.self_attn'" in out and "a router or gate, kept by default" in out
        assert "tensors become MXFP4" in out and "peak while loading" in out
        assert len(out.splitlines()) < 30

    def test_full_has_a_line_for_each_tensor(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        _, out, _ = self.run(capsys, model, "--full")
        assert all(name.removesuffix(".weight") in out for name in moe()[0])

    def test_json_is_the_plan_and_nothing_else(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, out, _ = self.run(
            capsys, model, "--json", "--tp", 2, "--rule", "floor", "--backend", "reference"
        )
        data = json.loads(out)
        assert code == 0 and data["profile"] == "floor/even" and data["tp"] == 2
        want = plan_checkpoint(model, Mxfp4Config(rule="floor"), tp=2, backend="reference").to_dict()
        assert data == json.loads(json.dumps(want))
        assert {"name", "quantize", "reason", "pattern", "matched", "shard", "finding"} <= set(
            data["tensors"][0]
        )

    def test_a_finding_is_exit_code_1(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, out, _ = self.run(capsys, model, "--tp", 4)
        assert code == 1 and "1 finding:" in out and "PROBLEM" in out
        code, out, _ = self.run(capsys, model, "--tp", 4, "--json")
        assert code == 1 and len(json.loads(out)["findings"]) == 1

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--device", "hip:gfx950"],
            ["--ignore", "nothing_like_it"],
            ["--profile", "quark", "--rule", "even"],
            ["--ep", "0"],
            ["--profile", "x"],
        ],
    )
    def test_misuse_is_exit_code_2(
        self, model: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
    ) -> None:
        code, out, err = self.run(capsys, model, *arguments)
        assert code == 2 and "fix:" in err and not out

    def test_options_add_to_the_config_file(
        self, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "config.toml").write_text('ignore = ["self_attn"]\ntail = "pad"\n')
        code, out, _ = self.run(
            capsys,
            model,
            "--config",
            tmp_path / "config.toml",
            "--ignore",
            "up_proj",
            "--ignore",
            "gate_proj",
            "--ignore",
            "down_proj",
        )
        assert code == 1 and "nothing to quantise" in out

    def test_another_device_can_be_asked_about(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, out, _ = self.run(capsys, model, "--backend", "rocm", "--device", "hip:gfx950")
        assert code == 1 and "install mxfp4-rocm" in out and "hip gfx950" in out

    def test_a_pipe_has_no_edge_to_fold_names_at(
        self, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("COLUMNS", raising=False)
        wide = self.run(capsys, model)[1]
        assert "a linear or expert weight" in wide.splitlines()[1]
        monkeypatch.setenv("COLUMNS", "60")
        assert len(self.run(capsys, model)[1].splitlines()) > len(wide.splitlines())

    def test_it_runs_without_torch(self, model: Path) -> None:
        code = (
            "import sys; sys.modules['torch'] = None\n"
            f"from mxfp4_core.cli import main; main(['plan', {str(model)!r}, '--tp', '2', '--json'])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0 and json.loads(done.stdout)["findings"] == [], done.stderr


NUMBERS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=20)


@given(NUMBERS, st.booleans())
def test_collapsed_names_stand_for_exactly_the_names(pairs: list[tuple[int, int]], other: bool) -> None:
    names = {f"layers.{first}.experts.{second}.up" for first, second in pairs} | (
        {"head"} if other else set()
    )
    found = [name for line in collapse(sorted(names)) for name in _expand(line)]
    assert sorted(found) == sorted(names)


def _expand(line: str) -> list[str]:
    if "{" not in line:
        return [line]
    head, _, rest = line.partition("{")
    inside, _, tail = rest.partition("}")
    names: list[str] = []
    for run in inside.split(", "):
        low, _, high = run.partition("-")
        for number in range(int(low), int(high or low) + 1):
            names += _expand(f"{head}{number}{tail}")
    return names
