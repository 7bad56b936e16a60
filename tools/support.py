"""Write docs/support.md: for each operator, architecture and provider, how it was proven.

    python3 tools/support.py            # write the page
    python3 tools/support.py --check    # fail where it would change

A claim stands next to its proof: ``packages/*/tests/proofs.toml`` has a table ``[[proof]]`` for each, with the test
that does it, and this script refuses a test that does not exist. What no row says has not been proven. Adapters of
engines say theirs in ``integration/*/tests/proofs.toml``.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "support.md"

KINDS = {
    "engine": "the released engine ran it on a CPU, with models of this repository",
    "real classes": "classes and loaders of the released engine ran it on a CPU, without its server",
    "chip": "ran on that chip",
    "vendor source on another chip": "the vendor's own kernel source, compiled for and run on another chip",
    "vendor source in the interpreter": "the vendor's own kernel source, run by Triton's interpreter on a CPU",
    "vendor machine code in an emulator": "the vendor's machine code for that chip, each instruction by an emulator",
    "own source on another chip": "our kernel source, compiled for and run on another chip",
    "own source in the interpreter": "our kernel source, run by Triton's interpreter on a CPU",
    "compiled only": "compiled for that chip, and what the code contains was looked at; not run",
    "emulation": "the whole conformance suite, against a strict stand-in of the vendor's library on a CPU",
    "contract": "what is called exists in the vendor's package, with the arguments that are passed",
    "reading": "read in the vendor's source or documentation, and nothing else",
}
"""How something was proven, strongest first."""

HEAD = """\
# What is proven, and how

*Made by `python3 tools/support.py` from `packages/*/tests/proofs.toml` and `integration/*/tests/proofs.toml`, where
each claim names its test.*

No AMD chip and no Ascend chip was at hand when this project was written. So for each operator, architecture and
provider this page says what stands in for one. What no row says has not been proven.

"""


class Unsound(Exception):
    """A row that is incomplete, or that names a test that does not exist."""


ENGINES_HEAD = """\
## Engines

What an adapter does in an engine, in which releases, and how that is known. A test with a real engine runs in
`nox -s engines`, where nothing is skipped.

| engine | releases | feature | proven by |
|---|---|---|---|"""


@dataclass(frozen=True)
class Row:
    """One feature of an adapter in an engine.

    Attributes:
        engine: its name.
        releases: which ones the proof is about.
        feature: what works.
        kind: one of ``KINDS``.
        test: ``file.py::function`` or ``file.py``, from the root of the repository.
        note: what else a reader should know.
    """

    engine: str
    releases: str
    feature: str
    kind: str
    test: str
    note: str = ""


@dataclass(frozen=True)
class Proof:
    """One row.

    Attributes:
        backend: name of the backend.
        op: operator and what is special about it: ``linear W4A4``.
        arch: of the device that the claim is about.
        provider: whose kernel.
        kind: one of ``KINDS``.
        test: ``file.py::function`` or ``file.py::Class`` below the package's ``tests``, or below ``bench`` or
            ``packages`` if it begins so.
        note: what else a reader should know.
    """

    backend: str
    op: str
    arch: str
    provider: str
    kind: str
    test: str
    note: str = ""


def read(folder: Path) -> list[Proof]:
    """Read the rows of one package and look for their tests.

    Args:
        folder: of the package.

    Raises:
        Unsound: a row is incomplete or names a test that does not exist.
    """
    path = folder / "tests" / "proofs.toml"
    found = tomllib.loads(path.read_text(encoding="utf-8"))
    proofs = []
    for row in found["proof"]:
        for arch in row.pop("archs", [row.pop("arch", "")]):
            proofs.append(_checked(Proof(found["backend"], arch=arch, **row), folder))
    return proofs


def read_engine(path: Path) -> list[Row]:
    """Read the rows of one adapter and look for their tests.

    Args:
        path: ``integration/*/tests/proofs.toml``: ``engine``, and a table ``[[proof]]`` for each feature.

    Raises:
        Unsound: a row is incomplete or names a test that does not exist.
    """
    found = tomllib.loads(path.read_text(encoding="utf-8"))
    rows = [Row(found["engine"], **row) for row in found["proof"]]
    for row in rows:
        if row.kind not in KINDS or not (row.feature and row.releases):
            raise Unsound(f"{row}: kind is one of {', '.join(KINDS)}; feature and releases are not empty")
        _look_for(row.test, ROOT, f"{row.engine}, {row.feature}")
    return rows


def _checked(proof: Proof, folder: Path) -> Proof:
    if proof.kind not in KINDS or not (proof.arch and proof.op and proof.provider):
        raise Unsound(f"{proof}: kind is one of {', '.join(KINDS)}; op, arch and provider are not empty")
    here = ROOT if proof.test.startswith(("bench/", "packages/")) else folder / "tests"
    _look_for(proof.test, here, f"{proof.backend}, {proof.op}")
    return proof


def _look_for(test: str, folder: Path, what: str) -> None:
    file, _, name = test.partition("::")
    path = folder / file
    if not path.is_file():
        raise Unsound(f"{what}: no file {path}")
    body = ast.parse(path.read_text(encoding="utf-8")).body
    names = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    if name and name not in names:
        raise Unsound(f"{what}: no {name} in {path}")


def page(proofs: list[Proof], rows: Sequence[Row] = ()) -> str:
    """Return the page: a table for each backend, rows in the order of the strongest proof; and one for engines."""
    order = list(KINDS)
    lines = [HEAD]
    for backend in dict.fromkeys(proof.backend for proof in proofs):
        lines += [f"## {backend}\n", "| op | architecture | provider | proven by |", "|---|---|---|---|"]
        cells: dict[tuple[str, str, str], list[Proof]] = {}
        for proof in proofs:
            if proof.backend == backend:
                cells.setdefault((proof.op, proof.arch, proof.provider), []).append(proof)
        for key, same in cells.items():
            said = [
                f"**{proof.kind}**{f' ({proof.note})' if proof.note else ''}: `{proof.test}`"
                for proof in sorted(same, key=lambda one: order.index(one.kind))
            ]
            lines.append(f"| {' | '.join(key)} | {'<br>'.join(said)} |")
        lines.append("")
    if rows:
        lines.append(ENGINES_HEAD)
        lines += [
            f"| {row.engine} | {row.releases} | {row.feature} | **{row.kind}**"
            f"{f' ({row.note})' if row.note else ''}: `{row.test}` |"
            for row in rows
        ]
        lines.append("")
    lines += ["## The words\n", "| word | means |", "|---|---|"]
    lines += [f"| {kind} | {means} |" for kind, means in KINDS.items()]
    return "\n".join(lines) + "\n"


def made() -> str:
    """Return the page as the declarations of all packages make it."""
    folders = [path.parents[1] for path in sorted(ROOT.glob("packages/*/tests/proofs.toml"))]
    engines = sorted(ROOT.glob("integration/*/tests/proofs.toml"))
    return page(
        [proof for folder in folders for proof in read(folder)],
        [row for path in engines for row in read_engine(path)],
    )


if __name__ == "__main__":
    _text = made()
    if "--check" not in sys.argv:
        PAGE.write_text(_text, encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != _text:
        sys.exit("docs/support.md is stale: python3 tools/support.py")
