"""Formats and dialects with one defect each: a named test of their suites catches it, and passes without the defect."""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mxfp4_core import _plugins, dialects
from mxfp4_core.arithmetic import MXFP4, Format, Profile, get_format
from mxfp4_core.backend import registry
from mxfp4_core.dialects import Contents, Description, Dialect, Entry, Recipe, Source, find_entries
from mxfp4_core.errors import NonFiniteError
from mxfp4_core.testing import DialectConformance, FormatConformance

Failed = pytest.fail.Exception
CODES, SCALES = MXFP4.parts


class Twin(Format):
    """Sound: plain MXFP4 under another name."""

    name, block, parts = "twin", 32, MXFP4.parts

    @property
    def profiles(self) -> tuple[str, ...]:
        return MXFP4.profiles[:2]

    def resolve(
        self, profile: str | None = None, *, rule: str | None = None, ties: str | None = None
    ) -> Profile:
        return MXFP4.resolve(profile, rule=rule, ties=ties)

    def quantize_into(self, weight: Tensor, parts: Any, **settings: Any) -> None:
        MXFP4.quantize_into(weight, parts, **settings)

    def dequantize(self, parts: Any, dtype: torch.dtype) -> Tensor:
        return MXFP4.dequantize(parts, dtype)


class TwoPartsOfOneSuffix(Twin):
    parts = (CODES, replace(SCALES, suffix=""))


class FirstPartUnderAnotherName(Twin):
    parts = (replace(CODES, suffix="_codes"), SCALES)


class DefaultIsNotTheFirst(Twin):
    def resolve(self, profile: str | None = None, **settings: Any) -> Profile:
        return super().resolve(profile or self.profiles[1], **settings)


class TakesAnyProfile(Twin):
    def resolve(self, profile: str | None = None, **settings: Any) -> Profile:
        return super().resolve(profile if profile in self.profiles else None, **settings)


class DependsOnOtherRows(Twin):
    def quantize_into(self, weight: Tensor, parts: Any, **settings: Any) -> None:
        super().quantize_into(weight * (1 + len(weight) / 8), parts, **settings)


class FillIsNotZero(Twin):
    parts = (replace(CODES, fill=0x11), SCALES)


class WritesIntoTheWeight(Twin):
    def quantize_into(self, weight: Tensor, parts: Any, **settings: Any) -> None:
        super().quantize_into(weight, parts, **settings)
        weight.zero_()


class HidesNan(Twin):
    def quantize_into(
        self, weight: Tensor, parts: Any, *, nonfinite: str = "refuse", **settings: Any
    ) -> None:
        clean = weight if nonfinite == "refuse" else weight.nan_to_num(0, 0, 0)
        super().quantize_into(clean, parts, nonfinite=nonfinite, **settings)


class NanSpreads(Twin):
    def quantize_into(self, weight: Tensor, parts: Any, **settings: Any) -> None:
        super().quantize_into(weight, parts, **settings)
        if not bool(weight.isfinite().all()):
            parts["scales"].fill_(255)


class NamesNoWeight(Twin):
    def quantize_into(self, weight: Tensor, parts: Any, **settings: Any) -> None:
        try:
            super().quantize_into(weight, parts, **settings)
        except NonFiniteError:
            raise NonFiniteError("a weight", seen="NaN", rule="none", fix="find it") from None


class Unstable(Twin):
    def quantize_into(self, weight: Tensor, parts: Any, **settings: Any) -> None:
        super().quantize_into(weight * (1 + torch.rand(1)).to(weight.dtype), parts, **settings)


FORMATS: list[tuple[type[Twin], str, dict[str, Any], tuple[type[BaseException], ...]]] = [
    (TwoPartsOfOneSuffix, "test_members", {}, (AssertionError,)),
    (FirstPartUnderAnotherName, "test_members", {}, (AssertionError,)),
    (DefaultIsNotTheFirst, "test_profiles", {}, (AssertionError,)),
    (TakesAnyProfile, "test_profiles", {}, (Failed,)),
    (DependsOnOtherRows, "test_pieces_give_what_the_whole_gives", {}, (AssertionError,)),
    (FillIsNotZero, "test_zeros_are_zeros", {}, (AssertionError,)),
    (WritesIntoTheWeight, "test_values_come_back", {"dtype": torch.bfloat16}, (AssertionError,)),
    (Unstable, "test_values_come_back", {"dtype": torch.bfloat16}, (AssertionError,)),
    (HidesNan, "test_what_is_not_finite", {"value": torch.nan}, (AssertionError,)),
    (NanSpreads, "test_what_is_not_finite", {"value": torch.inf}, (AssertionError,)),
    (NamesNoWeight, "test_what_is_not_finite", {"value": torch.nan}, (AssertionError,)),
]

ENDS = {"codes": ".q", "scales": ".s"}


