"""What the tests of backends share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint

import pytest
from backend_toys import FakeDistribution

from mxfp4_core import _plugins
from mxfp4_core.backend import registry

Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install objects, or exceptions to raise, as backends: ``install(name=object, ...)``."""
    points: list[EntryPoint] = []

    def add(distribution: str = "", **backends: object) -> None:
        for name, thing in backends.items():
            point = EntryPoint(name, f"{name}_package:backend", registry.GROUP)
            object.__setattr__(point, "dist", FakeDistribution(distribution or f"{name}-dist", "1.2"))
            object.__setattr__(point, "load", lambda thing=thing: _give(thing))
            points.append(point)
        registry.refresh()

    real = _plugins.entry_points
    monkeypatch.setattr(
        _plugins, "entry_points", lambda group: points if group == registry.GROUP else real(group=group)
    )
    registry.refresh()
    yield add
    registry.refresh()


def _give(thing: object) -> object:
    if isinstance(thing, BaseException):
        raise thing
    return thing
