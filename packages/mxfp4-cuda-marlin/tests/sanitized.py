"""Run every variant of every kernel on small shapes, for ``compute-sanitizer`` to watch.

    compute-sanitizer --tool memcheck python packages/mxfp4-cuda-marlin/tests/sanitized.py

Results are compared elsewhere; here empty slots, partly filled tiles, odd numbers of columns and of strips are what
matters. ``nox -s sm90`` runs it under memcheck and synccheck.
"""

from __future__ import annotations

from unittest.mock import patch

import torch

from mxfp4_core.backend import GPT_OSS_SWIGLU, Packed, Problem, Routes, calls
from mxfp4_core.testing.samples import random_biases, random_routes, random_weight, random_x
from mxfp4_cuda_marlin import backend, compute
from mxfp4_cuda_marlin.kernels.few import linear_fews, moe_fews
from mxfp4_cuda_marlin.kernels.tiles import linear_variants, moe_variants

CUDA = torch.device("cuda")


def packed(problem: Problem) -> list[Packed]:
    """Pack random weights of a problem on the device."""
    biases = random_biases(problem)
    return [
        calls.pack(backend, problem, random_weight(*shape, scales=(117, 122)).to(CUDA), bias.to(CUDA), matrix)
        for (matrix, shape), bias in zip(calls.shapes(problem).items(), biases, strict=True)
    ]


def linear(n: int, k: int) -> None:
    """Run each variant of a linear, with full tiles and others."""
    (weight,) = packed(Problem(op="linear", n=n, k=k, bias=True))
    tensors = tuple(weight.tensors[name] for name in ("codes", "scales", "bias"))
    for tile in linear_variants():
        for m in (1, 150, 300):
            x = random_x(m, k).to(CUDA)
            compute.linear_into(x, tensors, x.new_empty((m, n)), tile)
    for few in linear_fews():
        for m in (1, few.tokens + 1):
            x = random_x(m, k).to(CUDA)
            compute.linear_into(x, tensors, x.new_empty((m, n)), few)


def moe(n: int, k: int, experts: int, top_k: int) -> None:
    """Run each variant of a MoE layer, with empty slots."""
    problem = Problem(op="moe", n=n, k=k, experts=experts, top_k=top_k, gate=GPT_OSS_SWIGLU, bias=True)
    layer = packed(problem)

    def run(m: int) -> None:
        x, (ids, weights) = random_x(m, k).to(CUDA), random_routes(m, experts, top_k)
        ids[::7, 0] = -1
        calls.moe(backend, x, layer[0], layer[1], Routes(ids.to(CUDA), weights.to(CUDA)), problem)

    for tile in moe_variants():
        with patch.object(compute, "moe_variant", lambda *sizes, tile=tile: (tile, tile)):
            for m in (1, 60, 300):
                run(m)
    for pair in moe_fews():
        with patch.object(compute, "moe_variant", lambda *sizes, pair=pair: pair):
            for m in (1, 3, 20):
                run(m)
    for m in (1, 3, 20, 200, 1500):
        run(m)


if __name__ == "__main__":
    linear(320, 448)
    moe(192, 320, 5, 3)
    moe(160, 1088, 3, 2)
    torch.cuda.synchronize()
    print("every variant ran")
