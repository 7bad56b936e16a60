"""List every public name of the workspace: ``python3 tools/public_names.py > api.txt``.

Public is what a package lists in its ``__all__``, and what the rooms of the core list in theirs. It is read from the
source without importing it, and committed as ``api.txt``: a change of the public face then shows as a line of the diff,
and a test fails until somebody meant it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from linked import members

# The rooms of the core that others build on: all but the command line and the page.
ROOMS = (
    "arithmetic",
    "backend",
    "checkpoint",
    "config",
    "dialects",
    "errors",
    "jobs",
    "loader",
    "modules",
    "naming",
    "parallel",
    "testing",
)


def exported(path: Path) -> list[str]:
    """Return the names in the ``__all__`` of one file."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return sorted(ast.literal_eval(node.value))
    return []


def public_names() -> Iterator[str]:
    """Yield ``module.name`` for each public name, package by package."""
    for member in members():
        package = member / "src" / member.name.replace("-", "_")
        yield from (f"{package.name}.{name}" for name in exported(package / "__init__.py"))
        if package.name == "mxfp4_core":
            for module in ROOMS:
                path = package / module
                path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
                yield from (f"{package.name}.{module}.{name}" for name in exported(path))


if __name__ == "__main__":
    print("\n".join(public_names()))
