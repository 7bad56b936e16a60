"""How far the output moves when one weight is quantised."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from mxfp4_core import Mxfp4Config, quantize
from mxfp4_core.errors import ConfigError
from mxfp4_core.modules import sensitivities


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 32, bias=False))


@pytest.mark.parametrize("format", ["mxfp4", "mxfp8"])
def test_the_number_is_what_one_rounded_weight_does_to_the_output(format: str) -> None:
    own, x = model(), torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    before = copy.deepcopy(own.state_dict())
    found = sensitivities(own, lambda: own(x), Mxfp4Config(format=format))
    wanted = own(x).detach().double()
    for name in ("0.weight", "1.weight"):
        other = model().requires_grad_(False)
        parameter = other.get_parameter(name)
        parameter.data = quantize(parameter.data, format=format).dequantize(torch.float32)
        moved = float((other(x).double() - wanted).square().sum() / wanted.square().sum())
        assert found[name] == pytest.approx(moved, rel=1e-9)
    assert list(found) == ["0.weight", "1.weight"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in own.state_dict().items())


def test_a_run_that_gives_something_else_each_time_is_refused() -> None:
    own = model()
    with pytest.raises(ConfigError, match="two runs of the same model that differ"):
        sensitivities(own, lambda: own(torch.randn(2, 64)))


def test_an_error_in_a_run_leaves_the_model_as_it_was() -> None:
    own, x, calls = model(), torch.ones(2, 64), [0]
    before = copy.deepcopy(own.state_dict())

    def run() -> Tensor:
        calls[0] += 1
        if calls[0] == 4:
            raise RuntimeError("no more")
        out: Tensor = own(x)
        return out

    with pytest.raises(RuntimeError, match="no more"):
        sensitivities(own, run)
    assert all(torch.equal(tensor, before[name]) for name, tensor in own.state_dict().items())
