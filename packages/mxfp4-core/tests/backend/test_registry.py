"""Backends as plug-ins: broken ones, two of one name, and what is not imported."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from backend_toys import CPU, Toy, line, linear

from mxfp4_core.backend import registry
from mxfp4_core.backend.answers import Numerics, Verdict
from mxfp4_core.backend.problem import Problem
from mxfp4_core.backend.reference.backend import ReferenceBackend
from mxfp4_core.backend.select import explain, select_backend
from mxfp4_core.errors import BackendError

Install = Callable[..., None]


@pytest.mark.parametrize(
    "error", [ImportError("libfoo.so: cannot open"), RuntimeError("boom"), SystemExit(3)]
)
def test_a_plugin_that_dies_on_import_harms_nobody(install: Install, error: BaseException) -> None:
    install(aa=error, bb=Toy("bb"))
    selection = select_backend(linear())
    assert selection.backend.name == "bb"
    broken = line(selection, "aa")
    assert broken.status == "broken"
    assert type(error).__name__ in broken.reason and str(error) in broken.reason
    assert "aa-dist 1.2" in broken.reason and "pip uninstall aa-dist" in broken.fix


class Raising(Toy):
    def supports(self, problem: Problem) -> Verdict:
        raise KeyError("device table")


class Guessing(Toy):
    def supports(self, problem: Problem) -> Verdict:
        return True  # type: ignore[return-value]  # the point of the test


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (Raising("aa"), "supports raised KeyError: 'device table' (aa-dist 1.2)"),
        (Guessing("aa"), "neither Yes nor No"),
        (Toy, "it is a class, not an object"),
        (Toy("other"), "its name is 'other', the entry point's 'aa'"),
        (object(), "name is NoneType, not str"),
        (42, "is no backend"),
        (None, "is no backend"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_plugin_of_the_wrong_kind_harms_nobody(install: Install, thing: object, words: str) -> None:
    install(aa=thing, bb=Toy("bb"))
    selection = select_backend(linear())
    assert selection.backend.name == "bb"
    assert line(selection, "aa").status == "broken" and words in line(selection, "aa").reason


def test_an_op_that_is_promised_must_exist(install: Install) -> None:
    class Promising:
        name, description, numerics = "aa", "no linear", Numerics()
        features, automatic_on = frozenset({"linear"}), frozenset({"cuda"})
        supports = layout = lambda self: None

    install(aa=Promising())
    assert "linear is missing" in line(explain(linear()), "aa").reason


def test_naming_a_broken_backend_says_how_it_broke(install: Install) -> None:
    install(aa=ImportError("libfoo.so"), bb=Toy("bb"))
    with pytest.raises(BackendError, match=r"libfoo\.so"):
        select_backend(linear(), backend="aa")


def test_two_distributions_with_one_name_are_an_error_that_names_both(install: Install) -> None:
    install("first", aa=Toy("aa"))
    install("second", aa=Toy("aa"))
    install(bb=Toy("bb"))
    assert select_backend(linear()).backend.name == "bb"
    with pytest.raises(BackendError, match=r"first 1\.2 and second 1\.2"):
        select_backend(linear(), backend="aa")


def test_nobody_takes_the_place_of_the_reference(install: Install) -> None:
    install("mxfp4-core", reference=ReferenceBackend())
    install("intruder", reference=ReferenceBackend())
    with pytest.raises(BackendError, match="intruder"):
        select_backend(linear(CPU))


def test_one_distribution_twice_on_the_path_is_one(install: Install) -> None:
    install("first", aa=Toy("aa"))
    install("first", aa=Toy("aa"))
    assert select_backend(linear()).backend.name == "aa"


def test_listing_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, "lazy_dist", "lazy", "raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    registry.refresh()
    try:
        assert "lazy" in registry.installed() and "lazy_dist" not in sys.modules
        broken = line(explain(linear()), "lazy")
        assert broken.status == "broken" and "RuntimeError: imported (lazy-dist 0.3)" in broken.reason
        assert select_backend(linear(CPU)).backend.name == "reference"
    finally:
        registry.refresh()


def package(where: Path, module: str, name: str, source: str) -> None:
    """Write a module with the metadata of an installed distribution."""
    (where / f"{module}.py").write_text(source)
    info = where / f"{module}-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module.replace('_', '-')}\nVersion: 0.3\n")
    (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{name} = {module}:backend\n")
