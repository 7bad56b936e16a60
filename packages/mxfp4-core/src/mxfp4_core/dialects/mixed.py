"""Weights of several formats in one checkpoint of our own dialect: which of them are not in the common format.

``weights_format`` names the format of all weights but those in ``formats``: a list of groups, each an object with
``format``, ``profile`` (the resolved profile that made the bytes, empty when unknown), ``activation`` (how the input is
to be quantised) and ``weights`` (their names).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mxfp4_core.arithmetic.formats import registry as formats
from mxfp4_core.arithmetic.formats.base import Format
from mxfp4_core.config.words import ACTIVATIONS, FORMATS
from mxfp4_core.dialects.base import Description
from mxfp4_core.dialects.entry import Entry
from mxfp4_core.dialects.pairs import contradiction, in_order, name_list
from mxfp4_core.dialects.source import Source
from mxfp4_core.errors import FormatError

_PLAIN = "mxfp4"  # the format of a checkpoint that names none


@dataclass(frozen=True)
class Own:
    """What a description says about a weight that is not in the common format.

    Attributes:
        format: name of its format.
        profile: name of the profile of its bytes; empty where it is unknown.
        activation: how its input is to be quantised; empty for the mode of the others.
    """

    format: str
    profile: str = ""
    activation: str = ""


def common(description: Description) -> tuple[str, str]:
    """Return the format that is not told weight by weight, and its profile: the config's, else the most frequent."""
    entries, wanted = description.entries, description.config.format
    counts = Counter(entry.format for entry in entries)
    if not counts or wanted in counts:
        return wanted if counts else _PLAIN, description.profile
    form = min(counts, key=lambda name: (-counts[name], name))
    profile = next((each.profile for each in entries if each.format == form and each.profile), "")
    return form, profile or description.profile


def groups_by_format(description: Description, form: str) -> list[dict[str, Any]]:
    """Return the groups of the weights that are not in the common format, in the order of their names."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for each in description.entries:
        if each.format != form:
            mode = each.activation or description.config.activation
            found.setdefault((each.format, each.profile, mode), []).append(each.weight)
    return [
        {"format": name, "profile": profile, "activation": activation, "weights": sorted(weights)}
        for (name, profile, activation), weights in sorted(found.items())
    ]


def formats_of(dialect: str, described: Mapping[str, Any]) -> dict[str, Own]:
    """Return what a description says about weights that are not in the common format, by name.

    Raises:
        DialectError: no such groups, a format that is not installed, or a weight in two groups.
    """
    groups = described.get("formats")
    if groups is None:
        return {}
    found: dict[str, Own] = {}
    for group in groups if isinstance(groups, list) else [None]:
        if not isinstance(group, dict) or not group.keys() <= {"format", "profile", "activation", "weights"}:
            contradiction(dialect, f"formats = {str(groups)[:80]}", "formats is a list of groups of weights")
        words = [group.get(key) or "" for key in ("format", "profile", "activation")]
        if not all(isinstance(word, str) for word in words) or words[2] not in ("", *ACTIVATIONS):
            seen = f"a group with format, profile and activation {str(words)[:80]}"
            contradiction(dialect, seen, "each is a name, and the last one a mode of activations")
        own = Own(named_format(dialect, words[0]).name, words[1], words[2])
        for weight in name_list(dialect, group, "weights"):
            if weight in found:
                contradiction(dialect, f"{weight!r} in two groups of formats", "a weight has one format")
            found[weight] = own
    return found


def named_format(dialect: str, name: object) -> Format:
    """Return the format that a description names.

    Raises:
        DialectError: none of this name is installed.
    """
    if not isinstance(name, str):
        contradiction(dialect, f"a format {str(name)[:80]}", "it is the name of a format")
    try:
        return formats.get(name)
    except FormatError as error:
        contradiction(dialect, f"the format {name[:80]!r}: {error.seen}", error.rule)


def by_format(source: Source, form: Format, others: Mapping[str, Own]) -> Iterator[tuple[Format, Source]]:
    """Yield each format with the tensors of its weights; with the common one, which comes last, all that is left.

    Args:
        source: the checkpoint.
        form: the common format.
        others: weights in other formats, from `formats_of`.
    """
    left = dict(source.tensors)
    for name in sorted({own.format for own in others.values()}):
        kind = formats.get(name)
        stored = [
            f"{w}{part.suffix}" for w, own in others.items() if own.format == name for part in kind.parts
        ]
        yield kind, replace(source, tensors={each: left.pop(each) for each in stored if each in left})
    yield form, replace(source, tensors=left)


def told(entries: Mapping[str, Entry], others: Mapping[str, Own], source: Source) -> dict[str, Entry]:
    """Return entries with what a description says about each, in the order of the file."""
    found = in_order(entries, source)
    for weight, own in others.items():
        if weight in found:
            found[weight] = replace(found[weight], profile=own.profile, activation=own.activation)
    return found


def check_parts_beside(dialect: str, entries: Mapping[str, Entry], source: Source) -> None:
    """Refuse a weight beside which there is a part that its format does not have: it was made in another format.

    Raises:
        DialectError: names the part.
    """
    suffixes: dict[str, str] = {}
    for (
        name
    ) in FORMATS:  # ours alone: what others have installed is not asked about weights that are not theirs
        for part in formats.get(name).parts:
            if part.suffix:
                suffixes.setdefault(part.suffix, name)
    for weight, entry in entries.items():
        own = set(entry.names)
        for suffix, name in suffixes.items():
            if f"{weight}{suffix}" in source.tensors and f"{weight}{suffix}" not in own:
                seen = f"{weight!r} in {entry.format} beside {weight + suffix!r}, as {name} has it"
                contradiction(
                    dialect, seen, "a weight has the parts of its format, and formats says which it is"
                )


__all__ = [
    "Own", "by_format", "check_parts_beside", "common", "formats_of", "groups_by_format", "named_format", "told",
]  # fmt: skip
