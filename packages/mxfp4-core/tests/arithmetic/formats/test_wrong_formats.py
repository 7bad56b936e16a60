"""Wrong formats, each of which the suite must catch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import pytest
import torch

from mxfp4_core.arithmetic import MXFP4, reference
from mxfp4_core.arithmetic.formats import registry
from mxfp4_core.arithmetic.formats.base import Part
from mxfp4_core.arithmetic.formats.mxfp4 import CODES, SCALES, Mxfp4
from mxfp4_core.arithmetic.formats.scaled import InputScaled
from mxfp4_core.errors import ConfigError
from mxfp4_core.testing import FormatConformance


class Referenced(FormatConformance):
    __test__ = False

    def reference(self, weight: torch.Tensor, profile: str) -> Mapping[str, torch.Tensor]:
        codes, scales = reference.quantize(weight, MXFP4.resolve(profile))
        return {"codes": codes, "scales": scales}


class Right(Mxfp4):
    """A format that the suite takes, so that each wrong one differs by one thing."""

    name = "tried"
    profiles = ("even/even", "quark")

    def resolve(self, profile: str | None = None, **chosen: Any) -> Any:
        found = super().resolve(profile, **chosen)
        if found.name not in self.profiles:
            raise ConfigError("no", seen="no", rule="its profiles are even/even, quark", fix="no")
        return found

    def __reduce__(self) -> tuple[object, ...]:
        return current, ()


TRIED: list[Mxfp4] = []


def current() -> Mxfp4:
    return TRIED[-1]


def into(self: Right, weight: torch.Tensor, parts: Any, **options: Any) -> None:
    Mxfp4.quantize_into(self, weight, parts, **options)


class OtherName(Right):
    name = "another"


class CopiedByPickle(Right):
    def __reduce__(self) -> tuple[object, ...]:
        return CopiedByPickle, ()


class OneSuffix(Right):
    parts = (CODES, Part("scales", "", "uint8", 1, 32, fill=127))


class NameOfAnAttribute(Right):
    parts = (CODES, Part("shape", "_scale", "uint8", 1, 32, fill=127))


class WrongSize(Right):
    parts = (CODES, Part("scales", "_scale", "uint8", 2, 32, fill=127))


class FillThatIsWorthSomething(Right):
    parts = (Part("codes", "", "uint8", 1, 2, fill=17, same=CODES.same), SCALES)


class UnknownProfile(Right):
    profiles = ("even/even", "quark", "no-such-rule/even")


class AnythingGoes(Right):
    def resolve(self, profile: str | None = None, **chosen: Any) -> Any:
        return Mxfp4.resolve(
            self, "even/even" if profile and profile.startswith("no ") else profile, **chosen
        )


class ChecksNothing(Right):
    def check(self, parts: Any, name: str = "") -> None:
        pass


class TransposedRows(Right):
    def quantize_into(self, weight: torch.Tensor, parts: Any, **options: Any) -> None:
        into(self, weight.flip(0), parts, **options)


class ScaleOfTheWholeRow(Right):
    def quantize_into(self, weight: torch.Tensor, parts: Any, **options: Any) -> None:
        into(self, weight, parts, **options)
        parts["scales"].copy_(parts["scales"].amax(-1, keepdim=True).expand_as(parts["scales"]))


class WritesACopy(Right):
    def quantize_into(self, weight: torch.Tensor, parts: Any, **options: Any) -> None:
        dense = {name: part.contiguous() for name, part in parts.items()}
        into(self, weight, dense, **options)


class WritesBeside(Right):
    def quantize_into(self, weight: torch.Tensor, parts: Any, **options: Any) -> None:
        into(self, weight, parts, **options)
        codes = parts["codes"]
        if codes.storage_offset():
            codes.as_strided((1,), (1,), codes.storage_offset() - 1).fill_(7)


class LosesAPart(Right):
    def quantize_into(self, weight: torch.Tensor, parts: Any, **options: Any) -> None:
        into(self, weight, {**parts, "scales": parts["scales"].clone()}, **options)


class TakesNan(Right):
    def quantize_into(self, weight: torch.Tensor, parts: Any, **options: Any) -> None:
        into(self, weight, parts, **{**options, "nonfinite": "nan"})


class NanBecomesZero(Right):
    def quantize_into(self, weight: torch.Tensor, parts: Any, **options: Any) -> None:
        if options["nonfinite"] == "nan":
            weight = weight.nan_to_num(0, 0, 0)
        into(self, weight, parts, **options)


class NanInEveryRow(Right):
    def quantize_into(self, weight: torch.Tensor, parts: Any, **options: Any) -> None:
        into(self, weight, parts, **options)
        if not torch.isfinite(weight).all():
            parts["scales"].fill_(255)


class TinyBecomesNan(Right):
    def quantize_into(self, weight: torch.Tensor, parts: Any, **options: Any) -> None:
        into(self, weight, parts, **options)
        parts["scales"].masked_fill_(parts["scales"] < 20, 255)


class RoundsTwice(Right):
    def dequantize(self, parts: Any, dtype: torch.dtype) -> torch.Tensor:
        return super().dequantize(parts, torch.float16 if dtype is torch.bfloat16 else dtype).to(dtype)


class HalfTheValue(Right):
    def dequantize(self, parts: Any, dtype: torch.dtype) -> torch.Tensor:
        return super().dequantize(parts, dtype) / 2


class AnotherTie(Right):
    """Only its reference can tell."""

    def quantize_into(self, weight: torch.Tensor, parts: Any, *, profile: str, **options: Any) -> None:
        into(self, weight, parts, profile="even/away" if profile == "even/even" else profile, **options)


WRONG = {
    OtherName: "test_members",
    CopiedByPickle: "one_object",
    OneSuffix: "test_members",
    NameOfAnAttribute: "shapes_and_bytes",
    WrongSize: "test_members",
    FillThatIsWorthSomething: "zeros_are_zeros",
    UnknownProfile: "test_profiles",
    AnythingGoes: "test_profiles",
    ChecksNothing: "do_not_fit_are_refused",
    TransposedRows: "pieces_give",
    ScaleOfTheWholeRow: "pieces_give",
    WritesACopy: "written_in_place",
    WritesBeside: "written_in_place",
    LosesAPart: "values_come_back",
    TakesNan: "not_finite",
    NanBecomesZero: "not_finite",
    NanInEveryRow: "not_finite",
    TinyBecomesNan: "make_no_nan",
    RoundsTwice: "in_every_dtype",
    HalfTheValue: "values_come_back",
    AnotherTie: "of_the_reference",
}


class Tried(Referenced):
    __test__ = False
    format_name = "tried"


def failures(form: Mxfp4, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the tests of the suite that this format fails."""

    def found(name: str) -> Any:
        return form if name == "tried" else registry.get(name)

    monkeypatch.setattr(import_module("mxfp4_core.arithmetic.quantize"), "get", found)
    TRIED[:] = [form]
    failed, suite = [], Tried()
    for name in dir(suite):
        test = getattr(suite, name)
        if not name.startswith("test_") or "modules" in name:
            continue
        marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
        for options in [{mark.args[0]: value} for mark in marks for value in mark.args[1]] or [{}]:
            try:
                test(format=form, **options)
            except (Exception, pytest.fail.Exception):
                failed.append(name)
                break
    return failed


def test_a_right_format_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert failures(Right(), monkeypatch) == []


@pytest.mark.parametrize("wrong", WRONG, ids=lambda kind: kind.__name__)
def test_a_wrong_format_is_caught(wrong: type[Mxfp4], monkeypatch: pytest.MonkeyPatch) -> None:
    found = failures(wrong(), monkeypatch)
    assert any(WRONG[wrong] in name for name in found), found


def test_multipliers_of_any_format() -> None:
    form = InputScaled(Right())
    assert (form.name, form.block) == ("tried+input_scale", 32)
    assert [part.name for part in form.parts] == ["codes", "scales", "input_scale"]
