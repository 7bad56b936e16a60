"""Our log lines among those of vLLM, which shows its own logger only."""

from __future__ import annotations

import logging


def join(names: tuple[str, ...] = ("mxfp4_core", "mxfp4_vllm")) -> None:
    """Make vLLM's logger the parent of ours, so that its level and its handlers are ours, whenever it sets them up.

    Args:
        names: of our loggers.
    """
    for name in names:
        logging.getLogger(name).parent = logging.getLogger("vllm")


__all__ = ["join"]
