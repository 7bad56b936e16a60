"""A layer as an engine sets it up, and weights for it: what the tests of load sessions share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import Parameter

from mxfp4_core import quantize
from mxfp4_core.loader import LoadSession, QuantTarget
from mxfp4_core.testing import engine_loaders as engines

torch.set_num_threads(1)


def weights(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


class Layer:
    """A merged column of three shards of 4 rows and k = 64, on one rank, as an adapter sets it up."""

    def __init__(self, session: LoadSession, name: str = "layers.0.qkv_proj.weight") -> None:
        self.engine = engines.MergedColumn([4, 4, 4], 64, rank=0, tp=1)
        self.target = session.target(name, self.engine.shape, dtype=torch.bfloat16)
        self.param = Parameter(self.target.codes, requires_grad=False)
        self.param.output_dim = 0
        self.param.weight_loader = session.wrap(name, self.engine.weight_loader)

    def load(self, shard: int, source: torch.Tensor) -> None:
        self.param.weight_loader(self.param, source, shard)

    def load_all(self, source: torch.Tensor) -> None:
        for shard in range(3):
            self.load(shard, source[shard * 4 : shard * 4 + 4])

    def holds(self, source: torch.Tensor) -> bool:
        want, got = quantize(source), self.target.mx_tensor()
        return torch.equal(got.codes, want.codes) and torch.equal(got.scales, want.scales)


def simple(
    session: LoadSession, shape: tuple[int, ...], loader: Callable[..., Any], **options: Any
) -> tuple[QuantTarget, Callable[..., Any]]:
    """Make a target and return it with its wrapped loader, the parameter already bound."""
    target = session.target("w", shape, **{"dtype": torch.bfloat16, **options})
    wrapped = session.wrap("w", loader)
    param = Parameter(target.codes, requires_grad=False)
    return target, lambda *args, **kwargs: wrapped(param, *args, **kwargs)


def copy_whole(param: Parameter, loaded_weight: torch.Tensor) -> None:
    param.data.copy_(loaded_weight)
