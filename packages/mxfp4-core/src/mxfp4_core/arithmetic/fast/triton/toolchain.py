"""An error with advice where Triton lacks what it compiles with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mxfp4_core.errors import BackendError


@contextmanager
def compiling(what: str, instead: str) -> Iterator[None]:
    """Turn Triton's complaint about a missing C compiler into an error of ours; other errors pass.

    Args:
        what: what is launched, for the message.
        instead: what does the same without Triton.

    Raises:
        BackendError: Triton finds no C compiler. It builds its launcher with one, at the first launch on a machine.
    """
    try:
        yield
    except RuntimeError as error:
        if "C compiler" not in str(error):
            raise
        raise BackendError(
            what,
            seen=f"Triton: {error}",
            rule="Triton builds the launcher of its kernels with a C compiler, once on each machine",
            fix=f"install gcc or clang, or set CC to one; {instead}",
        ) from error


__all__ = ["compiling"]
