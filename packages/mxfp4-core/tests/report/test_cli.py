"""``mxfp4 report`` as people run it: what is printed, what is written, and the exit codes."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mxfp4_core.cli import main
from mxfp4_core.jobs.convert import convert_checkpoint
from mxfp4_core.jobs.quantize import quantize_checkpoint
from mxfp4_core.report import files

torch.set_num_threads(1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.mkdir()
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    tensors = {"layers.0.q_proj.weight": weight, "layers.0.norm.weight": torch.ones(8, dtype=torch.bfloat16)}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text("{}")
    return path


@pytest.fixture
def quantised(source: Path) -> Path:
    target = source.parent / "quantised"
    quantize_checkpoint(source, target)
    return target


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["report", *map(str, arguments)])
    return int(stop.value.code or 0)


def test_a_summary_is_printed(source: Path, quantised: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(quantised, "--source", source) == 0
    out = capsys.readouterr().out
    assert "layers.0.q_proj.weight" in out
    assert "even/even" in out
    assert "nothing was written" in out.splitlines()[-1]


def test_rules_are_compared_without_a_quantised_checkpoint(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(source, "--json") == 0
    assert json.loads(capsys.readouterr().out)["variants"] == [
        "floor/even",
        "even/even",
        "rceil/even",
        "ceil/even",
    ]
    assert (
        run(source, "--json", "--rule", "ceil_d(7.25)", "--profile", "quark", "--profile", "even/away") == 0
    )
    assert json.loads(capsys.readouterr().out)["variants"] == ["ceil_d(7.25)/even", "quark", "even/away"]


@pytest.mark.parametrize(
    ("option", "start"), [("--csv", "name,"), ("--md", "# MXFP4"), ("--html", "<!doctype html>")]
)
def test_one_format_goes_to_stdout(
    source: Path, option: str, start: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(source, option) == 0
    assert capsys.readouterr().out.startswith(start)


def test_all_formats_go_to_a_folder_and_the_last_line_says_where(
    source: Path, quantised: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = source.parent / "deep" / "report"
    assert run(quantised, "--source", source, "--out", out) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "report.csv",
        "report.html",
        "report.json",
        "report.md",
    ]
    assert str(out / "report.html") in capsys.readouterr().out.splitlines()[-1]


def test_the_formats_asked_for_go_to_a_folder(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = source.parent / "report"
    assert run(source, "--out", out, "--csv", "--json") == 0
    assert sorted(path.name for path in out.iterdir()) == ["report.csv", "report.json"]
    assert str(out / "report.json") in capsys.readouterr().out.splitlines()[-1]


def test_nothing_is_replaced_without_force(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = source.parent / "report"
    out.mkdir()
    (out / "report.csv").write_text("mine")
    assert run(source, "--out", out) == 2
    assert "--force" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["report.csv"]
    assert (out / "report.csv").read_text() == "mine"
    assert run(source, "--out", out, "--force") == 0
    assert (out / "report.csv").read_text().startswith("name,")


def test_a_failure_leaves_nothing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(report: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "RENDERERS", {**files.RENDERERS, "md": fail})
    with pytest.raises(KeyboardInterrupt):
        files.write(None, {"md": source.parent / "out" / "report.md"})  # type: ignore[arg-type]
    assert not (source.parent / "out").exists()


def test_a_folder_that_cannot_be_written_is_told_before_the_work(source: Path) -> None:
    assert run(source, "--out", source / "model.safetensors") == 2
    assert run(source, "--out", source / "model.safetensors" / "below") == 2


def test_a_missing_tensor_gives_exit_code_1_and_still_a_report(
    source: Path, quantised: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = load_file(quantised / "model.safetensors")
    del stored["layers.0.norm.weight"]
    save_file(stored, quantised / "model.safetensors", metadata={"format": "pt"})
    assert run(quantised, "--source", source, "--json") == 1
    printed = capsys.readouterr()
    assert "layers.0.norm.weight" in printed.err
    assert len(json.loads(printed.out)["findings"]) == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--rule", "evn"],
        ["--profile", "qark"],
        ["--rule", "even", "--profile", "even/even"],
        ["--json", "--csv"],
        ["--source", "SOURCE", "--rule", "even"],
        ["--no-such-option"],
    ],
)
def test_misuse_gives_exit_code_2(source: Path, options: list[str]) -> None:
    assert run(source, *[str(source) if each == "SOURCE" else each for each in options]) == 2


def test_swapped_folders_give_exit_code_2(
    source: Path, quantised: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(quantised) == 2
    assert "--source" in capsys.readouterr().err
    assert run(source, "--source", quantised) == 2


def test_a_damaged_checkpoint_gives_exit_code_1(source: Path) -> None:
    (source / "model.safetensors").write_bytes(b"\0" * 20)
    assert run(source) == 1


def test_a_full_disk_leaves_nothing_of_a_report(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / "mine.txt").write_text("mine")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for folder in (tmp_path / "new" / "er", there):
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, before[1]))  # the page fits no more, the table would
        try:
            code = run(source, "--out", folder, "--csv", "--html", "--quiet")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert code == 2
        assert "cannot write" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert [each.name for each in there.iterdir()] == ["mine.txt"]


LLAMA = {
    **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "vocab_size": 96},
    **{"intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"head_dim": 16, "max_position_embeddings": 64, "tie_word_embeddings": False},
}
SHAPES = {
    **{"model.embed_tokens": (96, 64), "lm_head": (96, 64), "model.norm": (64,)},
    **{f"model.layers.0.{each}_layernorm": (64,) for each in ("input", "post_attention")},
    **{f"model.layers.0.self_attn.{each}_proj": (64, 64) for each in "qo"},
    **{f"model.layers.0.self_attn.{each}_proj": (32, 64) for each in "kv"},
    **{f"model.layers.0.mlp.{each}_proj": (128, 64) for each in ("gate", "up")},
    "model.layers.0.mlp.down_proj": (64, 128),
}


@pytest.mark.parametrize("dialect", ["gguf", "quark", "mxfp4-core"])
def test_what_a_dialect_calls_otherwise_is_found(
    dialect: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files of llama.cpp have other names and another order of rows, and what is kept is in them all the same."""
    rng, source = torch.Generator().manual_seed(0), tmp_path / "llama"
    source.mkdir()
    values = {f"{name}.weight": torch.randn(*shape, generator=rng) for name, shape in SHAPES.items()}
    save_file({name: value.bfloat16() for name, value in values.items()}, source / "model.safetensors")
    (source / "config.json").write_text(json.dumps(LLAMA))
    quantize_checkpoint(source, tmp_path / "q")
    convert_checkpoint(tmp_path / "q", tmp_path / dialect, dialect)
    assert run(tmp_path / dialect, "--source", source, "--quiet") == 0
    assert "finding" not in capsys.readouterr().err
    values["model.embed_tokens.weight"][5, 7] += 1
    save_file({name: value.bfloat16() for name, value in values.items()}, source / "model.safetensors")
    assert run(tmp_path / dialect, "--source", source, "--quiet") == 1
    said = capsys.readouterr().err
    assert "finding: model.embed_tokens.weight: kept as BF16, but its values differ" in said
