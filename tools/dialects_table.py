"""Make the table of docs/dialects.md: what each dialect recognises, reads and writes, and who else read the result.

    python tools/linked.py tools/dialects_table.py            # the table, from what the code does
    python tools/linked.py tools/dialects_table.py --clients  # load results in the clients that are installed, too

The first is run by a test, so that the page says what is. The second needs transformers, and finds what it finds of
compressed-tensors, torchao, auto-round, amd-quark, gguf and xllamacpp (`clients`), and adds to
docs/dialects-clients.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from fuzzing import material

from mxfp4_core import dialects
from mxfp4_core.checkpoint import open_checkpoint
from mxfp4_core.dialects import Source
from mxfp4_core.dialects.narrow import narrow_kind, read_narrow
from mxfp4_core.errors import Mxfp4Error
from mxfp4_core.jobs import convert_checkpoint

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE, NOTES = DOCS / "dialects.md", DOCS / "dialects-clients.json"
BEGIN, END = "<!-- made by tools/dialects_table.py -->", "<!-- end -->"
HEAD = ("dialect", "recognised by", "read", "written", "loads in", "checked with")


def rows(folder: Path) -> list[tuple[str, ...]]:
    """Write a checkpoint of each dialect, show it to all, read it, and write it again."""
    made = material.quantised(folder / "made")
    notes = json.loads(NOTES.read_text()) if NOTES.exists() else {}
    found = []
    for name in (*material.DIALECTS, *material.OTHERS):
        checkpoint = open_checkpoint(made[name])
        source = Source.of(checkpoint)
        if kind := narrow_kind(source) if name in ("fp8", "nvfp4") else None:
            reason, count = f"its description: {kind}", len(read_narrow(source, kind).beside)
            readers, read = (
                "vLLM, SGLang, transformers",
                f"values of {count} weights; quantised anew, which rounds",
            )
        else:
            dialect = dialects.get(name)
            reason, contents = dialect.recognise(source) or "", dialect.read(source)
            readers = dialect.readers
            read = (
                f"{len(contents.entries)} weights, bit for bit"
                if contents.entries
                else "values; quantised anew"
            )
        found.append(
            (name, reason, read, written(made, name, folder / name), readers, ", ".join(notes.get(name, [])))
        )
    return found


def written(made: Mapping[str, Path], name: str, target: Path) -> str:
    """Convert to it, and say whether that is exact, or why it is refused."""
    stacked = {"gpt-oss": "native-stacked", "gpt-oss-original": "native-stacked", "deepseek-v4": "native-v4"}
    source = made["mxfp4-core"].parent / stacked.get(name, "mxfp4-core")
    mode = "mxfp4" if name in ("modelopt", "torchao", "torchao-plain") else None
    try:
        convert_checkpoint(source, target, name, activation=mode)
    except Mxfp4Error as error:
        return f"refused: {error.rule}"
    return "where exact, or with `--lossy`" if name in ("fp8", "nvfp4") else "bit for bit"


def table(folder: Path) -> str:
    """Return the table as Markdown."""
    lines = [HEAD, ("--",) * len(HEAD), *((f"`{row[0]}`", *row[1:]) for row in rows(folder))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def page(text: str, made: str) -> str:
    """Return the page with the table between its marks."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--clients", action="store_true", help="load results in the clients that are installed"
    )
    with tempfile.TemporaryDirectory() as room:
        if parser.parse_args().clients:
            warnings.simplefilter("ignore")  # the vendors' own
            notes = json.loads(NOTES.read_text()) if NOTES.exists() else {}
            from clients import llama, packages

            folder = Path(room) / "clients"
            for name, told in (*packages.check(folder), *llama.check(folder / "llama.cpp")):
                notes[name] = sorted({*notes.get(name, []), told})
            NOTES.write_text(json.dumps(notes, indent=1, sort_keys=True) + "\n")
        PAGE.write_text(page(PAGE.read_text(), table(Path(room) / "table")))


if __name__ == "__main__":
    main()
