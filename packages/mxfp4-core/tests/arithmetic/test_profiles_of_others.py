"""A profile that another package brings quantises like any other, and a broken one harms nobody."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint

import pytest
import torch

from mxfp4_core import _plugins
from mxfp4_core.arithmetic.profiles import profiles, resolve
from mxfp4_core.arithmetic.quantize import quantize
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.errors import ConfigError

OWN = replace(resolve("rceil/away"), name="acme", zero_byte=0)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Install objects, or exceptions to raise, as profiles: ``install(name=object, ...)``."""

    def add(**things: object) -> None:
        points = [EntryPoint(name, f"{name}_package:profile", _plugins.PROFILES) for name in things]
        for point in points:
            object.__setattr__(point, "load", lambda thing=things[point.name]: _give(thing))
        real = _plugins.entry_points
        monkeypatch.setattr(
            _plugins,
            "entry_points",
            lambda group: points if group == _plugins.PROFILES else real(group=group),
        )
        _plugins.refresh()

    yield add
    monkeypatch.undo()
    _plugins.refresh()


def _give(thing: object) -> object:
    if isinstance(thing, BaseException):
        raise thing
    return thing


def test_it_quantises_and_is_named_in_a_config(install: Callable[..., None]) -> None:
    install(acme=OWN)
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    weight[0, :32] = 0
    got, like = quantize(weight, profile="acme"), quantize(weight, profile="rceil/away")
    assert got.profile == "acme" and torch.equal(got.codes, like.codes)
    assert int(got.scales[0, 0]) == 0 and torch.equal(got.scales[1:], like.scales[1:])
    assert Mxfp4Config(profile="acme").resolved_profile() == "acme"
    assert resolve("acme") is OWN and "acme" not in profiles()


def test_a_near_miss_knows_it(install: Callable[..., None]) -> None:
    install(acme=OWN)
    for ask in (lambda: resolve("acne"), lambda: Mxfp4Config(profile="acne")):
        with pytest.raises(ConfigError) as caught:
            ask()
        assert caught.value.fix == "did you mean 'acme'?"


def test_a_peer_is_never_replaced(install: Callable[..., None]) -> None:
    before = profiles()["quark"]
    install(quark=replace(OWN, name="quark"))
    assert profiles()["quark"] is before
    with pytest.raises(ConfigError, match="registers the same name"):
        resolve("quark")


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (ImportError("libacme.so"), "libacme.so"),
        (replace(OWN, name="other"), "a Profile of that name"),
        (42, "a Profile of that name"),
    ],
    ids=["import", "name", "kind"],
)
def test_a_broken_one_is_an_error_that_says_so(
    install: Callable[..., None], thing: object, words: str
) -> None:
    install(acme=thing)
    with pytest.raises(ConfigError, match=words):
        resolve("acme")
    assert resolve("quark").name == "quark"
