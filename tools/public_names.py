"""List every public name of the workspace: ``python3 tools/public_names.py > api.txt``.

A name is public when a module or package lists it in ``__all__``. The list is read from the source without
importing it, and committed as ``api.txt``: a change of the public face then shows as a line of the diff,
and a test fails until somebody meant it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from linked import members


def public_names() -> Iterator[str]:
    """Yield ``module.name`` for each name in an ``__all__``, in the order of the source tree."""
    for member in members():
        for path in sorted((member / "src").rglob("*.py")):
            parts = path.relative_to(member / "src").with_suffix("").parts
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.Assign) and any(
                    isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets
                ):
                    yield from (f"{module}.{name}" for name in sorted(ast.literal_eval(node.value)))


if __name__ == "__main__":
    print("\n".join(public_names()))
