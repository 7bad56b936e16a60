from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mxfp4_core import cli
from mxfp4_core._text import disk_text
from mxfp4_core.cli import main
from mxfp4_core.cli.output import shard_bytes
from mxfp4_core.errors import ConfigError, PatternError
from mxfp4_core.jobs import opened

Save = Callable[..., Path]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return call


@pytest.fixture
def source(save: Save, dense: dict[str, torch.Tensor]) -> Path:
    return save(dense, config={"model_type": "llama"})


def test_quantize_convert_verify(run: Run, source: Path) -> None:
    native, quark = source.parent / "native", source.parent / "quark"
    options = ("--rule", "floor", "--max-shard-size", "9kB", "--dialect", "mxfp4-core")
    code, out, err = run("quantize", source, native, *options)
    assert code == 0, err
    assert "7 weights in MXFP4, 5 tensors unchanged, profile floor/even" in out
    last = out.strip().splitlines()[-1]
    assert last == (
        f"wrote {native} - load it with: import mxfp4_transformers, transformers; "
        f"transformers.AutoModelForCausalLM.from_pretrained('{native}')"
    )
    code, out, err = run("convert", native, quark, "--to", "quark")
    assert code == 0, err
    assert out.strip().splitlines()[-1].startswith(f"wrote {quark} - load it with: vllm serve {quark}")
    code, out, err = run("verify", quark, "--source", source)
    assert (code, err) == (0, "")
    assert out.strip().splitlines()[-1] == f"{quark}: 7 MXFP4 weights, quark, profile floor/even: good"


def test_the_dialect_is_chosen_aloud(run: Run, source: Path) -> None:
    why = "dialect compressed-tensors: it can say everything; it loads in vLLM"
    code, out, err = run("quantize", source, source.parent / "target", "--quiet")
    assert code == 0, err
    assert why in out
    code, out, err = run("plan", source)
    assert code == 0, err
    assert why in out
    native = source.parent / "native"
    code, out, err = run("quantize", source, native, "--activation", "mxfp8", "--quiet")
    assert code == 0, err
    assert "dialect mxfp4-core: dialect 'compressed-tensors' cannot say what the config asks for" in out
    code, out, err = run("convert", native, source.parent / "other", "--to", "quark", "--beside", "wide")
    assert code == 2
    assert "did you mean 'widen'" in err


def test_json(run: Run, source: Path) -> None:
    target = source.parent / "target"
    code, out, err = run("quantize", source, target, "--dry-run", "--json")
    assert (code, err) == (0, "")
    planned = json.loads(out)
    assert planned["dry_run"] is True
    assert not target.exists()
    code, out, err = run("quantize", source, target, "--json")
    assert (code, err) == (0, "")
    done = json.loads(out)
    assert done["target_bytes"] == planned["target_bytes"]
    assert done["path"] == str(target)
    code, out, _ = run("verify", target, "--json")
    assert code == 0
    assert json.loads(out)["ok"] is True


def test_a_problem_is_exit_code_1(run: Run, source: Path) -> None:
    target = source.parent / "target"
    run("quantize", source, target, "--quiet")
    with open(target / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xee")
    code, out, _ = run("verify", target)
    assert code == 1
    assert "WRONG manifest: model.layers.0." in out
    assert out.strip().splitlines()[-1].endswith("1 finding(s)")
    code, out, _ = run("verify", target, "--json")
    assert code == 1
    assert json.loads(out)["findings"][0]["check"] == "manifest"


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        (["quantize", "{source}", "{source}"], 2, "OutputError"),
        (["quantize", "{source}", "{target}", "--rule", "evne"], 2, "ConfigError"),
        (["quantize", "{source}", "{target}", "--dialect", "qark"], 2, "ConfigError"),
        (["quantize", "{source}", "{target}", "--ignore", "q_prj"], 2, "PatternError"),
        (["quantize", "{source}", "{target}", "--max-shard-size", "0"], 2, "ConfigError"),
        (["quantize", "{source}", "{target}", "--config", "{target}.json"], 2, "ConfigError"),
        (["quantize", "{source}/nowhere", "{target}"], 1, "CheckpointError"),
        (["convert", "{source}", "{target}", "--to", "quark"], 1, "DialectError"),
        (["verify", "{source}"], 1, "DialectError"),
    ],
)
def test_errors_are_messages_and_exit_codes(
    run: Run, source: Path, arguments: list[str], code: int, kind: str
) -> None:
    target = source.parent / "target"
    filled = [argument.format(source=source, target=target) for argument in arguments]
    found, out, err = run(*filled)
    assert (found, out) == (code, "")
    assert err.startswith(f"mxfp4: {kind}: ")
    assert all(f"\n  {part}" in err for part in ("seen:", "rule:", "fix:"))
    found, out, err = run(*filled, "--json")
    assert (found, err) == (code, "")
    assert json.loads(out)["error"].keys() == {"type", "what", "seen", "rule", "fix"}
    assert json.loads(out)["error"]["type"] == kind
    assert not target.exists()


def test_several_processes_write_the_same(
    run: Run, source: Path, contents: Callable[[Path], dict[str, bytes]]
) -> None:
    for jobs in ("1", "2"):
        target = source.parent / jobs
        code, _, err = run("quantize", source, target, "--max-shard-size", "9kB", "--jobs", jobs, "--quiet")
        assert code == 0, err
    assert contents(source.parent / "1") == contents(source.parent / "2")
    code, out, _ = run("verify", source.parent / "2", "--source", source, "--jobs", "2")
    assert (code, out.strip().splitlines()[-1].rsplit(": ", 1)[1]) == (0, "good")
    code, _, err = run("convert", source.parent / "2", source.parent / "3", "--to", "quark", "--jobs", "0")
    assert code == 2
    assert "jobs is at least 1" in err


