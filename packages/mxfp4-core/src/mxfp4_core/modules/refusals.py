"""What is to be quantised and cannot be: one error for all of it, with a pattern that works as printed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from mxfp4_core.config.patterns import MAX_LENGTH
from mxfp4_core.errors import BackendError, ConfigError, Mxfp4Error
from mxfp4_core.naming.braces import template

_SHOWN = 5


@dataclass(frozen=True)
class Refusal:
    """One module that is to be quantised and cannot be.

    Attributes:
        path: name of the module, which a pattern has to hit.
        label: what a message calls it: the module, or its weight.
        why: what was seen.
        rule: why that is no weight for MXFP4.
        fix: what else could be done about it; empty where keeping it is all.
        error: class of the error.
        loose: patterns may name it by its last component, whatever the layer.
    """

    path: str
    label: str
    why: str
    rule: str = "nothing stays in high precision unless the config says so"
    fix: str = ""
    error: type[Mxfp4Error] = ConfigError
    loose: bool = False


def refuse(
    refusals: Sequence[Refusal], works: Callable[[Sequence[str]], bool], *, something_left: bool = True
) -> NoReturn:
    """Raise one error for all refusals.

    Args:
        refusals: at least one.
        works: says whether a config with these patterns added to ``ignore`` keeps all of them and nothing else.
        something_left: there are other weights; else keeping what no backend takes is no advice.
    """
    first = refusals[0]
    more = f" and {len(refusals) - 1} more" if len(refusals) > 1 else ""
    by_why: dict[str, list[str]] = {}
    for each in refusals:
        by_why.setdefault(each.why, []).append(each.label)
    lines = [f"{_some(labels)}: {why}" for why, labels in by_why.items()]
    seen = next(iter(by_why)) if len(refusals) == 1 else "\n        ".join(lines[:_SHOWN])
    if len(lines) > _SHOWN:
        seen += f"\n        and {len(lines) - _SHOWN} more reasons"
    kinds = {each.error for each in refusals}
    fixes = list(dict.fromkeys(each.fix for each in refusals if each.fix))[:2]
    if something_left or kinds != {BackendError}:
        found = ignoring(refusals, works)
        fixes.append(f"say so: ignore=[{', '.join(map(repr, found))}], or refused='keep'")
    raise (kinds.pop() if len(kinds) == 1 else ConfigError)(
        f"{first.label}{more} {'are' if more else 'is'} to be quantised and cannot be",
        seen=seen,
        rule="; ".join(dict.fromkeys(each.rule for each in refusals)),
        fix=", or ".join(fixes) or "load without quantisation",
    )


def ignoring(refusals: Sequence[Refusal], works: Callable[[Sequence[str]], bool]) -> list[str]:
    """Return patterns for ``ignore`` that keep all that was refused and nothing else: one, wherever that is possible.

    The candidates go from the shortest to the most exact one, and the first that works is taken.
    """
    candidates = list(_candidates(refusals))
    return next((each for each in candidates if works(each)), candidates[-1])


def _candidates(refusals: Sequence[Refusal]) -> Iterable[list[str]]:
    paths = list(dict.fromkeys(each.path for each in refusals))
    templates = list(dict.fromkeys(map(template, paths)))
    if len(paths) == 1:
        yield paths
    elif len(templates) == 1:
        yield templates
    if all(each.loose for each in refusals):
        yield list(dict.fromkeys(path.rpartition(".")[2] for path in paths))
    for texts in (templates, paths):
        branches = (re.escape(text).replace(r"\*", r"\d+").replace("\\-", "-") for text in texts)
        pattern = rf"re:({'|'.join(branches)})(\..*)?"
        if len(pattern) <= MAX_LENGTH:
            yield [pattern]
    yield [f"={path}" for path in paths]


def _some(labels: Sequence[str]) -> str:
    rest = f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
    return ", ".join(labels[:_SHOWN]) + rest


def reasons_of(refusals: Iterable[Refusal]) -> Mapping[str, str]:
    """Return why each module was refused, by its name, as a report says it."""
    return {each.path: f"refused: {each.why}" for each in refusals}


__all__ = ["Refusal", "ignoring", "reasons_of", "refuse"]
