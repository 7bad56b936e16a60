"""Wrong linear layers."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mxfp4_core.backend import Packed, Problem, Verdict, Yes
from mxfp4_core.backend.reference.backend import ReferenceBackend
from mxfp4_core.testing.suite_large import LINEAR
from wrong_backends.base import ZeroOfByteZero, caught_by, with_tensors


def without_bias(weight: Packed) -> Packed:
    kept = {name: tensor for name, tensor in weight.tensors.items() if name != "bias"}
    return Packed(weight.layout, kept, weight.shape)


@caught_by("test_linear_grid", n=32, k=32)
class NibblesSwapped(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        codes = weight.tensors["codes"]
        return super().linear(x, with_tensors(weight, codes=(codes >> 4) | (codes << 4)), problem)


@caught_by("test_linear_grid", n=32, k=360)
class LastScaleOfARowForgotten(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        scales = weight.tensors["scales"].clone()
        scales[:, problem.k // 32 :] = 127
        return super().linear(x, with_tensors(weight, scales=scales), problem)


@caught_by("test_linear_dtypes_and_bias", dtype=torch.bfloat16, bias=True)
class BiasDropped(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        return super().linear(x, without_bias(weight), problem)


@caught_by("test_linear_quantised_activations", word="mxfp4", bias=True)
class BiasOfAQuantisedLinearDropped(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        kept = weight if problem.activation == "none" else without_bias(weight)
        return super().linear(x, kept, problem)


@caught_by("test_linear_grid", n=130, k=288)
class Bfloat16Sum(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        half = x.shape[1] // 64 * 32
        first, second = x.clone(), x.clone()
        first[:, half:], second[:, :half] = 0, 0
        return super().linear(first, weight, problem) + super().linear(second, without_bias(weight), problem)


@caught_by("test_sums_are_as_precise_as_stated", op="linear")
class SumInPiecesOf16Bits(Bfloat16Sum):
    sound = ReferenceBackend


@caught_by("test_linear_dtypes_and_bias", dtype=torch.float32, bias=False)
class Float32ThroughBfloat16(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        return super().linear(x.bfloat16().to(x.dtype), weight, problem)


@caught_by("test_linear_dtypes_and_bias", dtype=torch.float16, bias=False)
class Float16ThroughBfloat16(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        return super().linear(x.bfloat16().to(x.dtype), weight, problem)


@caught_by("test_linear_grid", n=32, k=32)
class LateTileIsZero(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        out = super().linear(x, weight, problem)
        out[256:] = 0
        return out


@caught_by("test_linear_grid", n=32, k=32)
class OneTokenTakesAnotherPath(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        out = super().linear(x, weight, problem)
        return out * 2 if x.shape[0] == 1 else out


@caught_by("test_large_linear", word="none", sizes=LINEAR["many tokens"])
class TokensFrom1025AreZero(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        out = super().linear(x, weight, problem)
        out[1024:] = 0
        return out


@caught_by("test_large_linear", word="none", sizes=LINEAR["more tokens than 16 bits"])
class TokensFrom65536AreZero(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        out = super().linear(x, weight, problem)
        out[65536:] = 0
        return out


@caught_by("test_large_linear", word="none", sizes=LINEAR["long rows"])
class ColumnsFrom4097AreIgnored(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        cut = x.clone()
        cut[:, 4096:] = 0
        return super().linear(cut, weight, problem)


@caught_by("test_large_linear", word="none", sizes=LINEAR["more features than 16 bits"])
class FeaturesFrom65536AreZero(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        out = super().linear(x, weight, problem)
        out[:, 65536:] = 0
        return out


@caught_by("test_linear_ends_of_the_scale", byte=0)
class ByteZeroIsZero(ZeroOfByteZero):
    numerics = ReferenceBackend.numerics


@caught_by("test_linear_ends_of_the_scale", byte=0)
class ByteZeroMakesItsNeighbourZero(ZeroOfByteZero):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        out = super().linear(x, weight, problem)
        out[:, 8] = 0
        return out


@caught_by("test_linear_ends_of_the_scale", byte=0)
class SaysThatByteZeroIsZero(ReferenceBackend):
    numerics = replace(ReferenceBackend.numerics, scale_byte_0="zero")


@caught_by("test_linear_ends_of_the_scale", byte=255)
class Byte255IsFinite(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        return super().linear(
            x, with_tensors(weight, scales=weight.tensors["scales"].clamp(max=254)), problem
        )


@caught_by("test_linear_nan_stays_in_its_row")
class NanHidden(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        return super().linear(x.nan_to_num(), weight, problem)


@caught_by("test_linear_quantised_activations", word="mxfp4", bias=False)
class ActivationsNotQuantised(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        return super().linear(x, weight, replace(problem, activation="none"))


@caught_by("test_linear_quantised_activations", word="mxfp4", bias=False)
class ActivationsByAnotherRule(ReferenceBackend):
    numerics = replace(ReferenceBackend.numerics, activation_profile="rceil/even")

    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        return ReferenceBackend().linear(x, weight, problem)


@caught_by("test_linear_quantised_activations_that_are_not_finite", word="mxfp4", value=torch.nan)
class NanUnderQuantisedActivationsIsZero(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        return super().linear(x if problem.activation == "none" else x.nan_to_num(), weight, problem)


@caught_by("test_linear_quantised_activations_that_are_not_finite", word="mxfp4", value=-torch.inf)
class InfinityUnderQuantisedActivationsSaturates(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        kept = x if problem.activation == "none" else x.clamp(-6.0, 6.0)
        return super().linear(torch.where(x.isinf(), kept, x), weight, problem)


@caught_by("test_linear_the_same_twice")
class Unstable(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        return super().linear(x, weight, problem) + torch.randn(()).mul(0.1).to(x.dtype)


@caught_by("test_linear_grid", n=32, k=32)
class ResultIsFloat32(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        return super().linear(x, weight, problem).float()


@caught_by("test_linear_grid", n=32, k=32)
class ResultIsOnAnotherDevice(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        return super().linear(x, weight, problem).to("meta")


@caught_by("test_linear_calls_leave_no_trace")
class WritesIntoX(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        out = super().linear(x, weight, problem)
        x.zero_()
        return out


@caught_by("test_linear_calls_leave_no_trace")
class WritesIntoTheWeight(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        out = super().linear(x, weight, problem)
        weight.tensors["scales"][0, 0] += 1
        return out


@caught_by("test_linear_calls_leave_no_trace")
class ReturnsItsWorkspace(ReferenceBackend):
    memory = torch.empty(0)

    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        out = super().linear(x, weight, problem)
        if self.memory.numel() < out.numel():
            self.memory = torch.empty(out.numel(), dtype=out.dtype)
        return self.memory[: out.numel()].view_as(out).copy_(out)


@caught_by("test_linear_calls_leave_no_trace")
class RemembersResultsByShape(ReferenceBackend):
    def __init__(self) -> None:
        self.results: dict[torch.Size, Tensor] = {}

    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        return self.results.setdefault(x.shape, super().linear(x, weight, problem))


@caught_by("test_module_second_load", kind="linear")
class RemembersWeightsByAddress(ReferenceBackend):
    def __init__(self) -> None:
        self.weights: dict[int, Packed] = {}

    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        copy = {name: tensor.clone() for name, tensor in weight.tensors.items()}
        address = weight.tensors["codes"].data_ptr()
        kept = self.weights.setdefault(address, Packed(weight.layout, copy, weight.shape))
        return super().linear(x, kept, problem)


@caught_by("test_linear_quantised_activations", word="auto", bias=False)
class SaysThatAutoQuantises(ReferenceBackend):
    def supports(self, problem: Problem) -> Verdict:
        chosen = "mxfp4" if problem.activation == "auto" else None
        return Yes(numerics=replace(self.numerics, activation=chosen))


@caught_by("test_linear_dtypes_and_bias", dtype=torch.bfloat16, bias=True)
class BiasOfOneTokenDropped(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        return super().linear(x, without_bias(weight) if x.shape[0] == 1 else weight, problem)


@caught_by("test_large_linear", word="none", sizes=LINEAR["many tokens"])
class BiasOfManyTokensDropped(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        return super().linear(x, without_bias(weight) if x.shape[0] > 1024 else weight, problem)


@caught_by("test_large_linear", word="mxfp4", sizes=LINEAR["long rows"])
class LongQuantisedRowsAreCut(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        cut = x.clone()
        cut[:, 4096 if problem.activation == "mxfp4" else x.shape[1] :] = 0
        return super().linear(cut, weight, problem)


@caught_by("test_linear_quantised_activations", word="mxfp4", bias=False)
class OneTokenIsNotQuantised(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        asked = replace(problem, activation="none") if x.shape[0] == 1 else problem
        return super().linear(x, weight, asked)
