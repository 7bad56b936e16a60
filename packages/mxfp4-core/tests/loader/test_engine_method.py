"""What adapters of serving engines have in common: the method, the releases, the prefixes, errors."""

from __future__ import annotations

import importlib.metadata

import pytest

from mxfp4_core.errors import ConfigError
from mxfp4_core.loader import (
    METHODS,
    EngineMethod,
    check_free,
    check_release,
    installed_release,
    refused_table,
    renames_of,
)

FP4, FP8 = METHODS


class Eight(EngineMethod):
    method = FP8


def test_a_method_is_a_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MXFP4_CONFIG", raising=False)
    assert (EngineMethod.get_name(), Eight.get_name()) == (FP4, FP8) == ("mxfp4-core", "mxfp8-core")
    assert (EngineMethod.asked().format, Eight.asked().format) == ("mxfp4", "mxfp8")
    assert EngineMethod.asked('{"format": "mxfp4-dual"}').format == "mxfp4-dual"
    with pytest.raises(ConfigError, match="mxfp4-dual"):
        Eight.asked('{"format": "mxfp4-dual"}')
    with pytest.raises(
        ConfigError, match=r"(?s)contradicts --quantization mxfp4-core.*use --quantization mxfp8-core"
    ):
        EngineMethod.asked('{"format": "mxfp8"}')


def test_a_folder_says_its_config_and_the_machine_its_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MXFP4_CONFIG", '{"backend": "reference"}')
    found = EngineMethod.read({"quant_method": FP4, "rule": "floor"})
    assert (found.rule, found.backend) == ("floor", "reference")
    assert EngineMethod.read({"quant_method": "quark", "anything": 1}).format == "mxfp4"
    assert Eight.read({"quant_method": FP4, "format": "mxfp8"}).format == "mxfp8"
    monkeypatch.setenv("MXFP4_CONFIG", '{"rule": "ceil"}')
    with pytest.raises(ConfigError, match="in the checkpoint"):
        EngineMethod.read({"quant_method": FP4, "rule": "floor"})


@pytest.mark.parametrize(
    ("found", "fine"), [("1.2", True), ("1.4.9+cpu", True), ("1.1", False), ("2.0", False)]
)
def test_a_range_of_releases(found: str, fine: bool) -> None:
    def check() -> None:
        check_release(found, (1, 2), (1, 4), engine="Acme", package="mxfp4-acme", distribution="acme")

    if fine:
        check()
    else:
        with pytest.raises(ConfigError, match=rf"(?s)acme {found}.*1\.2 to 1\.4"):
            check()


def test_an_engine_that_is_not_installed() -> None:
    assert installed_release("pytest", "us", ["no-such-thing", "pytest"]) == importlib.metadata.version(
        "pytest"
    )
    with pytest.raises(ConfigError, match=r"(?s)us is a plug-in of Acme.*pip install acme-1 \(or acme-2\)"):
        installed_release("Acme", "us", ["acme-1", "acme-2"])


def test_prefixes_that_a_model_renames() -> None:
    table = {
        "model.language_model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
        "mtp.": None,
    }
    assert renames_of(table) == [
        ("^language_model.model", "^model.language_model"),
        ("^language_model.lm_head", "^lm_head"),
    ]


def test_an_embedding_is_refused_with_what_to_do() -> None:
    error = refused_table("embed", "Table", "an override", engine="Acme")
    assert "embed cannot be MXFP4 in Acme" in str(error) and "ignore=['embed']" in str(error)


def test_a_name_belongs_to_one_package() -> None:
    ours = type("Ours", (), {"__module__": "mine.config"})
    theirs = type("Theirs", (), {"__module__": "elsewhere.plugin"})
    for taken in (None, ours, type("Older", (), {"__module__": "mine.other"})):
        check_free("m", taken, ours, engine="an engine", fix="choose")
    with pytest.raises(
        ConfigError, match=r"(?s)'m' cannot be registered in an engine.*elsewhere\.plugin\.Theirs"
    ):
        check_free("m", theirs, ours, engine="an engine", fix="choose")
