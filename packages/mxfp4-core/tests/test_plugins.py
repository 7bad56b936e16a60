"""What is wrong with one plug-in is an error with its name and a way out, in every group, and harms no other one."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint

import pytest
import torch

from mxfp4_core import _plugins, dialects, quantize, select_backend
from mxfp4_core.arithmetic import Part, get_format, resolve
from mxfp4_core.arithmetic.formats.mxfp4 import Mxfp4
from mxfp4_core.backend import Problem, registry
from mxfp4_core.errors import ConfigError, FormatError, Mxfp4Error
from mxfp4_core.naming import load_provider, providers

Install = Callable[..., None]


def backend(name: str) -> object:
    return select_backend(Problem(op="linear", n=64, k=64), backend=name)


GROUPS: dict[str, tuple[Callable[[str], object], str]] = {
    "mxfp4.backends": (backend, "reference"),
    "mxfp4.dialects": (dialects.get, "quark"),
    "mxfp4.formats": (get_format, "mxfp8"),
    "mxfp4.models": (load_provider, ""),
    "mxfp4.profiles": (resolve, "quark"),
}
"""For each group how a plug-in is asked for, and the name of one that must go on to work."""


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Add entry points: a group and a name, with values or objects."""
    real, added = _plugins.entry_points, list[EntryPoint]()

    def add(group: str, name: str, *things: object) -> None:
        for thing in things:
            value = thing if isinstance(thing, str) else f"plugin_{len(added)}:made"
            if not isinstance(thing, str):
                module = types.ModuleType(f"plugin_{len(added)}")
                vars(module)["made"] = thing
                monkeypatch.setitem(sys.modules, module.__name__, module)
            added.append(EntryPoint(name, str(value), group))
        registry.refresh()

    monkeypatch.setattr(
        _plugins,
        "entry_points",
        lambda group: [*real(group=group), *(one for one in added if one.group == group)],
    )
    # The settings of all tests hide the providers of models that are installed.
    monkeypatch.setattr(providers, "plugins", _plugins.plugins)
    yield add
    monkeypatch.undo()
    registry.refresh()


def refused(group: str) -> Mxfp4Error:
    ask, other = GROUPS[group]
    with pytest.raises(Mxfp4Error) as caught:
        ask("twin")
    if other:
        ask(other)  # nothing happens to the others
    error = caught.value
    assert error.what and error.seen and error.rule and error.fix
    return error


@pytest.mark.parametrize("group", GROUPS)
def test_two_packages_that_register_one_name(install: Install, group: str) -> None:
    install(group, "twin", "first_package:made", "second_package:made")
    said = str(refused(group))
    assert "more than one distribution registers the name 'twin'" in said
    assert "first_package:made" in said and "second_package:made" in said


def test_a_profile_that_takes_the_name_of_one_of_ours(install: Install) -> None:
    install("mxfp4.profiles", "quark", "other_package:made")
    with pytest.raises(ConfigError, match="other_package:made registers the same name"):
        resolve("quark")
    assert resolve("gguf").name == "gguf"


@pytest.mark.parametrize("group", GROUPS)
def test_a_package_that_cannot_be_imported(install: Install, group: str) -> None:
    install(group, "twin", "no_such_module_at_all:made")
    said = str(refused(group))
    assert "no_such_module_at_all" in said and "ModuleNotFoundError" in said


@pytest.mark.parametrize("group", GROUPS)
def test_an_entry_point_that_is_something_else(install: Install, group: str) -> None:
    install(group, "twin", object())
    assert "plugin_0:made" in str(refused(group))


class Misfit(Mxfp4):
    """Lists more scales than it has room for."""

    name = "twin"
    parts = (Mxfp4.parts[0], Part("scales", "_scale", "uint8", 1, 16, fill=127))


def test_a_format_whose_parts_do_not_fit(install: Install) -> None:
    install("mxfp4.formats", "twin", Misfit())
    with pytest.raises(FormatError) as caught:
        made = quantize(torch.ones(2, 64), format="mxfp4")
        get_format("twin").check(made.parts)
    assert "scales uint8 [..., K/16]" in caught.value.rule and "(2, 2)" in caught.value.seen
