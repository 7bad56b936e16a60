"""What an environment was made of, noted beside it: it is made again when that is something else."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path


def made_once(folder: Path, recipe: Iterable[str | Path], make: Callable[[], None]) -> bool:
    """Make an environment unless it was made of the same, and return whether it was made now.

    Args:
        folder: of the environment, where the note is.
        recipe: texts, and files whose contents count.
        make: what makes it; where it fails there is no note, and the next call makes it again.
    """
    parts = (each.read_bytes() if isinstance(each, Path) else each.encode() for each in recipe)
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()
    stamp = folder / "recipe.sha256"
    if stamp.exists() and stamp.read_text() == digest:
        return False
    stamp.unlink(missing_ok=True)
    make()
    stamp.write_text(digest)
    return True


__all__ = ["made_once"]
