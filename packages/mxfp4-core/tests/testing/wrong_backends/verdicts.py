"""Wrong verdicts: they raise, change, read the machine, say nothing, or promise what is not served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from mxfp4_core.backend import Choice, Device, Kernel, Kernels, No, Numerics, Problem, Verdict, Yes
from mxfp4_core.backend.reference.backend import ReferenceBackend
from mxfp4_core.errors import ConfigError
from wrong_backends.base import caught_by


@caught_by("test_supports_is_total_and_pure", raises=ZeroDivisionError, device=Device("", ""))
class SupportsRaises(ReferenceBackend):
    def supports(self, problem: Problem) -> Verdict:
        return Yes(str(128 // len(problem.device.arch)))


@caught_by("test_supports_is_total_and_pure", device=Device("cpu", "x86_64"))
class SupportsCounts(ReferenceBackend):
    count = 0

    def supports(self, problem: Problem) -> Verdict:
        self.count += 1
        return Yes(temporary_bytes=self.count)


@caught_by("test_supports_is_total_and_pure", device=Device("cpu", "x86_64"))
class SupportsAnswersNothing(ReferenceBackend):
    def supports(self, problem: Problem) -> Verdict:
        return None if problem.m == 0 else Yes()  # type: ignore[return-value]


@caught_by("test_supports_asks_the_problem_and_no_device")
class SupportsReadsTheDevice(ReferenceBackend):
    def supports(self, problem: Problem) -> Verdict:
        return Yes(f"{torch.cuda.device_count()} devices")


@caught_by("test_supports_asks_the_problem_and_no_device")
class SupportsAnswersForThisMachine(ReferenceBackend):
    def supports(self, problem: Problem) -> Verdict:
        try:
            return (
                Yes()
                if torch.cuda.is_available() or problem.device.type == "cpu"
                else No("no GPU", "buy one")
            )
        except Exception:
            return No("broken driver", "mend it")


@caught_by("test_linear_grid", n=130, k=32)
class RefusesWithoutAReason(ReferenceBackend):
    def supports(self, problem: Problem) -> Verdict:
        return No("", "pad the layer") if problem.n % 16 else Yes()


@caught_by("test_linear_grid", n=130, k=32)
class RefusesWithoutAFix(ReferenceBackend):
    def supports(self, problem: Problem) -> Verdict:
        return No(f"n = {problem.n}, no multiple of 16", " ") if problem.n % 16 else Yes()


@caught_by("test_an_ordinary_problem_is_taken", op="linear")
class OrdinaryLayerRefused(ReferenceBackend):
    def supports(self, problem: Problem) -> Verdict:
        return No(f"n = {problem.n}, at most 2048", "cut the layer") if problem.n > 2048 else Yes()


@caught_by("test_an_ordinary_problem_is_taken", op="moe")
class BytesBelowZero(ReferenceBackend):
    def supports(self, problem: Problem) -> Verdict:
        return Yes(temporary_bytes=-1)


@caught_by("test_each_feature_is_served")
class DtypeNotServed(ReferenceBackend):
    def supports(self, problem: Problem) -> Verdict:
        return No("activations of float16", "use bfloat16") if problem.dtype == "float16" else Yes()


@caught_by("test_each_feature_is_served")
class QuantisedExpertsNotServed(ReferenceBackend):
    features = ReferenceBackend.features - {"activation:mxfp4"} | {
        "linear:activation:mxfp4",
        "moe:activation:mxfp4",
    }

    def supports(self, problem: Problem) -> Verdict:
        if problem.op == "moe" and problem.activation == "mxfp4":
            return No("experts with activation mxfp4", "leave activations alone")
        return Yes()


@caught_by("test_members")
class QuantizeWithoutProfiles(ReferenceBackend):
    numerics = replace(ReferenceBackend.numerics, profiles=frozenset())


@caught_by("test_members")
class QuantisesActivationsByNoRule(ReferenceBackend):
    numerics = replace(ReferenceBackend.numerics, activation_profile="")


@caught_by("test_members", raises=ConfigError)
class UnknownProfile(ReferenceBackend):
    numerics = replace(ReferenceBackend.numerics, profiles=frozenset({"of/the-future"}))


@caught_by("test_it_can_be_copied")
class CopyForgetsSettings(ReferenceBackend):
    def __init__(self, numerics: Numerics | None = None) -> None:
        self.numerics = numerics or replace(ReferenceBackend.numerics, product_error=0.5)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (ReferenceBackend.numerics,)


@caught_by("test_choices_leave_no_number_of_tokens_out", op="linear")
class ChoicesWithAGap(ReferenceBackend):
    def choices(self, problem: Problem) -> Sequence[Choice]:
        return (Choice(1, 8, "few", {}), Choice(10, 64, "many", {}))


@caught_by("test_kernels_are_listed_without_a_device")
class TwoKernelsOfOneName(ReferenceBackend):
    def kernels(self) -> Kernels:
        return Kernels("/tmp", (Kernel("one", True, print), Kernel("one", True, print)))
