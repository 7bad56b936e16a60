"""Loading: an engine's own loader fills the module, piece by piece, and the backend computes the same."""

from __future__ import annotations

import torch
from torch import Tensor

from mxfp4_core import quantize
from mxfp4_core.backend import Backend, Device, Problem
from mxfp4_core.config import Mxfp4Config
from mxfp4_core.loader import LoadSession
from mxfp4_core.modules import Mxfp4Experts, Mxfp4Linear
from mxfp4_core.testing.fixtures import Fixtures, posed, takes
from mxfp4_core.testing.samples import random_routes, random_x


def merged_loader(param: Tensor, loaded_weight: Tensor, shard_id: int) -> None:
    """Copy half of a merged column, as engines do for gate and up."""
    half = param.shape[0] // 2
    param.narrow(0, shard_id * half, half).copy_(loaded_weight)


def expert_loader(
    param: Tensor, loaded_weight: Tensor, weight_name: str, shard_id: str, expert_id: int
) -> None:
    """Copy one projection of one expert, as engines do for fused experts."""
    rows = param[expert_id]
    if shard_id != "w2":
        half = rows.shape[0] // 2
        rows = rows.narrow(0, 0 if shard_id == "w1" else half, half)
    rows.copy_(loaded_weight)


def draw(*shape: int, seed: int) -> Tensor:
    """Return a bfloat16 weight as models have them."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / 8).to(torch.bfloat16)


class LoaderSuite(Fixtures):
    """``mxfp4_core.loader`` and ``prepare`` together, on the device."""

    def test_loader_merged_columns(self, backend: Backend, here: Device, device: torch.device) -> None:
        """Shards that arrive one by one give the module that the whole weight gives; so does a second load."""
        problem = posed(backend, Problem(op="linear", n=160, k=288, device=here))
        if not takes(backend, problem):
            return
        module, x = (
            Mxfp4Linear(160, 288, profile="even/even", activation=problem.activation, device=device),
            random_x(5, 288).to(device),
        )
        for seed in (0, 1):
            whole = draw(160, 288, seed=seed)
            with module.unprepared():
                session = LoadSession(Mxfp4Config.from_dict({}))
                session.target(
                    "weight",
                    (160, 288),
                    dtype=torch.bfloat16,
                    parts={"codes": module.weight, "scales": module.weight_scale},
                )
                loader = session.wrap("weight", merged_loader)
                for shard in (1, 0):
                    loader(module.weight, whole[80 * shard : 80 * shard + 80], shard)
                session.close()
            want = Mxfp4Linear(160, 288, profile="even/even", activation=problem.activation, device=device)
            want.fill("weight", quantize(whole).to(device))
            want.prepare(backend)
            if module.backend is None:
                module.prepare(backend)
            assert torch.equal(module.canonical("weight").codes, want.canonical("weight").codes)
            assert torch.equal(module(x), want(x))

    def test_loader_experts(self, backend: Backend, here: Device, device: torch.device) -> None:
        """Projections that arrive one by one give the experts that the whole tensors give."""
        problem = posed(backend, Problem(op="moe", n=96, k=160, experts=3, top_k=2, device=here))
        if not takes(backend, problem):
            return
        gate_up, down = draw(3, 192, 160, seed=2), draw(3, 160, 96, seed=3)
        module = Mxfp4Experts(
            3, 96, 160, top_k=2, profile="even/even", activation=problem.activation, device=device
        )
        session = LoadSession(Mxfp4Config.from_dict({}))
        for name, shape in (("gate_up_proj", (3, 192, 160)), ("down_proj", (3, 160, 96))):
            parts = {"codes": getattr(module, name), "scales": getattr(module, f"{name}_scale")}
            session.target(name, shape, dtype=torch.bfloat16, parts=parts)
        first, second = session.wrap("gate_up_proj", expert_loader), session.wrap("down_proj", expert_loader)
        for expert in range(3):
            first(module.gate_up_proj, gate_up[expert, :96], "w1.weight", "w1", expert)
            first(module.gate_up_proj, gate_up[expert, 96:], "w3.weight", "w3", expert)
            second(module.down_proj, down[expert], "w2.weight", "w2", expert)
        session.close()
        want = Mxfp4Experts(
            3, 96, 160, top_k=2, profile="even/even", activation=problem.activation, device=device
        )
        want.fill("gate_up", quantize(gate_up).to(device))
        want.fill("down", quantize(down).to(device))
        x, (ids, weights) = random_x(5, 160).to(device), random_routes(5, 3, 2)
        arguments = (x, ids.to(device), weights.to(device))
        assert torch.equal(module.prepare(backend)(*arguments), want.prepare(backend)(*arguments))
