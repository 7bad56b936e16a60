"""What vLLM calls in each process: names that are free, taken, or refused because of the release."""

from __future__ import annotations

import logging
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mxfp4_core.errors import ConfigError
from mxfp4_vllm import METHOD, METHOD_FP8, log, plugin
from mxfp4_vllm.plugin import CHOOSE


class Ours:
    """Stands for our config."""


class Theirs:
    """Stands for that of another package."""

    __module__ = "another_package.config"


def registry(known: dict[str, type]) -> Any:
    """Return what `compat` has of vLLM's registry."""

    def register(name: str) -> Any:
        return lambda config: known.setdefault(name, config)

    return SimpleNamespace(
        QUANTIZATION_METHODS=known, registered=known.__getitem__, register_quantization_config=register
    )


def test_a_name_is_registered_once() -> None:
    known: dict[str, type] = {}
    for _ in range(2):
        plugin._register(registry(known), METHOD, Ours)
    assert known == {METHOD: Ours}


def test_a_name_that_is_taken_stays_with_its_owner_aloud(caplog: pytest.LogCaptureFixture) -> None:
    known: dict[str, type] = {METHOD: Theirs}
    with caplog.at_level(logging.ERROR, "mxfp4_vllm"):
        plugin._register(registry(known), METHOD, Ours)
    assert known == {METHOD: Theirs}
    for part in (
        "cannot be registered in vLLM",
        "seen: another_package.config.Theirs has that name",
        "rule:",
        CHOOSE,
    ):
        assert part in caplog.text


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> dict[str, type]:
    """A vLLM that has nothing but its registry."""
    known: dict[str, type] = {}
    base = ModuleType("vllm.model_executor.layers.quantization.base_config")
    base.QuantizationConfig = type("QuantizationConfig", (), {})  # type: ignore[attr-defined]
    quantization: Any = ModuleType("vllm.model_executor.layers.quantization")
    quantization.QUANTIZATION_METHODS = known
    quantization.register_quantization_config = registry(known).register_quantization_config
    for name in ("vllm", "vllm.model_executor", "vllm.model_executor.layers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, quantization.__name__, quantization)
    monkeypatch.setitem(sys.modules, base.__name__, base)
    return known


def test_another_release_is_refused_where_somebody_asks_for_the_method(
    monkeypatch: pytest.MonkeyPatch, engine: dict[str, type]
) -> None:
    monkeypatch.setattr(plugin, "installed_version", lambda: "0.25.1")
    plugin.register()  # vLLM goes on for everybody else
    assert engine.keys() == {METHOD, METHOD_FP8}
    config: Any = engine[METHOD]
    for ask in (config, lambda: config.from_config({}), config.get_config_filenames):
        with pytest.raises(ConfigError, match=r"(?s)vLLM 0\.25\.1.*0\.26 to 0\.33"):
            ask()


def test_our_lines_go_where_those_of_vllm_go(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = logging.getLogger("mxfp4_test_log"), logging.getLogger("vllm")
    seen: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
    monkeypatch.setattr(theirs, "handlers", [handler])
    monkeypatch.setattr(theirs, "level", logging.INFO)
    log.join(("mxfp4_test_log",))
    logging.getLogger("mxfp4_test_log.below").info("loaded")
    assert seen == ["loaded"] and ours.parent is theirs
