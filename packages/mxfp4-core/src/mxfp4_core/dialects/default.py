"""Which dialect is written where none is asked for: one that others load without our packages, where it can say all.

And where they can run what they load: transformers takes the weights of linears away with this dialect, so code of a
model that reads one itself fails in its first call.
"""

from __future__ import annotations

from mxfp4_core.config.known import NATIVE_NAME
from mxfp4_core.dialects.base import Description, Dialect
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
    read = next((entry for entry in description.entries if entry.reader), None)
    if read is not None:
        why = (
            f"{read.reader} reads {read.weight} itself, and {PREFERRED} leaves linears without a weight there"
        )
        return native, f"{why}; {native.readers} loads this one"
    return dialect, f"it can say everything; it loads in {dialect.readers}"


__all__ = ["AUTO", "PREFERRED", "default_for"]
