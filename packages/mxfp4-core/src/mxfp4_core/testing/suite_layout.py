"""Layouts: pack and unpack are inverse, byte for byte, on the CPU."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mxfp4_core.arithmetic import Alignment, MxTensor
from mxfp4_core.backend import (
    GPT_OSS_SWIGLU,
    SILU,
    Backend,
    Device,
    Layout,
    Matrix,
    Problem,
    calls,
    numerics_for,
)
from mxfp4_core.errors import FormatError, ShapeError
from mxfp4_core.testing.fixtures import Fixtures, accepts, ordinary, posed
from mxfp4_core.testing.samples import had_back, random_biases, random_weight

LINEAR = [
    {"op": "linear", "n": n, "k": k}
    for n, k in [(1, 32), (32, 96), (130, 160), (130, 360), (257, 1664), (512, 2048)]
]
MOE = [
    {"op": "moe", "n": n, "k": k, "experts": 3, "top_k": 2, "gate": gate, "bias": True}
    for n, k, gate in [(32, 64, SILU), (90, 160, SILU), (90, 160, GPT_OSS_SWIGLU), (256, 512, SILU)]
]


def _name(sizes: dict[str, Any]) -> str:
    return "-".join(str(sizes[key]) for key in ("op", "n", "k")) + (
        "-interleaved" if "gate" in sizes and sizes["gate"].interleaved else ""
    )


class LayoutSuite(Fixtures):
    """How a backend stores a weight."""

    @pytest.mark.parametrize("sizes", LINEAR + MOE, ids=_name)
    def test_layout_unpack_gives_back_what_was_packed(
        self, backend: Backend, made_for: Device, sizes: dict[str, Any]
    ) -> None:
        """With padding, through copies that lose every mark, without touching the source."""
        problem = posed(backend, Problem(device=made_for, **sizes))
        if not accepts(backend, problem):
            return
        for (matrix, shape), bias in zip(calls.shapes(problem).items(), random_biases(problem), strict=True):
            weight = random_weight(*shape, seed=sum(shape), scales=backend.numerics.scale_bytes)
            before = weight.codes.clone(), weight.scales.clone()
            packed = calls.pack(backend, problem, weight, bias, matrix)
            copies = {name: tensor.clone() for name, tensor in packed.tensors.items()}
            twice = calls.pack(backend, problem, weight, bias, matrix).tensors
            assert copies.keys() == twice.keys()
            for name, tensor in twice.items():
                bytes_ = tensor.contiguous().view(torch.uint8), copies[name].contiguous().view(torch.uint8)
                assert torch.equal(*bytes_), f"{packed.layout}: {name} is packed into other bytes each time"
            again = calls.unpack(backend, problem, type(packed)(packed.layout, copies, packed.shape), matrix)
            codes = had_back(backend, "codes", weight.codes)
            assert again.shape == weight.shape
            assert torch.equal(again.codes, codes), f"{packed.layout}: codes differ"
            assert torch.equal(again.scales, weight.scales), f"{packed.layout}: scales differ"
            assert torch.equal(before[0], weight.codes) and torch.equal(before[1], weight.scales)

    @pytest.mark.parametrize("sizes", LINEAR + MOE, ids=_name)
    def test_layout_layout_is_named_and_sane(
        self, backend: Backend, made_for: Device, sizes: dict[str, Any]
    ) -> None:
        """A layout has a name that stays, an alignment, and an unpack that refuses the tensors of another layout."""
        problem = posed(backend, Problem(device=made_for, **sizes))
        if not accepts(backend, problem):
            return
        for matrix, shape in calls.shapes(problem).items():
            layout = backend.layout(problem, matrix)
            assert layout.id and layout.id == backend.layout(problem, matrix).id
            assert isinstance(layout.alignment, Alignment)
            packed = calls.pack(backend, problem, random_weight(*shape), None, matrix)
            assert packed.tensors and all(
                isinstance(tensor, torch.Tensor) for tensor in packed.tensors.values()
            )
            other = type(packed)("another layout", packed.tensors, packed.shape)
            with pytest.raises(FormatError, match="another layout"):
                calls.unpack(backend, problem, other, matrix)

    def test_layout_every_byte_survives(self, backend: Backend, made_for: Device) -> None:
        """All 256 code bytes beside all scale bytes that the device can represent."""
        problem = ordinary(backend, made_for, "linear" if "linear" in backend.features else "moe")
        matrix: Matrix = "weight" if problem.op == "linear" else "down"
        shape = calls.shapes(problem)[matrix]
        weight = random_weight(*shape)
        codes = torch.arange(weight.codes.numel(), dtype=torch.int64).to(torch.uint8).view_as(weight.codes)
        low, high = backend.numerics.scale_bytes
        cycle = low + torch.arange(weight.scales.numel()) % (high + 1 - low)
        scales = cycle.to(torch.uint8).view_as(weight.scales)
        packed = calls.pack(backend, problem, MxTensor(codes, scales, weight.shape), None, matrix)
        again = calls.unpack(backend, problem, packed, matrix)
        assert torch.equal(again.codes, had_back(backend, "codes", codes))
        assert torch.equal(again.scales, scales)

    @pytest.mark.parametrize("sizes", LINEAR[:1] + MOE[:1], ids=_name)
    def test_layout_misaligned_weights_are_refused(
        self, backend: Backend, made_for: Device, sizes: dict[str, Any]
    ) -> None:
        """A layout refuses what it would cut, since vendor kernels do not."""
        problem = posed(backend, Problem(device=made_for, **sizes))
        if not accepts(backend, problem):
            return
        for matrix, shape in calls.shapes(problem).items():
            layout = backend.layout(problem, matrix)
            n, k = layout.alignment.n, layout.alignment.k
            halves = 2 if matrix == "gate_up" else 1
            wrong = [(n + 1, k)] if n > 1 else []
            wrong += [(n, k + 32)] if k > 32 else []
            for rows, columns in wrong:
                with pytest.raises(ShapeError):
                    layout.pack(random_weight(*shape[:-2], halves * rows, columns))

    def test_layout_wrong_shapes_are_refused(self, backend: Backend, made_for: Device) -> None:
        """The weight of another layer does not slip in."""
        problem = posed(backend, Problem(op="linear", n=64, k=128, bias=True, device=made_for))
        if not accepts(backend, problem):
            return
        for weight, bias in [
            (random_weight(128, 64), 64),
            (random_weight(64, 128), 128),
            (random_weight(2, 64, 128), 64),
        ]:
            with pytest.raises(ShapeError):
                calls.pack(backend, problem, weight, torch.zeros(bias))

    @pytest.mark.parametrize("sizes", MOE[:1] + MOE[2:3], ids=_name)
    def test_layout_of_one_id_is_one_layout(
        self, backend: Backend, made_for: Device, sizes: dict[str, Any]
    ) -> None:
        """Sizes and matrices whose layouts share an id store the same weight as the same bytes.

        A packed tensor is known by the id alone, so a variant without an id of its own is read wrongly one day.
        """
        found: dict[str, list[Layout]] = {}
        wanted = [
            posed(backend, Problem(device=made_for, **sizes | {"n": n, "k": n})) for n in (32, 192, 1024)
        ]
        linear = [posed(backend, Problem(op="linear", n=n, k=n, device=made_for)) for n in (32, 192, 1024)]
        for problem in filter(lambda one: accepts(backend, one), wanted + linear):
            for matrix in calls.shapes(problem):
                layout = backend.layout(problem, matrix)
                found.setdefault(layout.id, []).append(layout)
        for name, layouts in found.items():
            n = 2 * math.lcm(*(layout.alignment.n for layout in layouts))
            k = math.lcm(32, *(layout.alignment.k for layout in layouts))
            weight = random_weight(n, k, scales=(119, 122))
            first, *others = (layout.pack(weight) for layout in layouts)
            for other in others:
                assert first.keys() == other.keys() and all(
                    torch.equal(first[key], other[key]) for key in first
                ), f"two layouts have the id {name!r}"

    @pytest.mark.parametrize("sizes", LINEAR[1:2] + MOE[:1], ids=_name)
    def test_layout_scale_bytes_out_of_range_are_refused(
        self, backend: Backend, made_for: Device, sizes: dict[str, Any]
    ) -> None:
        """A finite scale that the device cannot represent is an error in every matrix and expert."""
        problem = posed(backend, Problem(device=made_for, **sizes))
        if not accepts(backend, problem):
            return
        low, high = numerics_for(backend, problem).scale_bytes
        assert 0 <= low <= 127 <= high <= 254
        for byte in {max(low - 1, 0), min(high + 1, 254)} - {low, high}:
            for matrix, shape in calls.shapes(problem).items():
                weight = random_weight(*shape)
                weight.scales.view(-1)[-1] = byte
                with pytest.raises(FormatError):
                    calls.pack(backend, problem, weight, None, matrix)

    @pytest.mark.parametrize("sizes", LINEAR[1:2] + MOE[:1], ids=_name)
    def test_layout_byte_255(self, backend: Backend, made_for: Device, sizes: dict[str, Any]) -> None:
        """A backend that cannot represent NaN scales refuses them when it packs, in every matrix and expert."""
        problem = posed(backend, Problem(device=made_for, **sizes))
        if not accepts(backend, problem):
            return
        for matrix, shape in calls.shapes(problem).items():
            weight = random_weight(*shape)
            weight.scales.view(-1)[-1] = 255
            if numerics_for(backend, problem).scale_byte_255 == "refused":
                with pytest.raises(FormatError):
                    calls.pack(backend, problem, weight, None, matrix)
            else:
                again = calls.unpack(
                    backend, problem, calls.pack(backend, problem, weight, None, matrix), matrix
                )
                assert torch.equal(again.scales, weight.scales)
