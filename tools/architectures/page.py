"""The page about all types, from the rows of a sweep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from architectures.catalogue import TASKS
from architectures.judge import LIMIT
from architectures.rows import FAULT, NOT_BUILT, NOTHING, REFUSED, STATUSES, WORKS, Row

_HEAD = """# Architectures

Every model type of transformers, each as a tiny model with random weights, through all that a person does with it. The
page is written by the sweep itself:

```sh
{command}
```

Of {types} types that transformers maps for {tasks},
{built} could be built here, and {linear} of these have a linear layer to quantise. **{works} of the {linear}
({percent}) work without an option, {refused} are refused with a pattern that works, {faults} have a fault.**
The forward pass was compared for {equal}; for {rest} the sweep has
no input that their unquantised self takes, and they were compared without it.

| what is done | what must hold |
|---|---|
{steps}

The limit: both models multiply the same numbers in FP32 and differ in the order of additions alone. An addition rounds
by 2^-24, a dot product of 1024 terms so by some 2e-6 of its size; a wrong block of 32 numbers changes an output by
1e-2.

Rows of the weights differ in size up to eightfold, so that a row in another's place shows. Sizes are multiples of 32
and not equal; layers are few, but every kind of them that a configuration has is there. `family_defaults` are off, so
that what they keep, such as vision towers, is tried as MXFP4, too.
"""

_STEPS = (
    (
        "`from_pretrained` with a `quantization_config`, from a BF16 folder",
        """codes and scales are those of `quantize`, all
    else is unchanged, bit for bit; no embedding and no output head is MXFP4""",
    ),
    (
        "a forward pass, in FP32 and in BF16",
        f"""in FP32 equal to the unquantised model with the values of MXFP4, to
    {LIMIT:.0e} of the largest number of each output; in BF16 finite where the unquantised model is. A linear
    that the pass does not reach is compared by itself, experts that it does not reach are not""",
    ),
    (
        "`save_pretrained`, and load",
        "the same bits and the same output; `mxfp4 verify --source` finds nothing",
    ),
    ("`mxfp4 plan`", "decides as the load did"),
    ("`mxfp4 quantize`, `mxfp4 verify`, and load", "the same bits as those of the load that quantised"),
    ("the line that `mxfp4 quantize` prints at its end", "loads the folder, with the class of the source"),
    (
        "`ignore` with a module's name in the model and in the file, plain, with a wildcard and as an expression",
        "plan and load keep what is below it, and nothing else",
    ),
    ("`dequantize()` of the saved model", "the values of MXFP4 in the dtype of the load"),
)

_COLUMNS = ("type", "class", "weights", "in MXFP4", "reached", "forward")


def write(path: Path, rows: Iterable[Row], command: str, note: str = "") -> None:
    """Write the page.

    Args:
        path: of the page.
        rows: one for each type.
        command: that made them.
        note: what a reader has to know of how they came about, such as what was run again.
    """
    found = sorted(rows, key=lambda row: row.name)
    sections = [_head(found, command, note), _by_task(found), _apart(found), _all(found)]
    path.write_text("\n".join(sections), encoding="utf-8")


def _head(rows: Sequence[Row], command: str, note: str) -> str:
    counts = Counter(row.status for row in rows)
    loaded = [row for row in rows if row.status in (WORKS, REFUSED)]
    equal = sum(row.forward.startswith("equal") for row in loaded)
    share = counts[WORKS] / max(1, len(loaded) + counts[FAULT])
    text = _HEAD.format(
        command=command,
        types=len(rows),
        tasks=", ".join(TASKS),
        built=len(rows) - counts[NOT_BUILT],
        linear=len(loaded) + counts[FAULT],
        works=counts[WORKS],
        percent=f"{share:.1%}",
        refused=counts[REFUSED],
        faults=counts[FAULT],
        equal=equal,
        rest=len(loaded) - equal,
        steps="\n".join(f"| {done} | {_cell(holds, 600)} |" for done, holds in _STEPS),
    )
    machines = Counter(row.where for row in rows)
    measured = "; ".join(f"{where} ({number} types)" for where, number in machines.items())
    return "\n".join([text, f"Measured with {measured}. {note}".strip(), ""])


def _by_task(rows: Sequence[Row]) -> str:
    lines = [f"| task | {' | '.join(STATUSES)} |", f"|---|{'--:|' * len(STATUSES)}"]
    for task, (auto_class, _) in TASKS.items():
        counts = Counter(row.status for row in rows if row.task == task)
        numbers = " | ".join(str(counts[status] or "") for status in STATUSES)
        lines.append(f"| {task} (`{auto_class}`) | {numbers} |")
    return "\n".join([*lines, ""])


def _apart(rows: Sequence[Row]) -> str:
    """List everything that does not work without an option, with the reason."""
    parts: list[str] = []
    refused = [row for row in rows if row.status == REFUSED]
    if refused:
        parts += [
            "## Refused before a weight is read",
            "",
            "The error prints the pattern, and every command and the load take it as it is printed.",
            "",
            "| type | `ignore` | why |",
            "|---|---|---|",
            *(f"| {row.name} | `{_cell(row.pattern)}` | {_cell(_reason(row.message))} |" for row in refused),
            "",
        ]
    for status, title in (
        (FAULT, "Faults"),
        (NOT_BUILT, "Not built"),
    ):
        some = [row for row in rows if row.status == status]
        if some:
            parts += [f"## {title}", "", "| type | why |", "|---|---|"]
            told = (f"{row.step}: {row.message}" if row.step else row.message for row in some)
            parts += [f"| {row.name} | {_cell(text)} |" for row, text in zip(some, told, strict=True)]
            parts.append("")
    empty = [row.name for row in rows if row.status == NOTHING]
    if empty:
        parts += ["## Nothing to quantise", "", f"Convolutions and an output head: {', '.join(empty)}.", ""]
    return "\n".join(parts)


def _all(rows: Sequence[Row]) -> str:
    lines = [
        "## All that were built",
        "",
        "In MXFP4: share of the numbers in matrices, embeddings and convolutions aside. Reached: quantised modules "
        "that the forward pass reached; other linears are compared by themselves, other experts are not.",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "|---|---|--:|--:|--:|---|",
    ]
    for row in rows:
        if row.status in (WORKS, REFUSED):
            share = f"{row.share:.0%}"
            lines.append(
                f"| {row.name} | {row.model} | {row.weights} | {share} | {row.ran} | {_cell(row.forward, 120)} |"
            )
    return "\n".join([*lines, ""])


def _reason(message: str) -> str:
    return message.partition(" seen: ")[2].partition(" fix: ")[0] or message


def _cell(text: str, most: int = 240) -> str:
    text = " ".join(text.split())
    text = text if len(text) <= most else f"{text[:most]}…"
    return text.replace("|", "\\|").replace("<", "&lt;")


__all__ = ["write"]
