"""Wrong layouts: bytes are lost, moved, shared, or different each time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mxfp4_core import MxTensor
from mxfp4_core.arithmetic import Alignment
from mxfp4_core.backend import SILU, Layout, Matrix, Numerics, Packed, Problem
from mxfp4_core.backend.reference.backend import CanonicalLayout, ReferenceBackend
from mxfp4_core.errors import FormatError
from mxfp4_core.testing.emulated import EmulatedBackend, TileLayout
from mxfp4_core.testing.samples import without_minus_zero
from mxfp4_core.testing.suite_layout import LINEAR, MOE
from wrong_backends.base import caught_by

EXPERTS = MOE[0]
Failed = pytest.fail.Exception


class Truncating(CanonicalLayout):
    """Floors where it should refuse."""

    id = "truncating"
    alignment = Alignment(n=16, k=64)

    def pack(self, weight: MxTensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        n, k = weight.shape[-2] // 16 * 16, weight.shape[-1] // 64 * 64
        return {"codes": weight.codes[..., :n, : k // 2], "scales": weight.scales[..., :n, : k // 32]}


@caught_by("test_layout_misaligned_weights_are_refused", raises=Failed, sizes=LINEAR[1])
class LayoutTruncates(ReferenceBackend):
    def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
        return Truncating()


class ScalesTurned(TileLayout):
    def unpack(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> MxTensor:
        whole = super().unpack(tensors, shape)
        return MxTensor(whole.codes, whole.scales.flip(-1), whole.shape)


@caught_by("test_layout_unpack_gives_back_what_was_packed", sizes=LINEAR[4])
class UnpackForgetsAStep(EmulatedBackend):
    def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
        tile = self._tile(problem, matrix)
        return ScalesTurned(tile.rows, tile.halves)


@caught_by("test_module_gradients", kind="linear")
class GradientOfAnotherWeight(EmulatedBackend):
    def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
        tile = self._tile(problem, matrix)
        return ScalesTurned(tile.rows, tile.halves)


@caught_by("test_module_gradients", kind="moe")
class GradientOfOtherHalves(EmulatedBackend):
    def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
        tile = self._tile(problem, matrix)
        return HalvesForgotten(tile.rows, tile.halves)


class HalvesForgotten(TileLayout):
    def unpack(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> MxTensor:
        return TileLayout(self.rows).unpack(tensors, shape)


@caught_by("test_layout_unpack_gives_back_what_was_packed", sizes=EXPERTS)
class UnpackLeavesUpFirst(EmulatedBackend):
    def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
        tile = self._tile(problem, matrix)
        return HalvesForgotten(tile.rows, tile.halves)


class MinusZeroLost(CanonicalLayout):
    def pack(self, weight: MxTensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        return {**super().pack(weight, bias), "codes": without_minus_zero(weight.codes)}


@caught_by("test_layout_every_byte_survives")
class MinusZeroDropped(ReferenceBackend):
    def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
        return MinusZeroLost()


@caught_by("test_layout_every_byte_survives")
class SaysThatMinusZeroIsDropped(ReferenceBackend):
    numerics = replace(ReferenceBackend.numerics, minus_zero="dropped")


@caught_by("test_layout_scale_bytes_out_of_range_are_refused", raises=Failed, sizes=LINEAR[1])
class SaysThatByteZeroIsRefused(EmulatedBackend):
    numerics = Numerics(emulated=True, scale_byte_255="refused", scale_bytes=(1, 254))


class FirstExpertOnly(CanonicalLayout):
    def pack(self, weight: MxTensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        first = weight.scales if weight.scales.dim() == 2 else weight.scales[0]
        if bool((first > 200).any()):
            raise FormatError("packing", seen="a scale byte over 200", rule="0 to 200", fix="quantise again")
        return super().pack(weight, bias)


class ScalesOfTheFirstExpert(ReferenceBackend):
    numerics = replace(ReferenceBackend.numerics, scale_bytes=(0, 200), scale_byte_255="refused")

    def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
        return FirstExpertOnly()


@caught_by("test_layout_scale_bytes_out_of_range_are_refused", raises=Failed, sizes=EXPERTS)
class ScaleRangeOfTheFirstExpertOnly(ScalesOfTheFirstExpert):
    sound = ReferenceBackend


@caught_by("test_layout_byte_255", raises=Failed, sizes=EXPERTS)
class NanScalesOfTheFirstExpertOnly(ScalesOfTheFirstExpert):
    sound = ReferenceBackend


class OneId(TileLayout):
    @property
    def id(self) -> str:
        return "tiles"


@caught_by("test_layout_of_one_id_is_one_layout", sizes=EXPERTS)
class TwoLayoutsOfOneId(EmulatedBackend):
    def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
        tile = self._tile(problem, matrix)
        return OneId(tile.rows, tile.halves)


class Nameless(CanonicalLayout):
    id = ""


@caught_by("test_layout_layout_is_named_and_sane", sizes=LINEAR[0])
class LayoutWithoutAName(ReferenceBackend):
    def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
        return Nameless()


class Unfilled(TileLayout):
    def pack(self, weight: MxTensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        packed = super().pack(weight, bias)
        padding = packed["scale_blob"][..., 3, :]
        padding.copy_(torch.randint(0, 256, padding.shape, dtype=torch.uint8))
        return packed


@caught_by("test_layout_unpack_gives_back_what_was_packed", sizes=LINEAR[4])
class PaddingIsWhateverWasThere(EmulatedBackend):
    def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
        tile = self._tile(problem, matrix)
        return Unfilled(tile.rows, tile.halves)


class Shuffling(CanonicalLayout):
    def pack(self, weight: MxTensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        codes = weight.codes
        codes.copy_((codes >> 4) | (codes << 4))
        return super().pack(weight, bias)

    def unpack(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> MxTensor:
        codes = tensors["codes"]
        return super().unpack({**tensors, "codes": (codes >> 4) | (codes << 4)}, shape)


@caught_by("test_layout_unpack_gives_back_what_was_packed", sizes=LINEAR[1])
class PackWritesIntoItsSource(ReferenceBackend):
    def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
        return Shuffling()


class BiasUnturned(TileLayout):
    def pack(self, weight: MxTensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        packed = super().pack(weight, bias)
        return packed if bias is None else {**packed, "bias": bias}


@caught_by("test_moe_gates_and_biases", form=SILU, bias=True)
class BiasStaysInTheOldOrder(EmulatedBackend):
    def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
        tile = self._tile(problem, matrix)
        return BiasUnturned(tile.rows, tile.halves)


class OtherInPlace(CanonicalLayout):
    def pack_in_place(self, weight: MxTensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        weight.scales[..., -1] = 127
        return self.pack(weight, bias)


@caught_by("test_module_made_in_the_memory_of_its_bytes", kind="linear")
class PackInPlaceLosesTheLastScales(ReferenceBackend):
    def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
        return OtherInPlace()


class Marking(CanonicalLayout):
    def pack(self, weight: MxTensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        packed = {**super().pack(weight, bias), "codes": weight.codes.clone()}
        packed["codes"].is_shuffled = True  # type: ignore[attr-defined]
        return packed


@caught_by("test_linear_calls_leave_no_trace", raises=AttributeError)
class MarksHangOnTensors(ReferenceBackend):
    def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
        return Marking()

    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        codes: Any = weight.tensors["codes"]
        return super().linear(x, weight, problem) if codes.is_shuffled else x
