"""How much of a checkpoint is read."""

from __future__ import annotations

from mxfp4_core.checkpoint import Checkpoint


class Counted:
    """A checkpoint that counts what is read of it.

    Args:
        checkpoint: the checkpoint.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.nbytes = 0
        self._checkpoint = checkpoint

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        """Read, and count."""
        self.nbytes += len(buffer)
        self._checkpoint.read_into(name, start, buffer)


__all__ = ["Counted"]
