"""Modules that keep their own code, and what code sees of an MXFP4 weight."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mxfp4_core import quantize
from mxfp4_core.config import Mxfp4Config
from mxfp4_core.errors import BackendError, ConfigError, FormatError
from mxfp4_core.loader import LoadSession, Region
from mxfp4_core.modules import LogicalWeight, Mxfp4Experts, Mxfp4Held, Mxfp4Linear, quantize_
from mxfp4_core.modules import widened as given_back


class Grouped(nn.Module):
    """Experts under a name of their own, called with rows that are sorted."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts, self.scale = 3, nn.Parameter(torch.full((1,), 0.5))
        self.input_linear = nn.Parameter(torch.randn(3, 40, 64))

    def forward(self, rows: Tensor, sizes: list[int]) -> Tensor:
        parts = rows.split(sizes)
        return torch.cat([part @ self.input_linear[i].T for i, part in enumerate(parts)]) * self.scale


class Routed(nn.Module):
    """Experts that are called as others are, with K first and no promise about it."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.num_experts, self.factor = 3, factor
        self.gate_up_proj, self.down_proj = (
            nn.Parameter(torch.randn(3, 64, 64)),
            nn.Parameter(torch.randn(3, 32, 64)),
        )

    def _apply_gate(self, both: Tensor) -> Tensor:
        gate, up = both.chunk(2, -1)
        return nn.functional.silu(gate) * up

    def forward(self, x: Tensor, ids: Tensor, shares: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for token, slot in torch.cartesian_prod(torch.arange(x.shape[0]), torch.arange(ids.shape[1])):
            expert = ids[token, slot]
            hidden = self._apply_gate(x[token] @ self.gate_up_proj[expert])
            out[token] += self.factor * shares[token, slot] * (hidden @ self.down_proj[expert])
        return out


class Tied(nn.Module):
    """Code that reads a weight of a linear, and one that multiplies with it."""

    def __init__(self) -> None:
        super().__init__()
        self.wo, self.num_experts_per_tok = nn.Linear(64, 96, bias=False), 2

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.wo(x.to(self.wo.weight.dtype)), self.wo.weight.T)


def widened(weight: Tensor, *, turned: bool = False) -> Tensor:
    values = quantize((weight.mT if turned else weight).contiguous()).dequantize(torch.float32)
    return values.mT.contiguous() if turned else values


def test_a_stack_under_another_name_keeps_its_code(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Grouped()), torch.randn(6, 64)
    plain = Grouped()
    plain.load_state_dict(model[0].state_dict())
    plain.input_linear.data = widened(plain.input_linear.data)
    with caplog.at_level(logging.WARNING, "mxfp4_core.modules"):
        done = quantize_(model, dtype=torch.float32)
    assert (
        "0: MXFP4 in memory, widened in each call, since Grouped is called in a way of its own" in caplog.text
    )
    held = model[0]
    assert isinstance(held, Mxfp4Held) and isinstance(held, Grouped)
    assert torch.equal(held(x, [1, 2, 3]), plain(x, [1, 2, 3]))
    assert list(held.state_dict()) == ["scale", "input_linear", "input_linear_scale"]
    assert held.input_linear.shape == (3, 40, 64) and held.state_dict()["input_linear"].dtype == torch.uint8
    assert "by its own code" in str(done) and not done.selections
    assert dict(held.named_parameters()).keys() == {"scale"}
    moved = held.to(torch.bfloat16)
    assert moved.input_linear.dtype == torch.float32, "what a model sees follows `prepare`"


@pytest.mark.parametrize(("factor", "kind"), [(1.0, Mxfp4Experts), (2.0, Mxfp4Held)])
def test_experts_without_a_promise_are_tried_out(factor: float, kind: type) -> None:
    torch.manual_seed(0)
    block = nn.Module()
    block.experts, block.top_k = Routed(factor), 2
    plain = Routed(factor)
    plain.load_state_dict(block.experts.state_dict())
    for each in (plain.gate_up_proj, plain.down_proj):
        each.data = widened(each.data, turned=True)
    quantize_(block, dtype=torch.float32)
    assert type(block.experts) is kind or isinstance(block.experts, Mxfp4Held) == (kind is Mxfp4Held)
    x, ids = torch.randn(4, 64) / 8, torch.tensor([[0, 1], [2, 1], [1, 0], [2, 0]])
    shares = torch.rand(4, 2)
    torch.testing.assert_close(block.experts(x, ids, shares), plain(x, ids, shares), rtol=1e-5, atol=1e-4)
    assert block.experts.down_proj.shape == (3, 32, 64), "as the model has it"


def test_what_code_sees_of_a_weight(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model, x = Tied(), torch.randn(2, 64)
    weight = widened(model.wo.weight.data)
    quantize_(model, dtype=torch.float32)
    seen = model.wo.weight
    assert isinstance(model.wo, Mxfp4Linear) and isinstance(seen, LogicalWeight)
    assert (seen.shape, seen.dtype, seen.device) == ((96, 64), torch.float32, torch.device("cpu"))
    assert "LogicalWeight(wo.weight" in repr(seen)
    with caplog.at_level(logging.WARNING, "mxfp4_core.modules"):
        y = model(x)
    assert "wo.weight is widened in each call" in caplog.text
    torch.testing.assert_close(y, x @ weight.T @ weight, rtol=1e-5, atol=1e-4)
    assert torch.equal(seen.detach().chunk(2)[1], weight[48:])
    with pytest.raises(RuntimeError, match="data pointer"):
        seen.data_ptr()


WRITES: list[Callable[[Tensor], object]] = [
    lambda weight: weight.mul_(2),
    lambda weight: weight.copy_(torch.zeros(96, 64)),
    lambda weight: torch.add(torch.zeros(96, 64), 1, out=weight),
    lambda weight: weight[:4].zero_(),
    lambda weight: nn.init.zeros_(weight.T),
]


@pytest.mark.parametrize("write", WRITES)
def test_a_weight_is_not_written_in_silence(write: Callable[[Tensor], object]) -> None:
    model = Tied()
    quantize_(model, dtype=torch.float32)
    with pytest.raises(FormatError, match=r"wo\.weight cannot be written"):
        write(model.wo.weight)


@pytest.mark.parametrize("fast", [True, False])
def test_attention_that_multiplies_with_the_weight_of_its_linear(fast: bool) -> None:
    torch.manual_seed(0)
    plain, x = nn.MultiheadAttention(64, 4, batch_first=True).eval(), torch.randn(2, 5, 64)
    model = nn.Sequential(nn.MultiheadAttention(64, 4, batch_first=True)).eval()
    model[0].load_state_dict(plain.state_dict())
    plain.out_proj.weight.data = widened(plain.out_proj.weight.data)
    quantize_(model, dtype=torch.float32)
    assert isinstance(model[0].out_proj, Mxfp4Linear)
    with torch.set_grad_enabled(not fast):  # torch has one kernel for all of it where no gradient is wanted
        torch.testing.assert_close(model[0](x, x, x)[0], plain(x, x, x)[0], rtol=1e-5, atol=1e-6)


class Decoupled(nn.Linear):
    """A linear with another one inside, and a buffer."""

    def __init__(self) -> None:
        super().__init__(64, 96, bias=False)
        self.more = nn.Linear(64, 32)
        self.register_buffer("shift", torch.ones(96))

    def forward(self, input: Tensor) -> Tensor:
        return torch.cat((super().forward(input) + self.shift, self.more(input)), -1)


def test_what_is_beside_its_weights_is_kept_and_given_back() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Decoupled()), torch.randn(3, 64)
    plain = Decoupled()
    plain.load_state_dict(model[0].state_dict())
    for each in (plain, plain.more):
        each.weight.data = widened(each.weight.data)
    done = quantize_(model, dtype=torch.float32)
    assert isinstance(model[0], Mxfp4Held) and isinstance(model[0].more, Mxfp4Linear)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-5, atol=1e-5)
    for site in done.plan.sites:
        model.set_submodule(site.path, given_back(model.get_submodule(site.path), site, torch.float32))
    assert type(model[0]) is Decoupled and type(model[0].more) is nn.Linear
    assert torch.equal(model(x), plain(x))


class Flat(nn.Module):
    """The experts one below the other."""

    def __init__(self) -> None:
        super().__init__()
        self.moe_num_experts = 4
        self.w1, self.w2 = nn.Parameter(torch.randn(4 * 96, 64)), nn.Parameter(torch.randn(4 * 96, 64))


def test_experts_one_below_the_other_are_refused() -> None:
    model = nn.ModuleDict({"flat": Flat(), "linear": nn.Linear(64, 64)})
    with pytest.raises(ConfigError, match="Flat holds its experts one below the other") as caught:
        quantize_(model)
    assert "ignore=['flat']" in caught.value.fix
    quantize_(model, Mxfp4Config(ignore=["flat"]))
    assert isinstance(model["linear"], Mxfp4Linear) and isinstance(model["flat"].w1, nn.Parameter)


def test_activations_that_nobody_would_round_are_refused() -> None:
    model = nn.Sequential(Grouped(), nn.Linear(64, 64))
    with pytest.raises(BackendError, match="none computes with a module that keeps its own code"):
        quantize_(model, Mxfp4Config(activation="mxfp4"), dtype=torch.float32)


def test_a_refit_of_what_keeps_its_code() -> None:
    torch.manual_seed(0)
    model, x, new = nn.Sequential(Grouped()), torch.randn(6, 64), torch.randn(3, 40, 64)
    quantize_(model, dtype=torch.float32)
    held, sizes = model[0], [1, 2, 3]
    codes, old = held.canonical("input_linear").codes, held(x, sizes)
    session = LoadSession()
    (target,) = session.bind(model, dtype=torch.float32).values()
    session.begin()
    for expert in range(3):
        assert torch.equal(held(x, sizes), old), "it computes with its old weights until the load is closed"
        target.quantize(new[expert], Region((expert, expert + 1), (0, 40), (0, 64)))
    session.close()
    fresh = Grouped()
    fresh.input_linear.data = widened(new)
    assert torch.equal(held(x, sizes), fresh(x, sizes))
    assert codes.data_ptr() == held.canonical("input_linear").codes.data_ptr()


def test_views_stay_without_memory() -> None:
    stack, label = quantize(torch.randn(3, 40, 64)), "stack"
    values, used = stack.dequantize(torch.float32), list[str]()

    def whole(k_first: bool = False) -> LogicalWeight:
        return LogicalWeight.of(
            lambda: stack,
            (3, 40, 64),
            torch.float32,
            torch.device("cpu"),
            k_first=k_first,
            name=label,
            used=used.append,
        )

    views: list[Callable[[Tensor], Tensor]] = [
        lambda w: w[1],
        lambda w: w[1:],
        lambda w: w[0].mT[8:16] if w.shape[-1] == 40 else w[0, 8:16],
        lambda w: w.transpose(1, 2)[2],
        lambda w: w.view(120, 64) if w.is_contiguous() and w.shape[-1] == 64 else w.mT,
        lambda w: w.split([1, 2])[1],
        lambda w: w.unbind(0)[2].detach(),
    ]
    for k_first in (False, True):
        plain = values.mT if k_first else values
        for view in views:
            made = view(whole(k_first))
            assert isinstance(made, LogicalWeight) and not used
            assert torch.equal(made + 0, view(plain)) and used
            used.clear()
        for index in (torch.tensor(1), torch.tensor([2, 0]), 0):
            assert torch.equal(whole(k_first)[index] + 0, plain[index])
        assert torch.equal(whole(k_first)[:, :, 3:5] + 0, plain[:, :, 3:5])
        x = torch.ones(3, 2, plain.shape[1])
        assert torch.equal(torch.bmm(x, whole(k_first)), x @ plain)
        used.clear()
