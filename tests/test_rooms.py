"""The rooms of the core: the tree, the reading order in docs/index.md and the linter's layers say the same."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import public_names
import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "packages" / "mxfp4-core" / "src" / "mxfp4_core"
ROW = re.compile(r"^\| (`[^|]+`) \| [^|]* \| ([^|]*)\|$", re.MULTILINE)


def in_backticks(text: str) -> list[str]:
    return [name.rstrip("/") for name in re.findall(r"`([^`]+)`", text)]


def reading_order() -> list[tuple[list[str], list[str]]]:
    """Return the rows of the table: rooms that may import only those of the rows before, and their modules."""
    page = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    return [(in_backticks(rooms), in_backticks(modules)) for rooms, modules in ROW.findall(page)]


def layers() -> list[str]:
    """Return the rooms as the linter has them, the lowest first; what no reader looks for is left out."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (rooms,) = [each for each in contracts["contracts"] if each.get("containers") == ["mxfp4_core"]]
    names = [name.strip() for layer in reversed(rooms["layers"]) for name in layer.split("|")]
    return [name for name in names if not name.startswith("_")]


def modules_of(folder: Path) -> set[str]:
    return {
        path.stem
        for path in folder.iterdir()
        if (path.suffix == ".py" and not path.stem.startswith("_")) or (path / "__init__.py").exists()
    }


def test_the_tree_the_reading_order_and_the_layers_are_one() -> None:
    read = [name for rooms, _ in reading_order() for name in rooms]
    assert read == layers()
    assert set(read) == modules_of(CORE)


def test_no_public_name_is_a_module_too() -> None:
    """Importing the module would put it in the place of the public thing."""
    found = [
        f"{room}.{name}"
        for room in ("", *public_names.ROOMS)
        if (CORE / room).is_dir()
        for name in public_names.exported(CORE / room / "__init__.py")
        if name in modules_of(CORE / room)
    ]
    assert found == []


def imports_of(room: str) -> dict[str, set[str]]:
    """Return which modules of a room each of its modules imports, also inside functions and for types alone."""
    prefix = f"mxfp4_core.{room}."
    found: dict[str, set[str]] = {}
    for module in modules_of(CORE / room):
        path = CORE / room / module
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
        names: set[str] = set()
        for node in (
            node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        ):
            if isinstance(node, ast.ImportFrom) and f"{node.module}." == prefix:
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(prefix):
                names.add(str(node.module).removeprefix(prefix).partition(".")[0])
        found[module] = names & modules_of(CORE / room) - {module}
    return found


def in_order(room: str, listed: list[str]) -> list[str]:
    """Return the modules of a room so that each comes after those that it imports, else as they are listed."""
    imports, order = imports_of(room), list[str]()
    rest = sorted(
        imports, key=lambda module: (listed.index(module) if module in listed else len(listed), module)
    )
    while rest:
        free = next((module for module in rest if imports[module] <= set(order)), rest[0])
        rest.remove(free)
        order.append(free)
    return order


ROOMS = [(rooms[0], listed) for rooms, listed in reading_order() if listed]


@pytest.mark.parametrize(("room", "listed"), ROOMS, ids=[room for room, _ in ROOMS])
def test_a_reader_meets_no_module_before_those_that_it_imports(room: str, listed: list[str]) -> None:
    order = in_order(room, listed)
    shown = ", ".join(
        f"`{module}/`" if (CORE / room / module).is_dir() else f"`{module}`" for module in order
    )
    assert listed == order, f"docs/index.md could say for {room}/: {shown}"
