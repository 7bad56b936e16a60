"""Run what a page of the documentation shows: its blocks become files of a folder outside the repository."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parents[4] / "docs"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        language: what stands behind the fence.
        name: of the file, from the first line of the block; empty for commands.
        text: the block.
    """

    language: str
    name: str
    text: str


def blocks(page: str) -> list[Block]:
    """Return the blocks of a page, in their order."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = []
    for language, body in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        named = re.match(r"# ([\w./-]+\.\w+)\n", body)
        found.append(Block(language, named[1] if named else "", body))
    return found


def write(page: str, where: Path, changes: Mapping[str, str] | None = None) -> list[Block]:
    """Write the named blocks of a page into a folder, with some strings replaced; return all blocks."""
    found = blocks(page)
    for block in found:
        if block.name:
            text = block.text
            for old, new in (changes or {}).items():
                text = text.replace(old, new)
            (where / block.name).parent.mkdir(parents=True, exist_ok=True)
            (where / block.name).write_text(text, encoding="utf-8")
    return found


def install(where: Path) -> None:
    """Install the package of a folder as ``pip install -e`` would: metadata on the path, the source where it is."""
    project = tomllib.loads((where / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = where / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(metadata, encoding="utf-8")
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (where / "conftest.py").write_text("import torch\n\ntorch.set_num_threads(1)\n", encoding="utf-8")


def python(where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in another process with the folder on its path."""
    path = [str(where), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTEST_ADDOPTS": "", "COLUMNS": "200"}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=where, env=environment, capture_output=True, text=True, timeout=900, check=False
    )


def run(where: Path, *options: str) -> tuple[int, dict[str, int], str]:
    """Run pytest in another process; return its exit code, the counts of its last line, and its output."""
    done = python(where, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *options)
    summary = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
    counts = {
        word: int(number)
        for number, word in re.findall(r"(\d+) (passed|failed|skipped|deselected|error)", summary)
    }
    return done.returncode, counts, done.stdout + done.stderr


def commands(found: list[Block]) -> list[list[str]]:
    """Return the commands of the ``sh`` blocks, without comments."""
    lines = [line for block in found if block.language == "sh" for line in block.text.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]
