"""What is decided about one weight, and the errors for patterns that cannot be decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from mxfp4_core.config.override import Override
from mxfp4_core.config.patterns import near_misses
from mxfp4_core.config.words import Activation
from mxfp4_core.errors import PatternError
from mxfp4_core.naming.vocabulary import parse_expert, ranges

Outcome = tuple[bool, str | None, str, str]
"""Whether a weight is quantised, by which profile, its activations, and its format: what a fused module has once."""

NO_TARGET: Final = "no target matches it"
"""Why a weight is kept that none of the targets names."""


@dataclass(frozen=True)
class Decision:
    """What happens to one weight.

    Attributes:
        name: canonical name of the weight on the side of the checkpoint.
        quantize: whether it is quantised.
        reason: why, in words.
        pattern: the user's pattern that decided, if one did.
        profile: the profile that it gets, None where it is kept.
        activation: how activations are quantised where it is used.
        matched: the spelling of the name that the pattern hit.
        format: what it becomes; that of the config where it is kept.
        row: source of the row in the table of families that keeps it, if one does.
    """

    name: str
    quantize: bool
    reason: str
    pattern: str | None = None
    profile: str | None = None
    matched: str | None = None
    activation: Activation = "none"
    format: str = "mxfp4"
    row: str = ""

    @property
    def outcome(self) -> Outcome:
        """Return what parts of one fused module must have in common."""
        return self.quantize, self.profile, self.activation, self.format if self.quantize else ""

    @property
    def kept_by_pattern(self) -> bool:
        """Return whether a pattern of the config names it to be kept."""
        return not self.quantize and self.pattern is not None

    @property
    def kept_by_config(self) -> bool:
        """Return whether the patterns of the config keep it, and not its nature or the defaults."""
        return self.kept_by_pattern or (not self.quantize and self.reason == NO_TARGET)


def refuse_pair(leaf: str, seen: str) -> NoReturn:
    """Raise the error for two instructions about one name."""
    raise PatternError(
        f"{leaf} gets two different instructions",
        seen=seen,
        rule="patterns that match the same name agree on it",
        fix="narrow one of them",
    )


def refuse_split(module: str, members: Mapping[str, Decision]) -> NoReturn:
    """Raise the error for a fused module whose parts are decided differently.

    Args:
        module: the fused module, or the ``experts`` of a layer.
        members: its parts, each with its decision.
    """
    groups: dict[Outcome, list[str]] = {}
    for leaf, decision in members.items():
        groups.setdefault(decision.outcome, []).append(leaf)
    profiles = len({profile for _, profile, _, _ in groups if profile})
    modes = len({activation for quantize, _, activation, _ in groups if quantize})
    formats = len({format for quantize, _, _, format in groups if quantize})
    seen = []
    for (quantize, profile, activation, format), leaves in groups.items():
        verdict = "quantised" if quantize else "kept"
        verdict += f" to {format}" if quantize and formats > 1 else ""
        verdict += f" by {profile}" if quantize and profiles > 1 else ""
        verdict += f" with activation {activation}" if quantize and modes > 1 else ""
        why = dict.fromkeys(repr(members[leaf].pattern) for leaf in leaves if members[leaf].pattern)
        by = f" ({', '.join(list(why)[:3])}{', …' if len(why) > 3 else ''})" if why else ""
        seen.append(f"{_listed(leaves)} {verdict}{by}")
    last = module.rsplit(".", 1)[-1]
    raise PatternError(
        f"{module} would be split",
        seen="; ".join(seen),
        rule="all parts of a fused module, and all experts of a layer, are quantised alike",
        fix=f"name every part, or none, or the whole as {last!r}",
    )


def refuse_idle(idle: Mapping[str, str], overrides: Mapping[str, Override]) -> NoReturn:
    """Raise the error for patterns that ask for MXFP4 and match only what is kept.

    Args:
        idle: these patterns, each with why the first name that it matches is kept; empty where that is unknown.
        overrides: by pattern.
    """
    tried = all(text in overrides and overrides[text].keep is False for text in idle)
    raise PatternError(
        "a pattern asks for MXFP4, but all that it matches is kept",
        seen="; ".join(f"{text!r}" + (f" ({why})" if why else "") for text, why in [*idle.items()][:5]),
        rule="a target or an override quantises at least one weight",
        fix="drop it: even an override with keep = false makes no MXFP4 of this"
        if tried
        else "drop it, or give it an override with keep = false, which outranks the defaults",
    )


def refuse_unmatched(missing: Sequence[str], patterns: int, names: Sequence[str]) -> NoReturn:
    """Raise the error for patterns that match no name, with near misses.

    Args:
        missing: these patterns.
        patterns: how many there are.
        names: all names of the model.
    """
    hints = [(text, near_misses(text, list(names))) for text in missing[:5]]
    near = "; ".join(f"for {text!r} try {' or '.join(map(repr, found))}" for text, found in hints if found)
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    raise PatternError(
        f"{len(missing)} of {patterns} name patterns match nothing",
        seen=", ".join(map(repr, missing[:5])) + more,
        rule=f"every pattern matches at least one of the {len(names)} names of the model",
        fix=near or "correct or drop it; `mxfp4 plan` prints the names",
    )


def _listed(leaves: Sequence[str]) -> str:
    parts_of: dict[int, list[str]] = {}
    plain: list[str] = []
    for leaf in leaves:
        expert = parse_expert(leaf)
        if expert is not None and expert.index is not None:
            parts_of.setdefault(expert.index, []).extend(expert.parts)
        else:
            plain.append(leaf.rsplit(".", 1)[-1])
    experts_with: dict[tuple[str, ...], list[int]] = {}
    for index, parts in parts_of.items():
        experts_with.setdefault(tuple(parts), []).append(index)
    texts = [f"experts {ranges(indices)} ({', '.join(parts)})" for parts, indices in experts_with.items()]
    return "; ".join([*texts, ", ".join(plain)] if plain else texts)


__all__ = [
    "NO_TARGET",
    "Decision",
    "Outcome",
    "refuse_idle",
    "refuse_pair",
    "refuse_split",
    "refuse_unmatched",
]
