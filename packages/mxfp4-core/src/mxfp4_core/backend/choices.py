"""Which kernel of a backend runs for how many tokens: the table that `mxfp4 doctor` prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Choice:
    """One row of a table of choices: the kernel that serves a problem from ``first`` to ``last`` tokens.

    Attributes:
        first: smallest m.
        last: largest m; of the last row, how far the table looks.
        kernel: its name.
        settings: what else was chosen, such as the size of a tile. Rows may have different ones.
    """

    first: int
    last: int
    kernel: str
    settings: Mapping[str, int | str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """Return plain data for JSON."""
        return {
            "first": self.first,
            "last": self.last,
            "kernel": self.kernel,
            "settings": dict(self.settings),
        }


def tabulate(choose: Callable[[int], tuple[str, Mapping[str, int | str]]], most: int) -> tuple[Choice, ...]:
    """Build a table of choices by asking the function that chooses, so that the table cannot differ from it.

    Args:
        choose: from m to the kernel's name and settings.
        most: it is asked for 1 to ``most`` tokens.
    """
    rows: list[Choice] = []
    for m in range(1, most + 1):
        kernel, settings = choose(m)
        if rows and (rows[-1].kernel, rows[-1].settings) == (kernel, settings):
            rows[-1] = replace(rows[-1], last=m)
        else:
            rows.append(Choice(m, m, kernel, settings))
    return tuple(rows)


__all__ = ["Choice", "tabulate"]
