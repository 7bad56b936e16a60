"""A layer under test: canonical weights on the CPU, the packed ones on the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mxfp4_core.arithmetic import MxTensor
from mxfp4_core.backend import Backend, Packed, Problem, Routes, calls, numerics_for
from mxfp4_core.testing import judge
from mxfp4_core.testing.samples import random_biases, random_weight

Biases = tuple[Tensor | None, Tensor | None]


@dataclass
class Layer:
    """A MoE layer: canonical on the CPU, packed on the device."""

    problem: Problem
    weights: tuple[MxTensor, MxTensor]
    biases: Biases
    packed: tuple[Packed, Packed]

    @classmethod
    def build(cls, backend: Backend, device: torch.device, problem: Problem, seed: int = 0) -> Layer:
        """Draw the weights and pack them."""
        gate_up, down = (
            random_weight(*s, seed=seed + i, scales=(117, 122))
            for i, s in enumerate(calls.shapes(problem).values())
        )
        first, second = random_biases(problem, seed + 2)
        return cls.of(backend, device, problem, (gate_up, down), (first, second))

    @classmethod
    def of(
        cls,
        backend: Backend,
        device: torch.device,
        problem: Problem,
        weights: tuple[MxTensor, MxTensor],
        biases: Biases = (None, None),
    ) -> Layer:
        """Pack given weights."""
        first, second = (
            calls.pack(backend, problem, w.to(device), None if b is None else b.to(device), matrix)
            for w, b, matrix in zip(weights, biases, calls.shapes(problem), strict=True)
        )
        return cls(problem, weights, biases, (first, second))

    def call(
        self, backend: Backend, x: Tensor, ids: Tensor, weights: Tensor, expert_map: Tensor | None = None
    ) -> Tensor:
        """Run the layer on the device of its weights."""
        device = next(iter(self.packed[0].tensors.values())).device
        there = None if expert_map is None else expert_map.to(device)
        routes = Routes(ids.to(device), weights.to(device), there)
        return calls.moe(backend, x.to(device), *self.packed, routes, self.problem)

    def answer(self, backend: Backend, x: Tensor, ids: Tensor, weights: Tensor) -> judge.Answer:
        """Ask the judge; ids are indices of experts here."""
        numerics = numerics_for(backend, self.problem)
        return judge.moe(
            *(x, *self.weights, self.biases, ids, weights, self.problem.gate, numerics),
            activation=numerics.activation or "none",
            shared=self.problem.shared_experts,
        )


__all__ = ["Biases", "Layer"]
