"""What the suite of a format asks of its parts: bytes, targets, strides, other dtypes and processes.

`FormatConformance` inherits this; ``format`` and ``format_name`` are its.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import pytest
import torch
from torch import Tensor

from mxfp4_core import MxTensor, quantize, quantize_into
from mxfp4_core.arithmetic import Format, Part
from mxfp4_core.testing.hard_weights import hard_weights

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SHAPES: tuple[tuple[int, ...], ...] = ((), (5,), (3, 4), (2, 3, 2))
"""What stands before K."""


class PartsSuite:
    """Every byte is where it belongs, and nowhere else."""

    format_name: ClassVar[str]

    def reference(self, weight: Tensor, profile: str) -> Mapping[str, Tensor] | None:
        """Return the parts of the weight that a slow and obvious quantizer makes, or None: there is none.

        Args:
            weight: bfloat16, float16 or float32 ``[n, K]``, K a multiple of the block; some blocks are not finite.
            profile: one of the profiles of the format.
        """
        return None

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_bytes_are_those_of_the_reference(self, format: Format, dtype: torch.dtype) -> None:
        """For every profile, on weights that are hard to quantise; nothing to compare with passes."""
        weight = hard_weights(dtype, max(format.block, 512))[::4]
        for profile in format.profiles:
            if (allowed := format.resolve(profile).dtypes) and dtype not in allowed:
                continue
            want = self.reference(weight, profile)
            if want is None:
                return
            made = quantize(weight, format=format.name, profile=profile, nonfinite="nan")
            for part in format.weight_parts:
                assert same(made.parts[part.name], want[part.name]), f"{profile}: {part.name} differ"

    @pytest.mark.parametrize("rows", SHAPES, ids=str)
    def test_shapes_and_bytes(self, format: Format, rows: tuple[int, ...]) -> None:
        """``empty`` makes what ``shapes`` and ``nbytes`` say, for whole blocks and for a tail."""
        taken = {*dir(MxTensor), "shape", "profile", "format", "parts"}
        assert not taken & {part.name for part in format.parts}, (
            "a part has the name of an attribute of MxTensor"
        )
        for k in (format.block, format.block + 1, 3 * format.block - 1):
            parts = format.empty((*rows, k))
            whole = -(-k // format.block) * format.block
            for part in format.parts:
                lead = rows if part.operand == "weight" else ()
                assert tuple(parts[part.name].shape) == (*lead, whole // part.values)
                assert parts[part.name].dtype is part.torch_dtype
                if part.operand == "input":
                    assert bool((parts[part.name] == part.fill).all())
            assert {name: tuple(part.shape) for name, part in parts.items()} == format.shapes((*rows, k))
            assert sum(part.nbytes for part in parts.values()) == format.nbytes((*rows, k))
            format.check(parts)

    def test_slices_are_written_in_place(self, format: Format) -> None:
        """Targets may be slices with any strides; nothing beside them is touched."""
        weight = self._weight(format, 4)
        want = quantize(weight, format=format.name)
        for step in (1, 2):
            for guard, larger in self._larger(format, step):
                slices = {p.name: _inside(larger[p.name], p, format, step) for p in format.weight_parts}
                quantize_into(weight, slices, format=format.name)
                for part in format.weight_parts:
                    assert same(slices[part.name], want.parts[part.name]), f"{part.name} were not written"
                    slices[part.name].view(torch.uint8).fill_(guard)
                    touched = larger[part.name].view(torch.uint8) != guard
                    assert not bool(touched.any()), f"{part.name} were written outside of the slice"

    def test_strides_do_not_matter(self, format: Format) -> None:
        """A transposed weight, a slice, a stack and one row give the bytes of a contiguous copy."""
        square = torch.randn(2 * format.block, 2 * format.block, generator=_generator(3))
        stack = square.view(2, format.block, -1)[:, :4]
        for weight in (square.T[:8], square[::3][:8], square[:8, format.block :], square[0], stack):
            made = quantize(weight, format=format.name)
            want = quantize(weight.clone(memory_format=torch.contiguous_format), format=format.name)
            assert all(same(made.parts[name], part) for name, part in want.parts.items())

    def test_threads_do_not_matter(self, format: Format) -> None:
        """Their number changes no byte."""
        weight = torch.randn(1100, 1024, generator=_generator(4))[:, : format.block * (1024 // format.block)]
        one, two = (quantize(weight, format=format.name, threads=threads) for threads in (1, 2))
        assert all(same(part, two.parts[name]) for name, part in one.parts.items())

    def test_finite_weights_make_no_nan(self, format: Format) -> None:
        """Of any size and dtype, by the default profile."""
        for dtype in DTYPES:
            if (allowed := format.resolve().dtypes) and dtype not in allowed:
                continue
            weight = hard_weights(dtype, max(format.block, 512))[::4]
            weight = torch.where(torch.isfinite(weight), weight, 1)
            made = quantize(weight, format=format.name)
            assert not bool(made.dequantize(torch.float64).isnan().any()), str(dtype)

    def test_values_in_every_dtype(self, format: Format) -> None:
        """They are the exact ones, rounded to float32 and then to the dtype."""
        made = quantize(self._weight(format, 4), format=format.name)
        exact = format.dequantize(made.parts, torch.float64)
        for dtype in DTYPES:
            values = format.dequantize(made.parts, dtype)
            assert values.dtype is dtype and torch.equal(values, exact.to(torch.float32).to(dtype))

    def test_torch_dtypes_are_views(self, format: Format) -> None:
        """``as_torch`` copies nothing, what it gives makes the same tensor, and tensors move between devices."""
        made = quantize(self._weight(format, 4), format=format.name)
        views = made.as_torch()
        assert [view.data_ptr() for view in views] == [part.data_ptr() for part in made.parts.values()]
        named = {part.name: view for part, view in zip(format.parts, views, strict=True)}
        again = MxTensor.from_parts(format, named, made.shape)
        assert all(same(again.parts[name], part) for name, part in made.parts.items())
        assert made.to("meta").device.type == "meta"

    def _weight(self, format: Format, rows: int) -> Tensor:
        size = torch.tensor([2.0**-24, 1.0, 2.0**24]).repeat_interleave(format.block)  # beyond float16
        return torch.randn(rows, 3 * format.block, generator=_generator(rows)) * 0.02 * size

    def _larger(self, format: Format, step: int) -> Iterator[tuple[Literal[0, 119], dict[str, Tensor]]]:
        for guard in (0, 119):
            larger = format.empty((4 * step + 2, 5 * format.block))
            for part in larger.values():
                part.view(torch.uint8).fill_(guard)
            yield guard, larger


def same(one: Tensor, two: Tensor) -> bool:
    """Compare bits: NaN equals itself."""
    return one.shape == two.shape and one.dtype == two.dtype and torch.equal(_bits(one), _bits(two))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def _inside(tensor: Tensor, part: Part, format: Format, step: int) -> Tensor:
    each = format.block // part.values
    return tensor[1 : 1 + 4 * step : step, each : 4 * each]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


__all__ = ["PartsSuite", "same"]
