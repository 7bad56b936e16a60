"""What a trial of one type found, and how it is kept."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

WORKS, REFUSED, NOTHING, NOT_BUILT, FAULT = "works", "refused", "nothing to quantise", "not built", "FAULT"
STATUSES: Final = (WORKS, REFUSED, NOTHING, NOT_BUILT, FAULT)
"""How a trial can end: without an option; with the one pattern that the error printed; without a linear layer; without
a model; or with something that must not be."""


@dataclass
class Row:
    """The result for one type.

    Attributes:
        name: the type.
        task: how it is loaded, a key of `catalogue.TASKS`.
        model: name of the class.
        status: one of `STATUSES`.
        step: where a fault was found.
        message: why it was not built, refused or faulty.
        pattern: what had to be ignored.
        weights: quantised weights of the model.
        share: of the numbers in matrices (embeddings and heads aside), how many become MXFP4.
        forward: how it was run; why not, where it was not.
        ran: quantised modules that this reached, and all of them, as ``"12/14"``.
        seconds: duration.
        where: machine, versions and date.
    """

    name: str
    task: str
    model: str = ""
    status: str = FAULT
    step: str = ""
    message: str = ""
    pattern: str = ""
    weights: int = 0
    share: float = 0.0
    forward: str = ""
    ran: str = ""
    seconds: float = 0.0
    where: str = ""

    @property
    def line(self) -> str:
        """One line for a terminal."""
        told = [self.name.ljust(28), self.status.ljust(9)]
        if self.status in (WORKS, REFUSED):
            told += [f"{self.weights} weights", f"{self.share:.0%}", f"ran {self.ran}", self.pattern]
        elif self.status != NOTHING:
            told += [self.step, " ".join(self.message.split())[:400]]
        if self.forward and self.forward != "equal":
            told.append(f"forward: {self.forward[:160]}")
        return "  ".join(each for each in told if each)


class Fault(Exception):
    """Something that must not be.

    Args:
        step: where.
        message: what.
    """

    def __init__(self, step: str, message: str) -> None:
        super().__init__(message)
        self.step, self.message = step, message


def append(path: Path, row: Row) -> None:
    """Add a row to a file of JSON lines."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(row)) + "\n")


def read(path: Path) -> dict[str, Row]:
    """Return the rows of a file by type, the last of each."""
    if not path.exists():
        return {}
    found = (Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line)
    return {row.name: row for row in found}


__all__ = ["FAULT", "NOTHING", "NOT_BUILT", "REFUSED", "STATUSES", "WORKS", "Fault", "Row", "append", "read"]
