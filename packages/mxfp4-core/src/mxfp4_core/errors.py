"""Every error a user of mxfp4 can meet.

    Mxfp4Error                  catch this to catch everything below
    ├── FormatError             bytes that are no valid MXFP4 (wrong dtype, wrong lengths, unknown layout)
    ├── ShapeError              a dimension that a block, a shard or a kernel cannot take
    ├── NonFiniteError          NaN or infinity in a weight that is to be quantised
    ├── ConfigError             a setting that is unknown, contradicts another one or contradicts the file
    │   └── PatternError        a name pattern that matches nothing, or splits a fused module
    ├── DialectError            a checkpoint whose way of storing MXFP4 is unknown or not as it claims
    ├── CheckpointError         a source file that is damaged, incomplete or hostile
    ├── OutputError             a destination that exists, is read-only, is full, or belongs to another run
    ├── LoadError               ranges that are missing, duplicate or overlapping after a load
    ├── ModelError              a provider of model knowledge that is broken, or two that claim one model
    └── BackendError            no backend accepts the problem, or the named one is missing or broken

Every message has four parts, and each part is also an attribute:

* ``what`` failed (operation and name of the tensor, file or option),
* what was ``seen`` (the offending value),
* the ``rule`` that it breaks,
* the ``fix``: what to do about it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from mxfp4_core._text import printable

_LINE = "\n" + " " * 8
"""How a part goes on in another line; all else that a terminal obeys is escaped, since names come from anyone."""


class Mxfp4Error(Exception):
    """Base of all errors that mxfp4 raises on purpose.

    Args:
        what: what failed, with the name of the tensor, file or option.
        seen: the value that was found there.
        rule: the rule which that value breaks.
        fix: one thing that the reader can do.
    """

    def __init__(self, what: str, *, seen: str, rule: str, fix: str) -> None:
        self.what, self.seen, self.rule, self.fix = what, seen, rule, fix
        parts = (_LINE.join(map(printable, part.split(_LINE))) for part in (what, seen, rule, fix))
        super().__init__("{}\n  seen: {}\n  rule: {}\n  fix:  {}".format(*parts))

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling, and errors cross process borders.
        return _rebuild, (type(self), self.what, self.seen, self.rule, self.fix), self.__dict__


def _rebuild(cls: type[Mxfp4Error], what: str, seen: str, rule: str, fix: str) -> Mxfp4Error:
    return cls(what, seen=seen, rule=rule, fix=fix)


class FormatError(Mxfp4Error):
    """Bytes that are no valid MXFP4."""


class ShapeError(Mxfp4Error):
    """A dimension that a block, a shard or a kernel cannot take."""


class NonFiniteError(Mxfp4Error):
    """NaN or infinity in a weight that is to be quantised.

    Attributes:
        value: the first such value.
        index: where it is, in what the message names; empty where nobody said.
        blocks: how many blocks hold such values, as far as was looked.
    """

    value: float = math.nan
    index: tuple[int, ...] = ()
    blocks: int = 0

    @classmethod
    def at(cls, name: str, value: float, index: Sequence[int], blocks: int) -> NonFiniteError:
        """Return the error about a weight, or a piece of one, of this name."""
        error = cls(
            f"{name} cannot be quantised",
            seen=f"{value} at index {list(index)}, in {blocks} block(s)",
            rule="a weight is finite; the format can only make the whole block NaN",
            fix="repair the checkpoint, or set nonfinite='nan' to make those blocks NaN",
        )
        error.value, error.index, error.blocks = value, tuple(index), blocks
        return error

    def within(self, name: str, place: Callable[..., Sequence[int]] = lambda *index: index) -> NonFiniteError:
        """Return the error about the weight of which this one names a piece; itself where it gives no index.

        Args:
            name: of the weight.
            place: gives the index in the weight for one in the piece; the same by default.
        """
        return self.at(name, self.value, place(*self.index), self.blocks) if self.index else self


class ConfigError(Mxfp4Error):
    """A setting that is unknown, contradicts another one or contradicts the file."""


class PatternError(ConfigError):
    """A name pattern that matches nothing, or that splits a fused module."""


class DialectError(Mxfp4Error):
    """A checkpoint whose way of storing MXFP4 is unknown, or not as it claims."""


class CheckpointError(Mxfp4Error):
    """A source file that is damaged, incomplete or hostile."""


class OutputError(Mxfp4Error):
    """A destination that exists, is read-only, is full, or belongs to another run."""


class LoadError(Mxfp4Error):
    """Ranges that are missing, duplicate or overlapping after a load."""


class ModelError(Mxfp4Error):
    """A model provider that is broken, does not know a model that it was named for, or is one of two that claim it."""


class BackendError(Mxfp4Error):
    """No backend accepts the problem, or the named one is missing or broken."""


def check_type(value: object, kinds: type | tuple[type, ...], what: str) -> None:
    """Refuse an argument that is of another type.

    Raises:
        ConfigError: it is; the error names the types that it may have.
    """
    if not isinstance(value, kinds):
        names = [kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,))]
        raise ConfigError(
            f"{what} cannot be used",
            seen=f"a {type(value).__name__}",
            rule=f"it is of type {' or '.join(names)}",
            fix=f"pass a {names[0]}",
        )


__all__ = [
    "BackendError",
    "CheckpointError",
    "ConfigError",
    "DialectError",
    "FormatError",
    "LoadError",
    "ModelError",
    "Mxfp4Error",
    "NonFiniteError",
    "OutputError",
    "PatternError",
    "ShapeError",
]
