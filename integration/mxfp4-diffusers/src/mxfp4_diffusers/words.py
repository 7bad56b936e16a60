"""Say in words which weights of a loaded model are MXFP4, and why the others are not."""

from __future__ import annotations

from typing import Any

from mxfp4_core.modules import summary as table


def summary(model: Any) -> str:
    """Return a table of a model's weights: MXFP4 or kept, where, how large, by which profile and backend, and why.

    Blocks that differ in their numbers only share a line. ``print(model)`` has the same modules, one by one.

    Args:
        model: loaded by ``from_pretrained`` with this package.

    Returns:
        A heading with the counts, then one line for each group, in the order of the model.
    """
    return table(model, getattr(getattr(model, "hf_quantizer", None), "plan", None))


__all__ = ["summary"]
