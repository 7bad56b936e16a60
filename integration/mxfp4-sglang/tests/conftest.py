"""Tests below ``engine`` need SGLang, which has an environment of its own: ``nox -s engines`` runs them there."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore = [] if find_spec("sglang") else ["engine"]
