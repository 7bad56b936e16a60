"""Run a Python module or script against this checkout without installing anything.

    python3 tools/linked.py pytest packages/mxfp4-core/tests
    python3 tools/linked.py bench/quantize_cpu.py --help

For machines with an accelerator and no network: what the packages need (torch above all) is there, but the
packages themselves are not, and neither is a build tool. Source folders on ``PYTHONPATH`` alone would hide
the entry points (backends, the pytest plug-in), which Python reads from ``*.dist-info`` folders. This
script derives those from each ``pyproject.toml``, puts them into ``build/linked`` and starts the module.
"""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "build" / "linked"


def members() -> list[Path]:
    """List the package folders of the workspace, the core first."""
    found = sorted(ROOT.glob("packages/*/pyproject.toml")) + sorted(ROOT.glob("integration/*/pyproject.toml"))
    return [path.parent for path in found]


def write_dist_info(member: Path) -> None:
    """Write the metadata of one package, as an installer would, but leave its source where it is."""
    project = tomllib.loads((member / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name, version = project["name"], project["version"]
    folder = SITE / f"{name.replace('-', '_')}.dist-info"  # no version: a new one must replace the old
    folder.mkdir(parents=True, exist_ok=True)
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (folder / "METADATA").write_text(metadata, encoding="utf-8")
    groups = dict(project.get("entry-points", {}))
    if "scripts" in project:
        groups["console_scripts"] = project["scripts"]
    lines = []
    for group, entries in groups.items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in entries.items()), ""]
    (folder / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")


def environment() -> dict[str, str]:
    """Write the metadata of every member and return the variables that make Python find them."""
    for member in members():
        write_dist_info(member)
    path = [str(SITE), *(str(member / "src") for member in members())]
    if "PYTHONPATH" in os.environ:
        path.append(os.environ["PYTHONPATH"])
    return {"PYTHONPATH": os.pathsep.join(path)}


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python3 tools/linked.py MODULE|FILE.py [ARGUMENT ...]")
    command = [sys.executable, *(() if sys.argv[1].endswith(".py") else ("-m",)), *sys.argv[1:]]
    # In the place of this process: a signal reaches what runs, and nothing in between ends it early.
    os.execve(sys.executable, command, {**os.environ, **environment()})
