"""What counts as a linear: what a module computes, whatever its class, and in which order it holds its weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mxfp4_core.modules import find_sites
from mxfp4_core.modules.products import Product, product_of


class AddsNothing(nn.Linear):
    pass


class OwnForward(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        hidden = input @ self.weight.T
        return hidden if self.bias is None else hidden + self.bias


class KFirst(nn.Module):
    """The axes turned, the sizes remembered, a call that flattens."""

    def __init__(self, n: int, k: int) -> None:
        super().__init__()
        self.nf, self.nx = n, k
        self.weight, self.bias = nn.Parameter(torch.empty(k, n)), nn.Parameter(torch.zeros(n))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return out.view(*x.shape[:-1], self.nf)


class Scaled(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


class InFloat32(nn.Linear):
    """Its result has another dtype than its input, so that what follows would differ."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.float()
        return nn.functional.linear(input.float(), self.weight.float(), bias)


class Router(nn.Linear):
    def forward(self, input: torch.Tensor) -> Any:
        return super().forward(input), 0


class Extra(nn.Linear):
    def __init__(self, k: int, n: int) -> None:
        super().__init__(k, n)
        self.more = nn.Linear(k, n)


class Rows(nn.Module):
    """Two axes, and no product."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(10, 8))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.weight[ids.long()]


MODULES: list[tuple[nn.Module, Product | None]] = [
    (nn.Linear(8, 10), "n first"),
    (AddsNothing(8, 10, bias=False), "n first"),
    (OwnForward(8, 10), "n first"),
    (OwnForward(8, 8, bias=False), "n first"),
    (KFirst(10, 8), "k first"),
    (KFirst(8, 8), "k first"),
    (nn.modules.linear.NonDynamicallyQuantizableLinear(8, 8), "n first"),
    (Scaled(8, 10), None),
    (InFloat32(8, 10), None),
    (Router(8, 10), None),
    (Extra(8, 10), None),
    (Rows(), None),
    (nn.Embedding(10, 8), None),
    (nn.Conv1d(8, 10, 1), None),
    (nn.Bilinear(4, 8, 10), None),
]


@pytest.mark.parametrize("module", MODULES, ids=lambda pair: type(pair[0]).__name__)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_a_module_computes(module: tuple[nn.Module, Product | None], device: str) -> None:
    one, product = module
    state = torch.get_rng_state()
    with torch.device("meta"):  # as while a model is built
        assert product_of(one.to(device)) == product
    assert torch.equal(torch.get_rng_state(), state)


def test_sites_have_k_last_and_say_what_keeps_its_own_code() -> None:
    model = nn.Sequential(nn.Linear(64, 96), KFirst(96, 64), Scaled(64, 96), Rows(), Extra(64, 96))
    sites = {site.path: site for site in find_sites(model)}
    assert {path: site.weights["weight"] for path, site in sites.items()} == dict.fromkeys(
        ("0", "1", "2", "4", "4.more"), (96, 64)
    )
    assert [path for path, site in sites.items() if site.transposed] == ["1"]
    held = {path: site.held for path, site in sites.items() if site.held}
    assert held == {
        "2": "Scaled is more than a product with its weight",
        "4": "Extra is more than a product with its weight",
    }
    assert not any(site.refusal for site in sites.values())
