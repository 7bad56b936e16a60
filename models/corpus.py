"""The text that the two small models learn from, and the text that they never see.

Everything comes from one source under one licence: the ``Lib`` folder of a CPython release (PSF-2.0), which
must be read by a Python of its own version or a near one. Three kinds of document are made of it:

* ``topic:<name>``  a chapter of the language reference, as ``help("topics")`` shows it,
* ``help:<path>``   the signatures and docstrings of a module, as ``help(module)`` shows them,
* ``<path>``        the source of a module.

`split` holds out the topics and modules named below, with the tests and the docstrings of those modules, and
cuts every paragraph out of the training text that also stands in the held-out text: chapters of the reference
overlap.
"""

from __future__ import annotations

import ast
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

END_OF_TEXT = "<|endoftext|>"
HELD_OUT_TOPICS = ("calls", "comparisons", "formatstrings", "import", "typesmapping")
HELD_OUT_MODULES = ("fractions", "graphlib", "heapq", "queue", "shelve", "textwrap")

# Tables rather than text: a language model of this size learns nothing from them.
SKIPPED = (
    "site-packages",
    "lib-dynload",
    "encodings",
    "__pycache__",
    "html/entities.py",
    "pydoc_data",
    "lib2to3",
)
REPEATS = {"topic": 4, "help": 2, "source": 1}
LONGEST_SOURCE = 160_000
SHORTEST_PARAGRAPH = 60


@dataclass(frozen=True)
class Document:
    """A text with the name that `split` decides by."""

    name: str
    text: str

    @property
    def kind(self) -> str:
        """Say which of the three kinds this is: topic, help or source."""
        return self.name.partition(":")[0] if ":" in self.name else "source"

    @property
    def held_out(self) -> bool:
        """Tell whether the models must never see this document."""
        stem = self.name.partition(":")[2] or self.name
        if self.kind == "topic":
            return stem in HELD_OUT_TOPICS
        parts = Path(stem).with_suffix("").parts
        return any(part.removeprefix("test_") in HELD_OUT_MODULES for part in parts)


def documents(stdlib: Path) -> Iterator[Document]:
    """Yield every document of a CPython ``Lib`` folder, in an order that depends on names alone.

    Args:
        stdlib: the folder that holds ``textwrap.py`` and ``pydoc_data/topics.py``.
    """
    for name, text in sorted(_topics(stdlib / "pydoc_data" / "topics.py").items()):
        yield Document(f"topic:{name}", text)
    for path in sorted(stdlib.rglob("*.py")):
        relative = path.relative_to(stdlib).as_posix()
        if any(relative.startswith(skipped) or f"/{skipped}" in relative for skipped in SKIPPED):
            continue
        try:
            with tokenize.open(path) as file:
                source = file.read()
        except (SyntaxError, UnicodeDecodeError):  # files that test what Python makes of a wrong encoding
            continue
        if len(source) <= LONGEST_SOURCE:
            yield Document(relative, source)
        # Tests are not parsed: some hold errors on purpose, and others the syntax of a later Python.
        if not relative.startswith("test/") and (text := _help(relative, ast.parse(source))):
            yield Document(f"help:{relative}", text)


def split(docs: Iterable[Document]) -> tuple[list[Document], list[Document]]:
    """Divide documents into training and held-out ones that share no paragraph.

    Returns:
        The training documents without the paragraphs (of 60 characters or more) that a held-out document also
        has, and the held-out documents: topics and sources only, since the sources hold the docstrings already.
    """
    every = list(docs)
    held_out = [doc for doc in every if doc.held_out]
    seen = {paragraph.strip() for doc in held_out for paragraph in _paragraphs(doc.text)}
    train = [replace(doc, text=_without(doc.text, seen)) for doc in every if not doc.held_out]
    return train, [doc for doc in held_out if doc.kind != "help" and not doc.name.startswith("test/")]


def join(docs: Iterable[Document]) -> str:
    """Join texts with the end-of-text token between them, one line of its own."""
    return f"\n{END_OF_TEXT}\n".join(doc.text.strip("\n") for doc in docs) + "\n"


def _topics(path: Path) -> dict[str, str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = next(node for node in tree.body if isinstance(node, ast.Assign))
    topics: dict[str, str] = ast.literal_eval(found.value)
    return topics


def _help(name: str, tree: ast.Module) -> str:
    blocks = [
        f"Help on module {Path(name).with_suffix('').as_posix().replace('/', '.')}:",
        ast.get_docstring(tree),
    ]
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.name.startswith("_") or not (doc := ast.get_docstring(node)):
            continue
        head = (
            f"class {node.name}"
            if isinstance(node, ast.ClassDef)
            else f"{node.name}({ast.unparse(node.args)})"
        )
        blocks.append(head + "\n" + "\n".join(f"    {line}".rstrip() for line in doc.splitlines()))
    return "\n\n".join(block for block in blocks if block) if len(blocks) > 2 else ""


def _paragraphs(text: str) -> list[str]:
    return [part for part in text.split("\n\n") if len(part.strip()) >= SHORTEST_PARAGRAPH]


def _without(text: str, seen: set[str]) -> str:
    return "\n\n".join(part for part in text.split("\n\n") if part.strip() not in seen)
