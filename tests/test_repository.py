"""Promises that the repository makes as a whole: its commands, its shape, its public face."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import linked
import public_names
import pytest

ROOT = Path(__file__).resolve().parent.parent
MEMBERS = linked.members()
MODULES = sorted(path for member in MEMBERS for path in (member / "src").rglob("*.py"))
DECISIONS = sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("session", ["demo", "tests"])
def test_one_command_of_the_readme_does_it_all_and_ci_runs_the_same(session: str) -> None:
    commands = re.findall(r"^python3 -m venv .*$", README, re.MULTILINE)
    (command,) = [line for line in commands if line.endswith(f" -s {session}")]
    assert f'"{command}"' in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert f"def {session}(session: nox.Session)" in (ROOT / "noxfile.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / page).read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert missing == []


@pytest.mark.parametrize("module", MODULES, ids=relative)
def test_a_module_is_short_enough_to_read(module: Path) -> None:
    assert len(module.read_text(encoding="utf-8").splitlines()) <= 300


def test_public_names_are_the_agreed_ones() -> None:
    agreed = (ROOT / "api.txt").read_text(encoding="utf-8").splitlines()
    found = list(public_names.public_names())
    advice = "if this is meant, run: python3 tools/public_names.py > api.txt"
    assert sorted(set(found) - set(agreed)) == [], f"new public names; {advice}"
    assert sorted(set(agreed) - set(found)) == [], f"public names that are gone; {advice}"
    assert found == agreed, advice


def test_every_agreed_name_of_the_core_exists() -> None:
    code = (
        "import importlib, sys\n"
        "for line in sys.stdin.read().split():\n"
        "    module, name = line.rsplit('.', 1)\n"
        "    getattr(importlib.import_module(module), name)\n"
    )
    names = "\n".join(line for line in public_names.public_names() if line.startswith("mxfp4_core."))
    run = subprocess.run(
        [sys.executable, "-c", code], input=names, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def test_importing_the_core_loads_neither_torch_nor_a_backend() -> None:
    code = "import sys, mxfp4_core; print([n for n in sys.modules if n == 'torch' or '.backends' in n])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        (["plan", str(ROOT / "models" / "qwen3-tiny"), "--json"], 0, '"quantized": 42'),
        (["doctor"], 1, "this machine has no torch"),
    ],
    ids=["plan", "doctor"],
)
def test_plan_and_doctor_work_without_torch(command: list[str], code: int, says: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('this machine has no torch')\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "mxfp4_core", *command]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == code, run.stderr
    assert says in run.stdout


@pytest.mark.parametrize("member", MEMBERS, ids=relative)
def test_a_package_is_complete(member: Path) -> None:
    project = tomllib.loads((member / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    package = member / "src" / project["name"].replace("-", "_")
    assert (package / "py.typed").exists()
    assert (member / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert len((member / "README.md").read_text(encoding="utf-8").splitlines()) > 5
    assert list((member / "tests").rglob("test_*.py"))


def test_all_packages_carry_one_version() -> None:
    files = [ROOT / "pyproject.toml", *(member / "pyproject.toml" for member in MEMBERS)]
    versions = {tomllib.loads(path.read_text(encoding="utf-8"))["project"]["version"] for path in files}
    assert len(versions) == 1


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_what_is_said_to_be_installed_can_be(member: Path) -> None:
    """Packages of this project come from a clone: pip finds no ``mxfp4-...`` by name."""
    pages = [*(member / "src").rglob("*.py"), *member.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    by_name = re.compile(r"""pip install(?: -[-\w]+)* ["']?mxfp4-""")
    said = [relative(page) for page in pages if by_name.search(page.read_text(encoding="utf-8"))]
    assert said == []


def test_torch_is_never_a_build_requirement() -> None:
    for member in MEMBERS:
        build = tomllib.loads((member / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]
        assert build["requires"] == ["hatchling"], relative(member)


@pytest.mark.parametrize("decision", DECISIONS, ids=relative)
def test_a_decision_record_has_its_parts_on_one_page(decision: Path) -> None:
    text = decision.read_text(encoding="utf-8")
    assert text.startswith(f"# {decision.name[:4]}: ")
    assert re.search(
        r"^Status: (proposed|accepted|replaced by \d{4})(, \d{4}-\d\d-\d\d)?$", text, re.MULTILINE
    )
    assert re.findall(r"^## (.*)$", text, re.MULTILINE)[:3] == ["Context", "Decision", "Consequences"]
    assert len(text.splitlines()) <= 70


def test_changelog_fragments_are_named_so_that_towncrier_finds_them() -> None:
    found = [path.name for path in (ROOT / "changelog.d").iterdir() if path.name != ".gitignore"]
    bad = [name for name in found if not re.fullmatch(r"[a-z0-9-]+\.(added|changed|fixed|removed)\.md", name)]
    assert bad == []
