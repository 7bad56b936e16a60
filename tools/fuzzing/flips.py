"""Flip bits of a result, one at a time: `verify` finds each, in whatever file it is."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from mxfp4_core.errors import Mxfp4Error
from mxfp4_core.jobs import verify_checkpoint


@dataclass
class Flips:
    """What became of the flips in one result.

    Attributes:
        name: its dialect.
        bits: how many it has.
        flips: how many were tried.
        by_file: how many of them in each file.
        missed: file, byte and bit of what was not found.
        seconds: for all.
    """

    name: str
    bits: int = 0
    flips: int = 0
    by_file: Counter[str] = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {**self.__dict__, "by_file": dict(self.by_file)}


def flip(name: str, folder: Path, *, most: int, seed: int, part: tuple[int, int] = (0, 1)) -> Flips:
    """Flip every bit of every file, or a random ``most`` of all bits.

    Args:
        name: for the table.
        folder: a result; it is as before afterwards.
        most: of the bits of this part.
        seed: of the choice.
        part: I of N: bits whose number leaves the rest I when it is divided by N.
    """
    outcome, started = Flips(name), time.perf_counter()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    bits = [(path, number) for path in files for number in range(8 * path.stat().st_size)]
    outcome.bits = len(bits)
    bits = bits[part[0] :: part[1]]
    if most < len(bits):
        bits = sorted(random.Random(seed).sample(bits, most))
    for path, number in bits:
        byte, bit = divmod(number, 8)
        raw = path.read_bytes()
        path.write_bytes(raw[:byte] + bytes([raw[byte] ^ 1 << bit]) + raw[byte + 1 :])
        where = path.relative_to(folder).as_posix()
        try:
            if verify_checkpoint(folder, models="none").ok:
                outcome.missed.append(f"{where}, byte {byte}, bit {bit}")
        except Mxfp4Error:
            pass  # found
        finally:
            path.write_bytes(raw)
        outcome.flips += 1
        outcome.by_file[where] += 1
    outcome.seconds = time.perf_counter() - started
    return outcome


__all__ = ["Flips", "flip"]
