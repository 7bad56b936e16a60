"""Hold the leaves to the contract: ``python3 tools/check_api.py`` fails where one imports what api.txt does not list.

A leaf is a package under ``packages/`` or ``integration/`` that is not the core. It writes ``from mxfp4_core.room
import Name``, with a name from ``api.txt``; then a module of the core can be split or renamed without a leaf noticing.
The source is read and never imported.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import linked

CORE = "mxfp4_core"
CONTRACT = linked.ROOT / "api.txt"


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the dotted name of everything that a module takes from the core.

    A star and a whole module count as names of their own, which no contract lists, as does a module that is named in
    a string for ``import_module`` or ``__import__``.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and _of_core(node.module or ""):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if _of_core(alias.name))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            values = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            yield from ((node.lineno, str(value)) for value in values if _of_core(str(value)))


def violations(folder: Path, agreed: frozenset[str]) -> Iterator[str]:
    """Yield one sentence for each import below a folder that the contract does not cover: its place, what to do."""
    for path in sorted(folder.rglob("*.py")):
        for line, name in imported(ast.parse(path.read_text(encoding="utf-8"))):
            if name not in agreed:
                yield f"{path}:{line}: imports {name}, which is not public; {_advice(name, agreed)}"


def leaves() -> list[Path]:
    """Return the source folders of all packages but the core."""
    return [member / "src" for member in linked.members() if member.name != CORE.replace("_", "-")]


def _of_core(module: str) -> bool:
    return module == CORE or module.startswith(f"{CORE}.")


def _advice(name: str, agreed: frozenset[str]) -> str:
    last = name.rsplit(".", 1)[-1]
    homes = sorted(public.rsplit(".", 1)[0] for public in agreed if public.rsplit(".", 1)[1] == last)
    if homes:
        return f"write `from {homes[-1]} import {last}`"
    return f"import names that {CONTRACT.name} lists from their room, or make it public there"


def main() -> int:
    """Print every violation and return the exit code."""
    agreed = frozenset(CONTRACT.read_text(encoding="utf-8").split())
    found = [text for folder in leaves() for text in violations(folder, agreed)]
    print("\n".join(found) or f"the leaves import from the core only what {CONTRACT.name} lists")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
