"""Packing over the bytes that nobody needs any more, so that a weight is never in memory twice.

A layout that can do it has the member ``pack_in_place`` beside those of `mxfp4_core.backend.Layout`; one that has not
packs into new memory, and the old bytes are freed afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from mxfp4_core.backend import Layout

if TYPE_CHECKING:
    from torch import Tensor

    from mxfp4_core.tensor import MxTensor


@runtime_checkable
class InPlaceLayout(Protocol):
    """What a layout may have beside ``pack``."""

    def pack_in_place(self, weight: MxTensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        """Return the same tensors as ``pack``; they may be in the memory of ``weight``, whose bytes are lost.

        Beside that memory it takes a bounded amount, or one expert's, also for a stack of hundreds.

        Args:
            weight: as for ``pack``. After an error its bytes are what they were.
            bias: as for ``pack``.

        Raises:
            ShapeError, FormatError: as ``pack``, before anything is written.
        """
        ...


def pack_in_place(layout: Layout, weight: MxTensor, bias: Tensor | None = None) -> dict[str, Tensor]:
    """Pack a weight whose canonical bytes are not needed again, in its own memory where the layout can."""
    return (
        layout.pack_in_place(weight, bias) if isinstance(layout, InPlaceLayout) else layout.pack(weight, bias)
    )


__all__ = ["InPlaceLayout", "pack_in_place"]
