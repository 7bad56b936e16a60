"""Wrong gates, biases and scales of experts. `Steps` is the sound backend behind most of them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mxfp4_core.backend import GPT_OSS_SWIGLU, SILU, Gate, Packed, Problem, Verdict, Yes
from mxfp4_core.testing.suite_gates import GATES
from wrong_backends.base import Steps, caught_by

LIMITED = GATES["limit-10"]


@caught_by("test_moe_gate_values", form=LIMITED)
class LimitIgnored(Steps):
    def clamp(self, gate: Tensor, up: Tensor, limit: float) -> tuple[Tensor, Tensor]:
        return gate, up


@caught_by("test_moe_gate_values", form=LIMITED)
class LimitOfTheGateIgnored(Steps):
    def clamp(self, gate: Tensor, up: Tensor, limit: float) -> tuple[Tensor, Tensor]:
        return gate, up.clamp(-limit, limit)


@caught_by("test_moe_gate_values", form=GPT_OSS_SWIGLU)
class LimitOfUpIgnored(Steps):
    def clamp(self, gate: Tensor, up: Tensor, limit: float) -> tuple[Tensor, Tensor]:
        return gate.clamp(max=limit), up


@caught_by("test_moe_gate_values", form=GPT_OSS_SWIGLU)
class UpIsLimitedAboveOnly(Steps):
    def clamp(self, gate: Tensor, up: Tensor, limit: float) -> tuple[Tensor, Tensor]:
        return gate.clamp(max=limit), up.clamp(max=limit)


@caught_by("test_moe_gate_values", form=LIMITED)
class UpIsLimitedBelowOnly(Steps):
    def clamp(self, gate: Tensor, up: Tensor, limit: float) -> tuple[Tensor, Tensor]:
        return gate.clamp(max=limit), up.clamp(min=-limit)


@caught_by("test_moe_gate_values", form=LIMITED)
class GateIsLimitedBelowToo(Steps):
    def clamp(self, gate: Tensor, up: Tensor, limit: float) -> tuple[Tensor, Tensor]:
        return gate.clamp(-limit, limit), up.clamp(-limit, limit)


@caught_by("test_moe_gate_values", form=LIMITED)
class LimitIsAlwaysSeven(Steps):
    def clamp(self, gate: Tensor, up: Tensor, limit: float) -> tuple[Tensor, Tensor]:
        return super().clamp(gate, up, 7.0)


@caught_by("test_moe_gate_values", form=GPT_OSS_SWIGLU)
class LimitAfterTheOffset(Steps):
    def clamp(self, gate: Tensor, up: Tensor, limit: float) -> tuple[Tensor, Tensor]:
        return gate.clamp(max=limit), (up + 1).clamp(-limit, limit) - 1


@caught_by("test_moe_gate_values", form=GPT_OSS_SWIGLU)
class AlphaIgnored(Steps):
    def moe(self, x, gate_up, down, routes, problem):  # type: ignore[no-untyped-def]
        return super().moe(x, gate_up, down, routes, replace(problem, gate=replace(problem.gate, alpha=1.0)))


@caught_by("test_moe_gate_values", form=GATES["gpt-oss-halves"])
class OffsetIgnored(Steps):
    def moe(self, x, gate_up, down, routes, problem):  # type: ignore[no-untyped-def]
        return super().moe(
            x, gate_up, down, routes, replace(problem, gate=replace(problem.gate, up_offset=0.0))
        )


@caught_by("test_moe_gate_values", form=GATES["silu-interleaved"])
class InterleavedRowsOnlyWithAnOffset(Steps):
    def halves(self, both: Tensor, form: Gate) -> tuple[Tensor, Tensor]:
        return super().halves(both, replace(form, interleaved=form.interleaved and form.up_offset > 0))


@caught_by("test_moe_gate_values", form=GATES["gpt-oss-halves"])
class OffsetMeansInterleavedRows(Steps):
    def halves(self, both: Tensor, form: Gate) -> tuple[Tensor, Tensor]:
        return super().halves(both, replace(form, interleaved=form.interleaved or form.up_offset > 0))


@caught_by("test_moe_gate_values", form=GATES["gelu-tanh"])
class EveryFunctionIsSilu(Steps):
    def function(self, x: Tensor, form: Gate) -> Tensor:
        return super().function(x, replace(form, function="silu"))


@caught_by("test_moe_gate_values", form=GATES["ungated-relu2"])
class WithoutAGateItIsSilu(Steps):
    def ungated(self, both: Tensor, form: Gate) -> Tensor:
        return super().ungated(both, replace(form, function="silu"))


@caught_by("test_moe_gate_values", form=GATES["gelu"])
class GeluByTanh(Steps):
    def function(self, x: Tensor, form: Gate) -> Tensor:
        near = form.function == "gelu"
        return super().function(x, replace(form, function="gelu_tanh") if near else form)


@caught_by("test_moe_gate_values", form=GATES["gelu-tanh"])
class TanhByErf(Steps):
    def function(self, x: Tensor, form: Gate) -> Tensor:
        near = form.function == "gelu_tanh"
        return super().function(x, replace(form, function="gelu") if near else form)


@caught_by("test_moe_gate_values", form=GATES["gelu"])
class GeluByASigmoid(Steps):
    def function(self, x: Tensor, form: Gate) -> Tensor:
        near = form.function == "gelu"
        return super().function(x, replace(form, function="silu", alpha=1.702) if near else form)


@caught_by("test_moe_gate_values", form=GATES["relu2"])
class NotSquared(Steps):
    def function(self, x: Tensor, form: Gate) -> Tensor:
        near = form.function == "relu2"
        return super().function(x, replace(form, function="relu") if near else form)


@caught_by("test_moe_gate_values", form=GATES["relu2"])
class NegativesSquaredToo(Steps):
    def function(self, x: Tensor, form: Gate) -> Tensor:
        return x.square() if form.function == "relu2" else super().function(x, form)


@caught_by("test_moe_gate_values", form=GATES["ungated-gelu"])
class TimesItselfWithoutAGate(Steps):
    def ungated(self, both: Tensor, form: Gate) -> Tensor:
        return both * super().ungated(both, form)


@caught_by("test_moe_gate_values", form=GATES["ungated-quick-gelu"])
class AlphaOnlyWithAGate(Steps):
    def ungated(self, both: Tensor, form: Gate) -> Tensor:
        return super().ungated(both, replace(form, alpha=1.0))


@caught_by("test_moe_gates_and_biases", form=GATES["ungated-relu2"], bias=True)
class BiasOnlyWithAGate(Steps):
    def bias(self, packed: Packed, expert: int, matrix: str, problem: Problem) -> Tensor | float:
        left_out = matrix == "gate_up" and not problem.gate.gated
        return 0.0 if left_out else super().bias(packed, expert, matrix, problem)


@caught_by("test_moe_gate_values", form=GATES["gelu-tanh-limit-7-interleaved"])
class LimitOnlyOfSilu(Steps):
    def clamp(self, gate: Tensor, up: Tensor, limit: float) -> tuple[Tensor, Tensor]:
        return super().clamp(gate, up, 1000.0)


@caught_by("test_moe_grid", shape=(4, 2, 32, 64), gate=SILU)
class UpFirst(Steps):
    def halves(self, both: Tensor, form: Gate) -> tuple[Tensor, Tensor]:
        gate, up = super().halves(both, form)
        return up, gate


@caught_by("test_moe_nan_stays_in_its_token")
class NanClamped(Steps):
    def clamp(self, gate: Tensor, up: Tensor, limit: float) -> tuple[Tensor, Tensor]:
        return super().clamp(gate.nan_to_num(limit), up.nan_to_num(limit), limit)


@caught_by("test_moe_gates_and_biases", form=SILU, bias=True)
class BiasesOnlyWithAnOffset(Steps):
    def bias(self, packed: Packed, expert: int, matrix: str, problem: Problem) -> Tensor | float:
        return super().bias(packed, expert, matrix, problem) if problem.gate.up_offset else 0.0


@caught_by("test_moe_gates_and_biases", form=GATES["silu-interleaved"], bias=True)
class BiasIsNotInterleaved(Steps):
    def bias(self, packed: Packed, expert: int, matrix: str, problem: Problem) -> Tensor | float:
        bias = super().bias(packed, expert, matrix, problem)
        if matrix == "down" or isinstance(bias, float) or not problem.gate.interleaved:
            return bias
        return bias.view(-1, 2).T.reshape(-1)


@caught_by("test_moe_each_bias_of_each_expert", form=SILU)
class BiasOfTheLastExpertDropped(Steps):
    def bias(self, packed: Packed, expert: int, matrix: str, problem: Problem) -> Tensor | float:
        last = expert == problem.experts - 1 and expert > 0
        return 0.0 if last else super().bias(packed, expert, matrix, problem)


@caught_by("test_moe_each_bias_of_each_expert", form=SILU)
class DownBiasOfTheThirdExpertDropped(Steps):
    def bias(self, packed: Packed, expert: int, matrix: str, problem: Problem) -> Tensor | float:
        return 0.0 if expert == 2 and matrix == "down" else super().bias(packed, expert, matrix, problem)


@caught_by("test_moe_each_bias_of_each_expert", form=GPT_OSS_SWIGLU)
class GateUpBiasDropped(Steps):
    def bias(self, packed: Packed, expert: int, matrix: str, problem: Problem) -> Tensor | float:
        return 0.0 if matrix == "gate_up" else super().bias(packed, expert, matrix, problem)


@caught_by("test_moe_each_bias_of_each_expert", form=GPT_OSS_SWIGLU)
class DownBiasDropped(Steps):
    def bias(self, packed: Packed, expert: int, matrix: str, problem: Problem) -> Tensor | float:
        return 0.0 if matrix == "down" else super().bias(packed, expert, matrix, problem)


@caught_by("test_moe_quantised_activations", word="mxfp4", form=SILU, bias=True)
class BiasesDroppedWithQuantisedActivations(Steps):
    def bias(self, packed: Packed, expert: int, matrix: str, problem: Problem) -> Tensor | float:
        return super().bias(packed, expert, matrix, problem) if problem.activation == "none" else 0.0


@caught_by("test_moe_ends_of_the_scale", byte=0, place="gate", interleaved=False)
class ByteZeroOfGateUpIsZero(Steps):
    def values(self, codes: Tensor, scales: Tensor, matrix: str) -> Tensor:
        if matrix == "gate_up":
            codes = torch.where((scales == 0).repeat_interleave(16, dim=1), 0, codes)
        return super().values(codes, scales, matrix)


@caught_by("test_moe_ends_of_the_scale", byte=0, place="down", interleaved=True)
class ByteZeroOfDownIsZero(Steps):
    def values(self, codes: Tensor, scales: Tensor, matrix: str) -> Tensor:
        if matrix == "down":
            codes = torch.where((scales == 0).repeat_interleave(16, dim=1), 0, codes)
        return super().values(codes, scales, matrix)


@caught_by("test_moe_ends_of_the_scale", byte=254, place="up", interleaved=True)
class LargeScalesOfGateUpSaturate(Steps):
    def values(self, codes: Tensor, scales: Tensor, matrix: str) -> Tensor:
        top = 247 if matrix == "gate_up" else 255
        return super().values(codes, torch.where(scales == 255, scales, scales.clamp(max=top)), matrix)


@caught_by("test_moe_ends_of_the_scale", byte=255, place="gate", interleaved=True)
class Byte255OfGateUpIsFinite(Steps):
    def values(self, codes: Tensor, scales: Tensor, matrix: str) -> Tensor:
        return super().values(codes, scales.clamp(max=254) if matrix == "gate_up" else scales, matrix)


@caught_by("test_moe_quantised_activations", word="mxfp4", form=SILU, bias=False)
class NothingOfExpertsIsQuantised(Steps):
    def widen(self, x: Tensor, problem: Problem) -> Tensor:
        return x.float()


@caught_by("test_moe_quantised_activations", word="mxfp4", form=SILU, bias=False)
class HiddenStateIsNotQuantised(Steps):
    def widen_hidden(self, hidden: Tensor, problem: Problem) -> Tensor:
        return hidden


@caught_by("test_moe_quantised_activations", word="mxfp4", form=GPT_OSS_SWIGLU, bias=True)
class OnlyTheHiddenStateIsQuantised(Steps):
    def widen(self, x: Tensor, problem: Problem) -> Tensor:
        return x.float()

    def widen_hidden(self, hidden: Tensor, problem: Problem) -> Tensor:
        return super().widen(hidden, problem)


@caught_by("test_moe_quantised_activations_that_are_not_finite", word="mxfp4", value=torch.nan)
class NanUnderQuantisedExpertsIsZero(Steps):
    def widen(self, x: Tensor, problem: Problem) -> Tensor:
        return super().widen(x if problem.activation == "none" else x.nan_to_num(), problem)


@caught_by("test_moe_quantised_activations_that_are_not_finite", word="mxfp4", value=torch.inf)
class InfinityUnderQuantisedExpertsSaturates(Steps):
    def widen(self, x: Tensor, problem: Problem) -> Tensor:
        return super().widen(
            torch.where(x.isinf(), x.clamp(-6, 6), x) if problem.activation != "none" else x, problem
        )


@caught_by("test_moe_hidden_state_is_rounded_as_stated", word="mxfp4")
class HiddenStateIsRoundedToBfloat16First(Steps):
    def widen_hidden(self, hidden: Tensor, problem: Problem) -> Tensor:
        return super().widen_hidden(hidden.bfloat16(), problem)


@caught_by("test_moe_hidden_state_is_rounded_as_stated", word="mxfp4")
class SaysThatTheHiddenStateIsRoundedFirst(Steps):
    numerics = replace(Steps.numerics, hidden="input")


class Choosing(Steps):
    """Says that `auto` is `mxfp4`."""

    def supports(self, problem: Problem) -> Verdict:
        chosen = "mxfp4" if problem.activation == "auto" else None
        return Yes(numerics=replace(self.numerics, activation=chosen))


@caught_by("test_moe_quantised_activations", word="auto", form=SILU, bias=False)
class SaysThatAutoQuantisesExperts(Choosing):
    sound = Steps
