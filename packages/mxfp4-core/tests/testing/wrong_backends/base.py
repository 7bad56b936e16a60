"""How a wrong backend says which test catches it, and a sound backend whose steps can be replaced one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mxfp4_core import MxTensor, quantize
from mxfp4_core.arithmetic import apply_gate
from mxfp4_core.backend import Backend, Gate, Packed, Problem, Routes
from mxfp4_core.backend.reference.backend import ReferenceBackend
from mxfp4_core.errors import ShapeError


@dataclass(frozen=True)
class Wrong:
    """One wrong backend.

    Attributes:
        backend: the class; its base class passes the same test.
        test: name of the test of the suite that catches it.
        arguments: parameters of that test.
        raises: what the test raises.
    """

    backend: type[Backend]
    test: str
    arguments: dict[str, Any]
    raises: tuple[type[BaseException], ...]


WRONG: list[Wrong] = []


def caught_by(
    test: str, *, raises: type[BaseException] | None = None, **arguments: Any
) -> Callable[[type[Backend]], type[Backend]]:
    """Register a wrong backend with the test that catches it."""

    def register(backend: type[Backend]) -> type[Backend]:
        WRONG.append(Wrong(backend, test, arguments, (raises or AssertionError,)))
        return backend

    return register


def with_tensors(packed: Packed, **tensors: Tensor) -> Packed:
    """Return a packed weight with other tensors."""
    return Packed(packed.layout, {**packed.tensors, **tensors}, packed.shape)


class ZeroOfByteZero(ReferenceBackend):
    """Reads a block with scale byte 0 as zero, and says so."""

    numerics = replace(ReferenceBackend.numerics, scale_byte_0="zero")

    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        codes, scales = weight.tensors["codes"], weight.tensors["scales"]
        codes = torch.where((scales == 0).repeat_interleave(16, dim=1), 0, codes)
        return super().linear(x, with_tensors(weight, codes=codes), problem)


class Steps(ReferenceBackend):
    """Computes in float32, one expert after the other, in steps that a wrong backend replaces."""

    def widen(self, x: Tensor, problem: Problem) -> Tensor:
        """Return what is multiplied with the weight, for x and for the hidden state."""
        if problem.activation != "mxfp4":
            return x.float()
        profile = self.numerics.activation_profile
        return quantize(x, profile=profile, nonfinite="nan").dequantize(torch.float32)

    def widen_hidden(self, hidden: Tensor, problem: Problem) -> Tensor:
        return self.widen(hidden, problem)

    def values(self, codes: Tensor, scales: Tensor, matrix: str) -> Tensor:
        return MxTensor(codes, scales, torch.Size((codes.shape[0], 2 * codes.shape[1]))).dequantize(
            torch.float32
        )

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        return x @ weight.T

    def bias(self, packed: Packed, expert: int, matrix: str, problem: Problem) -> Tensor | float:
        bias = packed.tensors.get("bias")
        return 0.0 if bias is None else bias[expert].float()

    def halves(self, both: Tensor, form: Gate) -> tuple[Tensor, Tensor]:
        gate, up = (both[:, 0::2], both[:, 1::2]) if form.interleaved else both.chunk(2, dim=1)
        return gate, up

    def clamp(self, gate: Tensor, up: Tensor, limit: float) -> tuple[Tensor, Tensor]:
        return gate.clamp(max=limit), up.clamp(-limit, limit)

    def function(self, x: Tensor, form: Gate) -> Tensor:
        """Return f(x)."""
        alone = Gate(alpha=form.alpha, function=form.function, gated=False)
        return apply_gate(x, alone)

    def gated(self, both: Tensor, form: Gate) -> Tensor:
        gate, upper = self.halves(both, form)
        if form.limit is not None:
            gate, upper = self.clamp(gate, upper, form.limit)
        return (upper + form.up_offset) * self.function(gate, form)

    def ungated(self, both: Tensor, form: Gate) -> Tensor:
        return self.function(both, form)

    def weigh(self, result: Tensor, bias: Tensor | float, weight: Tensor) -> Tensor:
        return (result + bias) * weight

    def slots(self, ids: Tensor, expert: int) -> tuple[Tensor, Tensor]:
        tokens, slots = torch.where(ids == expert)
        return tokens, slots

    def local(self, routes: Routes, problem: Problem) -> Tensor:
        """Return indices of experts here."""
        ids, there = routes.topk_ids, routes.expert_map
        last = int(ids.max()) >= (problem.experts if there is None else problem.total_experts)
        if last or int(ids.min()) < -1 or (there is not None and int(there.max()) >= problem.experts):
            raise ShapeError("moe", seen=str(ids), rule="an expert or -1", fix="check the router")
        return ids if there is None else torch.where(ids < 0, ids, there[ids.clamp(min=0).long()])

    def expert(
        self, x: Tensor, gate_up: Packed, down: Packed, expert: int, problem: Problem
    ) -> tuple[Any, Any]:
        """Return the result of an expert before its bias, and the bias."""
        form, (up, lower) = problem.gate, (gate_up.tensors, down.tensors)
        both = self.product(x, self.values(up["codes"][expert], up["scales"][expert], "gate_up"))
        both = both + self.bias(gate_up, expert, "gate_up", problem)
        hidden = self.gated(both, form) if form.gated else self.ungated(both, form)
        weight = self.values(lower["codes"][expert], lower["scales"][expert], "down")
        result = self.product(self.widen_hidden(hidden, problem), weight)
        return result, self.bias(down, expert, "down", problem)

    def moe(self, x: Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem) -> Tensor:
        ids, wide = self.local(routes, problem), self.widen(x, problem)
        out = torch.zeros(x.shape[0], down.shape[-2])
        for expert in range(problem.experts):
            tokens, slots = self.slots(ids, expert)
            if tokens.numel():
                result, bias = self.expert(wide[tokens], gate_up, down, expert, problem)
                weight = routes.topk_weights[tokens, slots, None]
                out.index_add_(0, tokens, self.weigh(result, bias, weight))
        return out.to(x.dtype)
