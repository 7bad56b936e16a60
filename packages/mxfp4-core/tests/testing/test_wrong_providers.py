"""The suite of model providers is only worth something if it fails: each wrong provider is caught by a named test."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mxfp4_core.naming import CheckpointTensor, Headers, ModelView, Parameter
from mxfp4_core.testing import ModelExample, ModelProviderConformance

EXAMPLE = ModelExample(
    {"model_type": "toy"},
    {
        "emb.weight": ("BF16", (96, 64)),
        "out.weight": ("BF16", (96, 64)),
        "up.weight": ("BF16", (64, 128)),
        "down.weight": ("BF16", (64, 128)),
    },
    {"emb.weight": "embedding", "out.weight": "head", "up.weight": "linear", "down.weight": "linear"},
    frozenset({"up.weight"}),
)


class Sound:
    """A provider that is right."""

    name = "toy"

    def describe(self, config: Mapping[str, Any], headers: Headers) -> ModelView | None:
        if config.get("model_type") != "toy":
            return None
        parameters = {
            "emb.weight": Parameter("emb.weight", "embedding", (96, 64), tied_to="out.weight"),
            "out.weight": Parameter("out.weight", "head", (96, 64), tied_to="emb.weight"),
            "up.weight": Parameter("up.weight", "linear", (128, 64), k_first=True),
            "down.weight": Parameter("down.weight", "linear", (64, 128)),
        }
        return self.change(parameters, [name for name in headers if name in parameters], headers)

    def change(self, parameters: dict[str, Parameter], names: list[str], headers: Headers) -> ModelView:
        tensors = {name: CheckpointTensor(name, (name,), name == "up.weight") for name in names}
        return ModelView("toys 1.0", "Toy", parameters, tensors)


class Claims(Sound):
    def describe(self, config: Mapping[str, Any], headers: Headers) -> ModelView | None:
        return super().describe({"model_type": "toy"}, headers)


class Chokes(Sound):
    def describe(self, config: Mapping[str, Any], headers: Headers) -> ModelView | None:
        return super().describe({**config, "model_type": config["model_type"].lower()}, headers)


class Forgets(Sound):
    def change(self, parameters: dict[str, Parameter], names: list[str], headers: Headers) -> ModelView:
        return super().change(parameters, [name for name in names if name != "down.weight"], headers)


class TakesEmbeddings(Sound):
    def change(self, parameters: dict[str, Parameter], names: list[str], headers: Headers) -> ModelView:
        parameters["emb.weight"] = Parameter("emb.weight", "linear", (96, 64), tied_to="out.weight")
        return super().change(parameters, names, headers)


class Turns(Sound):
    def change(self, parameters: dict[str, Parameter], names: list[str], headers: Headers) -> ModelView:
        tensors = {name: CheckpointTensor(name, (name,)) for name in names}
        return ModelView("toys 1.0", "Toy", parameters, tensors)


class StoredShapes(Sound):
    def change(self, parameters: dict[str, Parameter], names: list[str], headers: Headers) -> ModelView:
        parameters["up.weight"] = Parameter("up.weight", "linear", (64, 128), k_first=True)
        return super().change(parameters, names, headers)


class ListsAll(Sound):
    def change(self, parameters: dict[str, Parameter], names: list[str], headers: Headers) -> ModelView:
        for name in headers:
            parameters.setdefault(name, Parameter(name, "linear", headers[name][1]))
        return super().change(parameters, list(headers), headers)


class Counts(Sound):
    calls = 0

    def change(self, parameters: dict[str, Parameter], names: list[str], headers: Headers) -> ModelView:
        Counts.calls += 1
        view = super().change(parameters, names, headers)
        return ModelView(f"toys {Counts.calls}", "Toy", view.parameters, view.tensors)


class FirstCounts(Sound):
    def change(self, parameters: dict[str, Parameter], names: list[str], headers: Headers) -> ModelView:
        return super().change(parameters, names[:1] if names[0] == "down.weight" else names, headers)


class Changes(Sound):
    def describe(self, config: Mapping[str, Any], headers: Headers) -> ModelView | None:
        if isinstance(config, dict):
            config.setdefault("seen", True)
        return super().describe(config, headers)


class Closures(Sound):
    def change(self, parameters: dict[str, Parameter], names: list[str], headers: Headers) -> ModelView:
        view = super().change(parameters, names, headers)
        return ModelView("toys 1.0", "Toy", view.parameters, view.tensors, config={"open": lambda: 1})


class TiesOneWay(Sound):
    def change(self, parameters: dict[str, Parameter], names: list[str], headers: Headers) -> ModelView:
        parameters["emb.weight"] = Parameter("emb.weight", "embedding", (96, 64))
        return super().change(parameters, names, headers)


class Connects(Sound):
    def describe(self, config: Mapping[str, Any], headers: Headers) -> ModelView | None:
        import socket

        with socket.socket() as one:
            one.connect_ex(("127.0.0.1", 9))
        return super().describe(config, headers)


class RunsCode(Sound):
    def describe(self, config: Mapping[str, Any], headers: Headers) -> ModelView | None:
        if "auto_map" in config:
            __import__(config["auto_map"]["AutoModel"].partition(".")[0])
        return super().describe(config, headers)


class PinsAll(Sound):
    def change(self, parameters: dict[str, Parameter], names: list[str], headers: Headers) -> ModelView:
        pinned = {
            name: Parameter(name, each.kind, each.shape, keep="to be safe")
            for name, each in parameters.items()
        }
        return super().change(pinned, names, headers)


WRONG: list[tuple[type[Sound], str]] = [
    (Claims, "test_provider_leaves_strangers_to_others"),
    (Chokes, "test_provider_leaves_strangers_to_others"),
    (Forgets, "test_provider_knows_its_examples"),
    (TakesEmbeddings, "test_provider_knows_its_examples"),
    (Turns, "test_provider_knows_its_examples"),
    (StoredShapes, "test_provider_gives_logical_shapes"),
    (ListsAll, "test_provider_lists_what_is_there"),
    (Counts, "test_provider_is_deterministic"),
    (FirstCounts, "test_provider_is_deterministic"),
    (Changes, "test_provider_is_deterministic"),
    (Closures, "test_provider_gives_plain_data"),
    (TiesOneWay, "test_provider_ties_both_ways"),
    (Connects, "test_provider_needs_no_network_and_no_foreign_code"),
    (RunsCode, "test_provider_needs_no_network_and_no_foreign_code"),
    (PinsAll, "test_provider_decides_for_the_resolver"),
]
TESTS = sorted(name for name in dir(ModelProviderConformance) if name.startswith("test_"))


def call(provider: Sound, test: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method: Callable[..., None] = getattr(ModelProviderConformance(), test)
    given = {
        "provider": provider,
        "example": EXAMPLE,
        "stranger": "type of numbers",
        "tmp_path": tmp_path,
    }
    with monkeypatch.context() as patch:
        wanted = inspect.signature(method).parameters
        method(**{name: value for name, value in {**given, "monkeypatch": patch}.items() if name in wanted})


@pytest.mark.parametrize("test", TESTS)
def test_a_sound_provider_passes(test: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call(Sound(), test, tmp_path, monkeypatch)


@pytest.mark.parametrize(("wrong", "test"), WRONG, ids=lambda value: getattr(value, "__name__", value))
def test_the_suite_catches_the_defect(
    wrong: type[Sound], test: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises((AssertionError, AttributeError, pytest.fail.Exception)):
        call(wrong(), test, tmp_path, monkeypatch)


def test_every_test_of_the_suite_catches_something() -> None:
    assert {test for _, test in WRONG} == set(TESTS)