def test_options_that_do_not_exist(run: Run, source: Path) -> None:
    for arguments in (["quantize", source], ["quantise"], ["quantize", source, "x", "--colour"]):
        code, _, err = run(*arguments)
        assert code == 2
        assert "Usage" in err


def test_options_add_to_the_config_file(run: Run, source: Path) -> None:
    settings = source.parent / "config.toml"
    settings.write_text('rule = "floor"\nignore = ["o_proj"]\n')
    target = source.parent / "target"
    code, out, _ = run(
        "quantize", source, target, "--config", settings, "--ignore", "down_proj", "--ties", "away", "--quiet"
    )
    assert code == 0
    assert "5 weights in MXFP4, 7 tensors unchanged, profile floor/away" in out


def test_an_interruption_is_exit_code_130(run: Run, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(opened, "open_checkpoint", interrupt)
    code, out, err = run("quantize", source, source.parent / "target")
    assert (code, out) == (130, "")
    assert "Traceback" not in err


def test_too_little_memory_is_a_message(run: Run, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(opened, "open_checkpoint", fail)
    code, _, err = run("quantize", source, source.parent / "target")
    assert code == 1
    assert err.startswith("mxfp4: out of memory")


def test_help_is_fast_and_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from mxfp4_core.cli import main; main(['--help'])"
    started = time.process_time()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command, about in cli.COMMANDS.items():
        assert re.search(f"^  {command} +{re.escape(about)}$", done.stdout, re.MULTILINE)
    heavy = "import sys; from mxfp4_core import cli; print(sorted({'torch', 'numba', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert time.process_time() - started < 5


def test_version(run: Run) -> None:
    code, out, _ = run("--version")
    assert code == 0
    assert out.startswith("mxfp4-core 0.")


def test_every_command_has_help_and_prints_no_markup(run: Run) -> None:
    for command in cli.COMMANDS:
        code, out, _ = run(command, "--help")
        assert code == 0
        assert "--help" in out


def test_sizes() -> None:
    sizes = {
        "5GB": 5 * 10**9,
        "1.5 MB": 1_500_000,
        "2GiB": 2 << 30,
        "7": 7,
        "3k": 3000,
        "4KiB": 4096,
        "1g": 10**9,
    }
    assert {text: shard_bytes(text) for text in sizes} == sizes
    for text in ("", "0", "-1", "5TB", "GB", "0.1"):
        with pytest.raises(ConfigError):
            shard_bytes(text)
    assert [disk_text(n) for n in (999, 1000, 2_500_000, 5_000_000_000)] == [
        "999 bytes",
        "1.00 kB",
        "2.50 MB",
        "5.00 GB",
    ]


def test_misuse_and_findings_differ() -> None:
    assert cli.exit_code(PatternError("a", seen="b", rule="c", fix="d")) == 2


def test_dequantize_and_other_formats(run: Run, source: Path) -> None:
    folder = source.parent
    assert run("quantize", source, folder / "q", "--dialect", "mxfp4-core")[0] == 0
    code, out, _ = run("dequantize", folder / "q", folder / "plain")
    assert code == 0 and f"wrote {folder / 'plain'}" in out
    code, out, _ = run("convert", folder / "q", folder / "fp8", "--to", "fp8", "--lossy")
    assert code == 0 and "signal to noise of" in out
    code, out, _ = run("convert", folder / "fp8", folder / "again", "--to", "quark")
    assert code == 0 and "note: lossy:" in out
    code, _, err = run("convert", folder / "q", folder / "no", "--to", "fp-quant")
    assert code == 1 and "rotated and divided by 3" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", ""),
        ("quantize", "", "target"),
        ("quantize", "source", ""),
        ("convert", "source", "", "--to", "quark"),
        ("dequantize", "", "target"),
        ("verify", "source", "--against", ""),
        ("plan", "source", "--config", ""),
        ("report", "source", "--out", ""),
    ],
    ids=" ".join,
)
def test_an_empty_path_is_not_the_current_folder(
    run: Run, source: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(source.parent)
    before = sorted(source.parent.rglob("*"))
    words = [source.name if each == "source" else each for each in arguments]
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.startswith("mxfp4: ConfigError: a path is empty\n") and "variable of the shell" in err
    assert sorted(source.parent.rglob("*")) == before


@pytest.mark.parametrize(("command", "option"), [("report", "--out"), ("plan", "--config")])
def test_a_file_of_this_machine_is_not_in_a_bucket(run: Run, source: Path, command: str, option: str) -> None:
    code, _, err = run(command, source, option, "s3://bucket/it")
    assert code == 2
    assert "cannot use s3://bucket/it" in err and "files of this machine" in err


@pytest.mark.parametrize(
    ("option", "word", "meant"),
    [("--format", "MXFP4", "mxfp4"), ("--dialect", "MODELOPT", "modelopt"), ("--profile", "Quark", "quark")],
)
def test_a_word_in_the_wrong_case_is_recognised(
    run: Run, source: Path, option: str, word: str, meant: str
) -> None:
    code, _, err = run("quantize", source, source.parent / "target", option, word)
    assert code == 2
    assert f"did you mean {meant!r}?" in err
    listed = err.partition("is one of ")[2].partition("\n")[0].split(", ")
    assert len(listed) == len(set(listed)) > 2