class Acme(Dialect):
    """Sound: codes and scales side by side."""

    name, readers = "twin", "nobody"

    def recognise(self, source: Source) -> str | None:
        return "quant_method is twin" if source.described.get("quant_method") == "twin" else None

    def read(self, source: Source) -> Contents:
        entries = find_entries(self.name, source, ENDS)
        return Contents(entries, source.rest({name for entry in entries.values() for name in entry.names}))

    def write(self, entry: Entry) -> dict[str, Recipe]:
        return {entry.weight.removesuffix(".weight") + end: entry.parts[part] for part, end in ENDS.items()}

    def describe(self, description: Description) -> dict[str, Any]:
        return {"quant_method": "twin"}

    def how_to_load(self, path: str, model: str = "") -> str:
        return f"twin {path}"


class TakesEverything(Acme):
    def recognise(self, source: Source) -> str | None:
        return "everything is mine"


class RaisesOnOddConfigs(Acme):
    def recognise(self, source: Source) -> str | None:
        return "mine" if source.config["quantization_config"]["quant_method"] == "twin" else None


class LosesOtherWeights(Acme):
    def read(self, source: Source) -> Contents:
        return replace(super().read(source), tensors={})


class RowsInAnotherOrder(Acme):
    def write(self, entry: Entry) -> dict[str, Recipe]:
        written = super().write(entry)
        name = next(iter(written))
        codes = written[name]
        half = codes.shape[0] // 2
        return {**written, name: dialects.concat([codes.take(half), codes.take(0, half)])}


class IgnoresCodesWithoutScales(Acme):
    def read(self, source: Source) -> Contents:
        whole = {
            n: one
            for n, one in source.tensors.items()
            if not n.endswith(".q") or f"{n[:-2]}.s" in source.tensors
        }
        return super().read(Source(source.config, whole))


class ChecksNothing(Acme):
    def check(self, entry: Entry) -> None:
        return None


class ChangesTheConfig(Acme):
    def read(self, source: Source) -> Contents:
        source.config["seen"] = True  # type: ignore[index]
        return super().read(source)


class TellsNoFolder(Acme):
    def how_to_load(self, path: str, model: str = "") -> str:
        return "twin"


DIALECTS: list[tuple[type[Acme], str, dict[str, Any], tuple[type[BaseException], ...]]] = [
    (TakesEverything, "test_strangers_are_left_to_others", {"config": {}}, (AssertionError,)),
    (RaisesOnOddConfigs, "test_strangers_are_left_to_others", {"config": {}}, (KeyError,)),
    (LosesOtherWeights, "test_what_is_written_is_read_back", {"format": "mxfp4"}, (AssertionError,)),
    (RowsInAnotherOrder, "test_what_is_written_is_read_back", {"format": "mxfp4"}, (AssertionError,)),
    (IgnoresCodesWithoutScales, "test_parts_that_are_missing_or_wrong_are_refused", {}, (Failed,)),
    (ChecksNothing, "test_what_it_cannot_store_is_refused_before", {}, (Failed,)),
    (ChangesTheConfig, "test_reading_changes_nothing", {}, (AssertionError,)),
    (TellsNoFolder, "test_members", {}, (AssertionError,)),
]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, object], None]]:
    """Register one object under the name ``twin`` of a group."""
    real, added = _plugins.entry_points, dict[str, EntryPoint]()
    module = types.ModuleType("twin_plugin")
    monkeypatch.setitem(sys.modules, "twin_plugin", module)

    def add(group: str, thing: object) -> None:
        vars(module)["made"] = thing
        added[group] = EntryPoint("twin", "twin_plugin:made", group)
        registry.refresh()

    monkeypatch.setattr(
        _plugins,
        "entry_points",
        lambda group: [*real(group=group), *(e for g, e in added.items() if g == group)],
    )
    yield add
    monkeypatch.undo()
    registry.refresh()


def call(suite: object, test: str, given: dict[str, Any]) -> None:
    method = getattr(suite, test)
    wanted = inspect.signature(method).parameters
    method(**{name: value for name, value in given.items() if name in wanted})


@pytest.mark.parametrize("case", FORMATS, ids=lambda case: case[0].__name__)
def test_the_suite_catches_a_wrong_format(
    case: tuple[Any, ...], install: Callable[[str, object], None], tmp_path: Path
) -> None:
    wrong, test, arguments, raises = case
    suite = FormatConformance()
    suite.format_name = "twin"
    install("mxfp4.formats", Twin())
    call(suite, test, {**arguments, "format": get_format("twin"), "tmp_path": tmp_path})
    install("mxfp4.formats", wrong())
    with pytest.raises(raises):
        call(suite, test, {**arguments, "format": get_format("twin"), "tmp_path": tmp_path})


@pytest.mark.parametrize("case", DIALECTS, ids=lambda case: case[0].__name__)
def test_the_suite_catches_a_wrong_dialect(
    case: tuple[Any, ...], install: Callable[[str, object], None], tmp_path: Path
) -> None:
    wrong, test, arguments, raises = case

    class Suite(DialectConformance):
        dialect_name = "twin"

    for number, (made, expected) in enumerate(((Acme, ()), (wrong, raises))):
        install("mxfp4.dialects", made())
        folder = tmp_path / str(number)
        folder.mkdir()
        given = {**arguments, "dialect": dialects.get("twin"), "tmp_path": folder}
        if not expected:
            call(Suite(), test, given)
            continue
        with pytest.raises(expected):
            call(Suite(), test, given)
