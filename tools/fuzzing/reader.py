"""What is fed: good inputs, what reads a mutated one, and the file that it stands in."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fuzzing.mutate import changed


class Wrong(Exception):
    """What was read is not what is there."""


@dataclass(frozen=True)
class Reader:
    """What is fed.

    Attributes:
        seeds: good inputs.
        read: reads one, given the number of the seed that it comes from; raises our errors only.
        mend: what is done to a mutated input, so that it gets past a check of sums.
    """

    seeds: tuple[bytes, ...]
    read: Callable[[int, bytes], None]
    mend: Callable[[random.Random, bytes], bytes] | None = None

    def make(self, rng: random.Random) -> tuple[int, bytes]:
        """Return the number of a seed, and a mutation of it."""
        number = rng.randrange(len(self.seeds))
        data = changed(rng, self.seeds[number], rng.choice(self.seeds))
        return number, self.mend(rng, data) if self.mend else data


class File:
    """A file that is written again for each input."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path

    def put(self, data: bytes) -> Path:
        """Write it and return its path."""
        with open(self.path, "wb", buffering=0) as file:
            file.write(data)
        return self.path


def with_length(text: bytes) -> bytes:
    """Put the length of a header before it."""
    return len(text).to_bytes(8, "little") + text


__all__ = ["File", "Reader", "Wrong", "with_length"]
