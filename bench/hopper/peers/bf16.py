"""BF16 weights, with what torch offers: cuBLAS, and grouped matmuls between a sort and a scatter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from hopper.cases import DenseCase, MoeCase, Routed
from hopper.peers import Linear, Moe


class Peer:
    """See ``hopper.peers.Peer``."""

    gate = "silu"
    threads = 1

    def __init__(self, folder: Path | None) -> None:
        del folder

    def available(self) -> str | None:
        """Say whether this torch has grouped matmuls."""
        return None if hasattr(torch, "_grouped_mm") else "this torch has no _grouped_mm"

    def prepare(self, moe: Sequence[tuple[str, int]], dense: Sequence[tuple[str, int]]) -> None:
        """Compile nothing."""

    def moe(self, case: MoeCase, tokens: Sequence[int]) -> Moe:
        """Sort, grouped matmuls, gate, weighted scatter."""
        del tokens
        problem = case.problem
        gate_up, down = case.wide

        def run(routed: Routed) -> Tensor:
            ids = routed.ids.flatten()
            order = ids.argsort(stable=True)
            ends = torch.nn.functional.one_hot(ids.long(), problem.experts).sum(0).cumsum(0).int()
            rows = order // problem.top_k
            gate, up = torch._grouped_mm(routed.x[rows], gate_up.mT, offs=ends).chunk(2, dim=1)
            out = torch._grouped_mm(torch.nn.functional.silu(gate) * up, down.mT, offs=ends)
            scaled = out * routed.weights.flatten()[order, None].to(out.dtype)
            return torch.zeros_like(routed.x).index_add_(0, rows, scaled)

        return {"default": run}

    def linear(self, case: DenseCase, tokens: Sequence[int]) -> Linear:
        """One matmul."""
        del tokens
        return {"default": lambda x: x @ case.wide.T}
