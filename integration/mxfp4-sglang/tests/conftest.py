"""Tests below ``engine`` need SGLang, which has an environment of its own: ``nox -s engines`` runs them there."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

HERE = find_spec("sglang") is not None
collect_ignore = [] if HERE else ["engine"]


def pytest_configure(config: pytest.Config) -> None:
    """Let SGLang and its choice of libraries warn."""
    if HERE:
        config.addinivalue_line("filterwarnings", "ignore")
