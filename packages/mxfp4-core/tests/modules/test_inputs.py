"""What goes into a linear beside what it was prepared for, and what may be done with its result."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from mxfp4_core import quantize
from mxfp4_core.backend.reference.backend import ReferenceBackend
from mxfp4_core.errors import ConfigError, FormatError
from mxfp4_core.modules import Mxfp4Experts, Mxfp4Linear, quantize_
from mxfp4_core.modules import mixed as mixed_module
from mxfp4_core.testing import EmulatedBackend

BACKENDS = [ReferenceBackend(), EmulatedBackend()]
IDS = ["reference", "emulated"]


def linear(n: int = 10, k: int = 70) -> Mxfp4Linear:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(n, k, generator=generator)
    return Mxfp4Linear.from_weight(quantize(weight, tail="pad"), torch.ones(n, dtype=torch.bfloat16))


@pytest.fixture
def _told_nothing_yet() -> None:
    mixed_module._say.cache_clear()


def test_a_linear_is_torchs_linear() -> None:
    module = linear().prepare(BACKENDS[0])
    assert isinstance(module, nn.Linear) and (module.in_features, module.out_features) == (70, 10)
    assert not isinstance(Mxfp4Experts(2, 32, 32, top_k=1), nn.Linear)


def test_a_linear_is_not_quantised_again() -> None:
    model = nn.Sequential(nn.Linear(64, 64))
    quantize_(model)
    with pytest.raises(ConfigError, match="nothing is left"):
        quantize_(model)


@pytest.mark.usefixtures("_told_nothing_yet")
@pytest.mark.parametrize("backend", BACKENDS, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_floats_of_another_dtype_are_rounded_aloud(
    backend: ReferenceBackend, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    module, x = linear().prepare(backend), torch.randn(3, 70).to(dtype)
    with caplog.at_level(logging.WARNING, logger="mxfp4_core.modules"):
        given, again = module(x), module(x)
    assert given.dtype == dtype and torch.equal(given, module(x.to(torch.bfloat16)).to(dtype))
    assert torch.equal(given, again)
    (message,) = {record.getMessage() for record in caplog.records}
    assert "prepared for torch.bfloat16" in message and str(dtype) in message
    assert len(caplog.records) == 1, "said once for all calls"


@pytest.mark.parametrize("dtype", [torch.int32, torch.float64])
def test_what_is_no_float_of_a_model_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(FormatError, match=str(dtype)):
        linear().prepare(BACKENDS[0])(torch.zeros(3, 70, dtype=dtype))


@pytest.mark.usefixtures("_told_nothing_yet")
def test_experts_round_and_return_the_dtype_of_x() -> None:
    module = Mxfp4Experts(2, 32, 64, top_k=1)
    for matrix, shape in module.shapes.items():
        module.fill(matrix, quantize(torch.randn(shape)))
    module.prepare(BACKENDS[0])
    x, ids, weights = torch.randn(3, 64), torch.tensor([[0], [1], [0]]), torch.rand(3, 1)
    out = module(x, ids, weights)
    assert out.dtype == torch.float32
    assert torch.equal(out, module(x.to(torch.bfloat16), ids, weights).float())


@pytest.mark.parametrize("backend", BACKENDS, ids=IDS)
def test_the_result_may_be_changed_in_place(backend: ReferenceBackend) -> None:
    module = linear().prepare(backend)
    x = torch.randn(3, 70).to(torch.bfloat16).requires_grad_()
    out = module(x)
    out += 1
    out.sum().backward()
    want = module.canonical("weight").dequantize(torch.float32).sum(0).expand_as(x)
    torch.testing.assert_close(x.grad, want.to(torch.bfloat16))


def test_a_second_derivative_is_refused() -> None:
    x = torch.randn(3, 70).to(torch.bfloat16).requires_grad_()
    out = linear().prepare(BACKENDS[0])(x)
    (grad,) = torch.autograd.grad(out, x, torch.ones_like(out).requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_new_weights_between_forward_and_backward_are_noticed() -> None:
    module = linear().prepare(BACKENDS[0])
    x = torch.randn(3, 70).to(torch.bfloat16).requires_grad_()
    out = module(x)
    module.load_state_dict(linear().state_dict())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_what_is_assigned_to_a_weight_that_computes_is_refused() -> None:
    module = linear()
    module.weight = module.weight.clone()  # a loader does this
    module.prepare(BACKENDS[0])
    x = torch.randn(3, 70).to(torch.bfloat16)
    want = module(x)
    with pytest.raises(FormatError, match="cannot be written"):
        module.weight = torch.zeros(10, 70)
    with pytest.raises(FormatError, match="cannot be written"):
        module.weight.data = torch.zeros(10, 70)
    with pytest.raises(FormatError, match="cannot be written"):
        module.weight.data += 1
    assert torch.equal(module(x), want)
