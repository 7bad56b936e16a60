"""A small model whose modules a session binds, and what its tests ask of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loader_layers import weights
from torch import Tensor, nn

from mxfp4_core import Mxfp4Config
from mxfp4_core.backend.reference.backend import ReferenceBackend
from mxfp4_core.loader import LoadSession, QuantTarget
from mxfp4_core.modules import Mxfp4Experts, Mxfp4Linear, Mxfp4Module
from mxfp4_core.testing import EmulatedBackend
from mxfp4_core.testing.samples import random_routes, random_x

N, K, E = 40, 96, 3
SHAPES = {"up.weight": (N, K), "experts.gate_up_proj": (E, 2 * N, K), "experts.down_proj": (E, K, N)}
NAN = float("nan")
BACKENDS = {"reference": ReferenceBackend(), "emulated": EmulatedBackend()}
kinds = pytest.mark.parametrize("name", ["reference", "emulated"])


def model(device: str = "meta", bias: bool = False) -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "up": Mxfp4Linear(N, K, bias=bias, device=device),
            "norm": nn.LayerNorm(K),
            "experts": Mxfp4Experts(E, N, K, top_k=2, bias=bias, device=device),
        }
    )


class Session(LoadSession):
    """One that prepares for a backend that no package registers."""

    def bind(self, model: nn.Module, **options: Any) -> dict[str, QuantTarget]:
        return super().bind(model, **{"backend": BACKENDS[self.config.fallback], **options})


def session(name: str, **options: Any) -> LoadSession:
    return Session(Mxfp4Config(fallback=name, tail="pad", **options))


def values(seed: int) -> dict[str, Tensor]:
    return {
        name: weights(*shape, seed=seed + place) / 8 for place, (name, shape) in enumerate(SHAPES.items())
    }


def load(targets: dict[str, QuantTarget], new: dict[str, Tensor]) -> None:
    for name, source in new.items():
        targets[name].quantize(source)


def run(built: nn.ModuleDict) -> list[Tensor]:
    x, routes = random_x(5, K), random_routes(5, E, 2)
    return [built["up"](x), built["experts"](x, *routes)]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def places(built: nn.Module) -> dict[str, int]:
    return {name: buffer.data_ptr() for name, buffer in built.named_buffers()}


def fresh(name: str, seed: int, bias: float | None = None) -> nn.ModuleDict:
    """Return a model that was loaded in one go."""
    built, opened = model("cpu", bias is not None), session(name)
    for module in built.children():
        if isinstance(module, Mxfp4Module):
            for each in module.biases.values():
                each.fill_(bias or 0)
    load(opened.bind(built), values(seed))
    opened.close()
    return built
