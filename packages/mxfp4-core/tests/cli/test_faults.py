"""What reaches the terminal, and how a command ends that cannot go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mxfp4_core.cli import main
from mxfp4_core.errors import CheckpointError

Save = Callable[..., Path]
HOSTILE = "model.\x1b[2J\nwrote nothing\u202e.up_proj.weight"
RUN = "from mxfp4_core.cli import main; main()"


def command(*arguments: object, **options: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", RUN, *map(str, arguments)], check=False, capture_output=True, **options
    )  # type: ignore[call-overload]


@pytest.fixture
def source(save: Save) -> Path:
    names = (HOSTILE, "model.other.up_proj.weight")
    return save({name: torch.randn(32, 64).bfloat16() for name in names}, name="so\x1b]0;x\x07urce\nx")


def test_names_from_files_are_shown_escaped(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = source.parent / "tar\x1b[31mget\nx"
    (source / "left\x1b[0m\nx.pt").write_bytes(b"")
    commands = [
        ["plan", source],
        ["plan", source, "--full"],
        ["quantize", source, target, "--quiet"],
        ["quantize", source, target, "--quiet"],
        ["verify", target, "--source", source],
        ["convert", target, f"{target}2", "--to", "quark", "--quiet"],
        ["report", target, "--source", source, "--quiet"],
        ["plan", f"{source}-none"],
    ]
    lines = 0
    for each in commands:
        if each[0] == "verify":
            (target / "added\x1b[0m\nx.safetensors").write_bytes((target / "model.safetensors").read_bytes())
            with open(target / "model.safetensors", "r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(b"\x77")
        if each[0] == "convert":
            (target / "added\x1b[0m\nx.safetensors").unlink()
        with pytest.raises(SystemExit):
            main([str(part) for part in each])
        told = "".join(capsys.readouterr())
        assert "Traceback" not in told
        found = [char for char in told if not char.isprintable() and char != "\n"]
        assert found == [], each
        assert not any(line.startswith(("wrote nothing", "x")) for line in told.splitlines()), told
        lines += told.count("\\x1b")
    assert lines > 10


def test_an_error_escapes_what_it_shows() -> None:
    error = CheckpointError("cannot read a\x1b[2J\nfix: b", seen="one\n        two\x07", rule="r", fix="f")
    assert str(error) == (
        "cannot read a\\x1b[2J\\x0afix: b\n  seen: one\n        two\\x07\n  rule: r\n  fix:  f"
    )
    assert error.what == "cannot read a\x1b[2J\nfix: b"


def test_a_name_that_the_terminal_cannot_show(save: Save) -> None:
    source = save({"mod\u00e8le.\u6a21.up_proj.weight": torch.ones(32, 32)}, name="s\u00e9")
    for encoding in ("ascii", "latin-1"):
        done = command("plan", source, env={**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C"})
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"\\u6a21" in done.stdout


def test_output_that_cannot_be_written(source: Path) -> None:
    for arguments in (["plan", source], ["plan", source, "--json"], ["--help"]):
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [sys.executable, "-c", RUN, *map(str, arguments)],
                stdout=full,
                stderr=subprocess.PIPE,
                check=False,
            )
        assert done.returncode == 1, arguments
        assert done.stderr.startswith(b"mxfp4: cannot write the output: [Errno 28]")
        assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("size", ["9" * 400, "1" * 400 + "GB", "0." + "1" * 400, "1e9"])
def test_sizes_from_anyone(source: Path, capsys: pytest.CaptureFixture[str], size: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["quantize", str(source), str(source.parent / "target"), "--max-shard-size", size])
    assert ended.value.code == 2
    assert "--max-shard-size cannot be read" in capsys.readouterr().err


def test_too_many_processes(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["quantize", str(source), str(source.parent / "target"), "--jobs", "9" * 30])
    assert ended.value.code == 2
    assert "at most 1024" in capsys.readouterr().err


def test_an_interruption_while_modules_are_imported(source: Path) -> None:
    code = (
        "import sys, builtins, time; from mxfp4_core.cli import main\n"
        "usual = builtins.__import__\n"
        "def slow(name, *rest):\n"
        "    if name == 'typer':\n"
        "        try:\n"
        "            print('here', flush=True); time.sleep(30)\n"
        "        except KeyboardInterrupt:\n"
        "            raise ImportError('wrapped, as some packages do')\n"
        "    return usual(name, *rest)\n"
        "builtins.__import__ = slow\n"
        "main()"
    )
    arguments = [sys.executable, "-c", code, "plan", str(source)]
    running = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout is not None
    assert running.stdout.readline() == b"here\n"
    time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (130, b"")
