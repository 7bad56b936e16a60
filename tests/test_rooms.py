"""The rooms of the core: the tree, the reading order in docs/index.md and the linter's layers say the same."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import public_names

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


def test_every_module_of_the_reading_order_is_in_its_room() -> None:
    absent = [
        f"{rooms[0]}/{module}"
        for rooms, modules in reading_order()
        for module in modules
        if module not in modules_of(CORE / rooms[0])
    ]
    assert absent == []


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
