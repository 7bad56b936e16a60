"""Which dialect is written where none is asked for: one that others load without our packages, where it can say all.

And where they can run what they load: transformers takes the weights of linears away with this dialect, so code of a
model that reads one itself fails in its first call.
"""

from __future__ import annotations

from collections.abc import Iterable

from mxfp4_core.config.known import NATIVE_NAME
from mxfp4_core.dialects.base import AUTO_CLASS, Description, Dialect
from mxfp4_core.dialects.entry import Entry
from mxfp4_core.dialects.registry import get
from mxfp4_core.errors import Mxfp4Error

AUTO = "auto"
"""What a config says to have the dialect chosen."""

PREFERRED = "compressed-tensors"


def default_for(description: Description) -> tuple[Dialect, str]:
    """Choose the dialect for a checkpoint: compressed-tensors where it says everything and models run, else our own.

    Args:
        description: what is to be written.

    Returns:
        The dialect, and why it was chosen.

    Raises:
        ConfigError: the package of one of them is broken.
    """
    dialect, native = get(PREFERRED), get(NATIVE_NAME)
    if isinstance(description.model.get("_class_name"), str):
        return native, "diffusers loads it, with mxfp4_diffusers, and reads no other dialect by itself"
    try:
        for entry in description.entries:
            dialect.check(entry)
        for each in description.beside:
            dialect.write_beside(each)
        dialect.documents(description)
    except Mxfp4Error as error:
        return native, f"{error.what}: {error.seen}; {native.readers} loads this one"
    read = read_by_model(description.entries)
    if read is not None:
        why = (
            f"{read.reader} reads {read.weight} itself, and {PREFERRED} leaves linears without a weight there"
        )
        return native, f"{why}; {native.readers} loads this one"
    return dialect, f"it can say everything; it loads in {dialect.readers}"


def read_by_model(entries: Iterable[Entry]) -> Entry | None:
    """Return a weight that code of the model reads itself, which others that load a quantised folder may not have."""
    return next((entry for entry in entries if entry.reader), None)


def named_for(dialect: Dialect, entries: Iterable[Entry]) -> str:
    """Say why a dialect is written that was asked for, and what that means for a model that reads its own weights.

    Args:
        dialect: the one that was asked for.
        entries: the weights.
    """
    return "; ".join(["the config names it", *filter(None, [warning_of(dialect, entries)])])


def warning_of(dialect: Dialect, entries: Iterable[Entry]) -> str:
    """Say what a dialect means for a model that reads its own weights; empty where there is nothing to say."""
    read = None if dialect.name == NATIVE_NAME else read_by_model(entries)
    if read is None:
        return ""
    return (
        f"{read.reader} reads {read.weight} itself, and loaders of that dialect may leave linears without a weight: "
        "mxfp4_transformers does not"
    )


def by_adapter(path: str, model: str = AUTO_CLASS) -> str:
    """Return the line that loads a checkpoint of any dialect through the adapter of this project.

    Its linears have a ``weight``, which the code of T5, Mamba and others asks for.

    Args:
        path: the folder.
        model: class of transformers that loads the model.
    """
    if model == AUTO_CLASS:  # what it takes by itself
        return f"import mxfp4_transformers; mxfp4_transformers.from_pretrained({path!r})"
    call = f"mxfp4_transformers.from_pretrained({path!r}, auto_class=transformers.{model})"
    return f"import mxfp4_transformers, transformers; {call}"


__all__ = ["AUTO", "PREFERRED", "by_adapter", "default_for", "named_for", "read_by_model", "warning_of"]
