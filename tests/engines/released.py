"""Read a release of an engine without importing it: which names its modules bind, which arguments its methods have.

``MXFP4_ENGINE_SOURCE`` is a folder that holds an unpacked wheel (``nox -s engine_names`` makes one of the newest
release); without it the installed engine is read, and without that there is nothing to read.
"""

from __future__ import annotations

import ast
import importlib.util
import os
from collections.abc import Iterable, Iterator
from importlib.metadata import distributions
from pathlib import Path

import pytest

INTEGRATION = Path(__file__).resolve().parents[2] / "integration"


def source_of(package: str) -> Path:
    """Return the folder of a package; skip where there is none."""
    if folder := os.environ.get("MXFP4_ENGINE_SOURCE"):
        return Path(folder) / package
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"no {package} to read: nox -s engine_names")
    return Path(next(iter(found.submodule_search_locations)))


def version_of(source: Path, names: Iterable[str]) -> str:
    """Return the version of the distribution that a package lies beside.

    Args:
        source: of `source_of`.
        names: of distributions that bring it.
    """
    found = {each.name: each.version for each in distributions(path=[str(source.parent)])}
    return next(found[name] for name in names if name in found)


def taken(files: Iterable[Path], package: str) -> list[tuple[str, str]]:
    """Return (module, name) of all that modules of ours import from a package, at any level."""
    found = [each for file in files for each in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    pairs = {
        (node.module, alias.name): None
        for node in found
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == package
        for alias in node.names
    }
    return list(pairs)


def check_name(source: Path, module: str, name: str) -> None:
    """Check that a module of a release has a name, or is a package with a module of that name."""
    path = source.joinpath(*module.split(".")[1:])
    if (path / name).is_dir() or (path / f"{name}.py").exists():
        return
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    assert file.exists(), f"there is no {module}"
    there = name in set(_bound(ast.parse(file.read_text(encoding="utf-8"))))
    # transformers makes the names of its first level from lists in its modules.
    assert there or (module == source.name and _listed(source, name)), f"{module} has no {name}"


def arguments_of(source: Path, place: str) -> list[str]:
    """Return the names of the arguments of a function or method, without ``self``.

    Args:
        source: of `source_of`.
        place: ``file.py:function`` or ``file.py:Class.method``.
    """
    file, _, name = place.partition(":")
    body = ast.parse((source / file).read_text(encoding="utf-8")).body
    *owners, last = name.split(".")
    for owner in owners:
        (inner,) = (node for node in body if isinstance(node, ast.ClassDef) and node.name == owner)
        body = inner.body
    (function,) = (node for node in body if isinstance(node, ast.FunctionDef) and node.name == last)
    return [each.arg for each in function.args.args if each.arg != "self"]


def _listed(source: Path, name: str) -> bool:
    return any(f'"{name}"' in file.read_text(encoding="utf-8") for file in source.rglob("*.py"))


def _bound(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            yield node.name
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (each.id for each in targets if isinstance(each, ast.Name))
            # Packages that import late have their names in a table.
            texts = (each.value for each in ast.walk(node) if isinstance(each, ast.Constant))
            yield from (each for each in texts if isinstance(each, str) and each.isidentifier())
