"""Which expert computes which row, as a MoE call gets it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Routes(NamedTuple):
    """What a router decided, or an engine that has sorted the tokens already.

    Attributes:
        topk_ids: integers [..., top_k]; -1 is an empty slot. Without elements where ``Problem.tokens`` is not
            ``flat``: there the place of a row says whose it is.
        topk_weights: floats [..., top_k]; applied to the output of the experts, after its bias. Likewise.
        expert_map: integers [total_experts] from the ids to the index on this rank, -1 for an expert that lives
            elsewhere and adds nothing here. None: the ids are indices.
        counts: integers [experts]: how many rows of each expert hold a token; for ``tokens="masked"`` only.
    """

    topk_ids: Tensor
    topk_weights: Tensor
    expert_map: Tensor | None = None
    counts: Tensor | None = None

    @classmethod
    def by_expert(cls, device: torch.device | str, counts: Tensor | None = None) -> Routes:
        """Return the routes of rows that are sorted by expert: ``batched``, or ``masked`` with counts.

        Args:
            device: where the rows are.
            counts: integers [experts] on that device, or None.
        """
        import torch

        none = torch.empty(0, dtype=torch.int32, device=device)
        return cls(none, none.to(torch.float32), counts=counts)


__all__ = ["Routes"]
