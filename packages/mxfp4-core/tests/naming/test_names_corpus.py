"""Real exclude lists, replayed on the names of the models that they were written for; no weights needed.

Each file of ``names_corpus`` holds the names of one model in groups, and lists with what each must do to each group:
``ignored`` by a pattern, kept by ``default``, and everything else quantised. ``modules`` are asked in the vocabulary of
an engine afterwards. ``{a,b}`` and ``{0-3}`` stand for alternatives.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.errors import PatternError
from mxfp4_core.naming.resolver import Resolver, exclude_patterns

CORPUS = sorted((Path(__file__).parent / "names_corpus").glob("*.json"))
MATRIX, VECTOR, STACK = (128, 64), (64,), (8, 128, 64)


def expand(templates: Iterable[str]) -> Iterator[str]:
    for template in templates:
        pieces = re.split(r"\{([^}]*)\}", template)
        choices = [
            [piece] if index % 2 == 0 else list(alternatives(piece)) for index, piece in enumerate(pieces)
        ]
        yield from map("".join, itertools.product(*choices))


def alternatives(text: str) -> Iterator[str]:
    for part in text.split(","):
        if run := re.fullmatch(r"(\d+)-(\d+)", part):
            yield from map(str, range(int(run[1]), int(run[2]) + 1))
        else:
            yield part


def cases() -> Iterator[Any]:
    for path in CORPUS:
        model = json.loads(path.read_text(encoding="utf-8"))
        for number, case in enumerate(model["lists"]):
            yield pytest.param(model, case, id=f"{path.stem}-{number}-{case['dialect']}")


def offered(model: dict[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return every name with its group and shape."""
    kinds = [
        (model["names"], MATRIX),
        (model.get("stacked", {}), STACK),
        ({"vectors": model["vectors"]}, VECTOR),
    ]
    return {
        name: (group, shape)
        for groups, shape in kinds
        for group, templates in groups.items()
        for name in expand(templates)
    }


@pytest.mark.parametrize(("model", "case"), list(cases()))
def test_a_real_exclude_list_does_what_it_was_written_for(
    model: dict[str, Any], case: dict[str, Any]
) -> None:
    entries = [*case["patterns"], *expand(case.get("generated", ()))]
    assert len(entries) == case.get("count", len(entries))
    # Each list was written for a tool that keeps nothing of a family by itself.
    settings = {"ignore": exclude_patterns(case["dialect"], entries), "family_defaults": False}
    config = Mxfp4Config.from_dict({**settings, **case.get("config", {})})
    resolver = Resolver.for_model(config, model["model_config"], renames=model.get("renames", ()))
    names = offered(model)
    pairs = [(name, shape) for name, (_, shape) in names.items()]

    if "error" in case:
        with pytest.raises(PatternError, match=case["error"]):
            resolver.decide_all(pairs)
        return
    if unmatched := exclude_patterns(case["dialect"], case.get("unmatched", ())):
        with pytest.raises(
            PatternError, match=f"{len(unmatched)} of {len(entries)} name patterns match nothing"
        ):
            resolver.decide_all(pairs)
        assert resolver.unmatched() == unmatched
    else:
        assert len(resolver.decide_all(pairs)) == len(names)

    also_ignored = set(expand(case.get("also_ignored", ())))
    assert also_ignored <= set(names)
    for name, (group, shape) in names.items():
        decision = resolver.decide(name, shape)
        if group == "vectors":
            expected = "kept"
        elif group in case["ignored"] or name in also_ignored:
            expected = "ignored"
        else:
            expected = "default" if group in case["default"] else "quantised"
        found = "quantised" if decision.quantize else "ignored" if decision.pattern else "default"
        assert found == expected or (expected == "kept" and not decision.quantize), (name, decision)

    for template, quantized in case.get("modules", {}).items():
        for module in expand([template]):
            assert resolver.decide(module).quantize is quantized, module


def test_groups_that_the_corpus_speaks_of_exist() -> None:
    for path in CORPUS:
        model = json.loads(path.read_text(encoding="utf-8"))
        groups = {*model["names"], *model.get("stacked", {})}
        for case in model["lists"]:
            assert {*case.get("ignored", ()), *case.get("default", ())} <= groups, (path.name, case["source"])
            assert ("error" in case) != ("ignored" in case), (path.name, case["source"])
