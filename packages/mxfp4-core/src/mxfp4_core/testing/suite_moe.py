"""MoE: the whole layer, over sizes that vendors get wrong, and clear errors for the rest."""

from __future__ import annotations

import pytest
import torch

from mxfp4_core.backend import GPT_OSS_SWIGLU, SILU, Backend, Device, Gate, Problem
from mxfp4_core.errors import FormatError, ShapeError
from mxfp4_core.testing.fixtures import Fixtures, posed, takes
from mxfp4_core.testing.layer import Layer
from mxfp4_core.testing.samples import random_routes, random_x

# experts, top_k, n, k: a toy, one expert, sizes off every tile, all experts at once, and a shard of gpt-oss.
SHAPES = ((4, 2, 32, 64), (1, 1, 32, 32), (5, 3, 90, 160), (8, 8, 96, 96), (4, 4, 360, 288), (16, 6, 64, 256))
CLAMPED = Gate(limit=10.0)
TOKENS = (0, 1, 37)


class MoeSuite(Fixtures):
    """The weighted sum over the chosen experts, on the device."""

    @pytest.mark.parametrize("gate", [SILU, CLAMPED, GPT_OSS_SWIGLU], ids=["silu", "clamped", "gpt-oss"])
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_moe_grid(
        self,
        backend: Backend,
        here: Device,
        device: torch.device,
        shape: tuple[int, int, int, int],
        gate: Gate,
    ) -> None:
        """Each shape with each gate is right, or refused; gpt-oss's has biases and interleaved rows."""
        experts, top_k, n, k = shape
        bias = gate.interleaved
        problem = posed(
            backend,
            Problem(op="moe", n=n, k=k, experts=experts, top_k=top_k, gate=gate, bias=bias, device=here),
        )
        if not takes(backend, problem):
            return
        layer = Layer.build(backend, device, problem)
        for m in TOKENS:
            x, (ids, weights) = random_x(m, k), random_routes(m, experts, top_k)
            got = layer.call(backend, x, ids, weights)
            assert got.dtype == x.dtype and got.device.type == device.type
            if m:
                layer.answer(backend, x, ids, weights).check(got, f"m={m}")
            else:
                assert got.shape == (0, k)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
    def test_moe_dtypes(
        self, backend: Backend, here: Device, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Each dtype that is offered; ids of 64 bits and router weights of another dtype do as well."""
        problem = posed(
            backend, Problem(op="moe", n=64, k=96, experts=4, top_k=2, dtype=str(dtype)[6:], device=here)
        )
        if not takes(backend, problem):
            return
        layer, x, (ids, weights) = (
            Layer.build(backend, device, problem),
            random_x(20, 96, dtype),
            random_routes(20, 4, 2),
        )
        for factors in (weights, weights.to(torch.bfloat16)):
            got = layer.call(backend, x, ids.to(torch.int64), factors)
            assert got.dtype == dtype
            layer.answer(backend, x, ids, factors).check(got)

    def test_moe_nan_stays_in_its_token(self, backend: Backend, here: Device, device: torch.device) -> None:
        """A NaN activation makes its own token NaN, and no other, whatever the clamp does."""
        for gate in (SILU, CLAMPED):
            problem = posed(
                backend, Problem(op="moe", n=64, k=96, experts=4, top_k=2, gate=gate, device=here)
            )
            if not takes(backend, problem):
                continue
            layer, x, (ids, weights) = (
                Layer.build(backend, device, problem),
                random_x(6, 96),
                random_routes(6, 4, 2),
            )
            x[3, 50] = torch.nan
            got = layer.call(backend, x, ids, weights)
            assert bool(got[3].isnan().all())
            layer.answer(backend, x, ids, weights).check(got)

    def test_moe_the_same_twice(self, backend: Backend, here: Device, device: torch.device) -> None:
        """The same input gives the same bits, also where many tokens meet in one sum."""
        problem = posed(backend, Problem(op="moe", n=96, k=256, experts=8, top_k=4, device=here))
        if not takes(backend, problem):
            return
        layer, x, routes = Layer.build(backend, device, problem), random_x(65, 256), random_routes(65, 8, 4)
        first = layer.call(backend, x, *routes)
        assert all(torch.equal(layer.call(backend, x, *routes), first) for _ in range(3))

    def test_moe_strides_and_leading_axes(self, backend: Backend, here: Device, device: torch.device) -> None:
        """Views with gaps and batches give what the plain matrices give."""
        problem = posed(backend, Problem(op="moe", n=64, k=96, experts=4, top_k=2, device=here))
        if not takes(backend, problem):
            return
        layer, x, (ids, weights) = (
            Layer.build(backend, device, problem),
            random_x(12, 96),
            random_routes(12, 4, 2),
        )
        want = layer.call(backend, x, ids, weights)
        gaps = layer.call(backend, x.T.contiguous().T, ids.T.contiguous().T, weights.T.contiguous().T)
        assert torch.equal(gaps, want)
        batch = layer.call(backend, x.view(3, 4, 96), ids.view(3, 4, 2), weights.view(3, 4, 2))
        assert torch.equal(batch, want.view(3, 4, 96))

    def test_moe_wrong_inputs_are_refused(self, backend: Backend, here: Device, device: torch.device) -> None:
        """Sizes that do not belong together and swapped arguments are errors of ours."""
        problem = posed(backend, Problem(op="moe", n=64, k=96, experts=4, top_k=2, device=here))
        if not takes(backend, problem):
            return
        layer, x, (ids, weights) = (
            Layer.build(backend, device, problem),
            random_x(6, 96),
            random_routes(6, 4, 2),
        )
        for arguments in ((x[:, :64], ids, weights), (x, ids[:5], weights), (x, ids, weights[:, :1])):
            with pytest.raises(ShapeError):
                layer.call(backend, *arguments)
        for arguments in ((x, weights, ids), (x.double(), ids, weights), (x.to(torch.int8), ids, weights)):
            with pytest.raises(FormatError):
                layer.call(backend, *arguments)
