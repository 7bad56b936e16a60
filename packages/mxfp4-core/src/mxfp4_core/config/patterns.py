r"""Name patterns: what ``ignore``, ``targets`` and ``overrides`` are written in.

    lm_head                      any name with this whole component; never ``lm_head_2`` or ``my_lm_head``
    mlp.gate                     a run of whole components: ``layers.3.mlp.gate``, not ``layers.3.mlp.gate_proj``
    layers.*.self_attn           ``*`` stands for anything inside one component
    visual.**.proj               ``**`` stands for any number of components, none included
    =model.layers.0.mlp.gate     the whole name and nothing else
    re:.*\.layers\.[0-3]\..*      a regular expression that must match the whole name

A pattern is tried on the name of the module (``layers.0.mlp.gate``), an expression also on that of its tensor
(``layers.0.mlp.gate.weight``). A trailing ``.weight`` in a path or after ``=`` is dropped.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from mxfp4_core._text import nearest
from mxfp4_core.config.expressions import Expression, UnboundedError
from mxfp4_core.errors import PatternError

WEIGHT_SUFFIX = ".weight"
_PATH = re.compile(r"[A-Za-z0-9_\-*]+(\.[A-Za-z0-9_\-*]+)*")
MAX_LENGTH = 2000
# A class with digits, \d, a repetition, a digit beside a wildcard: what tells 3 from 30 without naming both.
_TELLS_NUMBERS = re.compile(r"\[[^\]]*\d|\\d|\{|\d(\[\^|\.\*|\.\+|\w*\|)|(\]\*|\.\*|\.\+|\|)\d")


@dataclass(frozen=True)
class Pattern:
    """One parsed pattern.

    Attributes:
        text: as the user wrote it.
        literal: for ``=name`` the name, for a path without wildcards the path; otherwise None.
        exact: whether ``literal`` must be the whole name.
        body: the regular expression of a pattern with wildcards or ``re:``; empty for literals.
    """

    text: str
    literal: str | None
    exact: bool = False
    body: str = ""

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read a pattern.

        Raises:
            PatternError: empty, an unknown character, an empty component, a glued ``**``, a broken expression.
        """
        if len(text) > MAX_LENGTH:
            raise _bad(
                text[:60] + "…", f"a pattern has at most {MAX_LENGTH} characters", "split it into several"
            )
        if text.startswith("re:"):
            body = text.removeprefix("re:")
            found = cls(text, None, body=body)
            try:
                found._regex  # noqa: B018  # it is made here, or not at all
            except re.error as error:
                raise _bad(
                    text, f"what follows 're:' is a Python regular expression: {error}", "correct it"
                ) from None
            except UnboundedError as error:
                raise _unbounded(text, error) from None
            return found
        exact = text.startswith("=")
        path = text.removeprefix("=").removesuffix(WEIGHT_SUFFIX)
        if not _PATH.fullmatch(path):
            raise _bad(
                text,
                "a pattern is components of letters, digits, '_', '-' and '*', joined by single dots",
                "correct it, or write a regular expression after 're:'",
            )
        if "*" not in path:
            return cls(text, path, exact)
        if exact:
            raise _bad(text, "'=' takes a whole name without wildcards", "drop the '=' or the '*'")
        return cls(text, None, body=_path_regex(text, path.split(".")))

    @cached_property
    def _regex(self) -> Expression:
        return Expression(self.body)

    def matches(self, name: str) -> bool:
        """Return whether the pattern hits a name, given with or without ``.weight``."""
        module = name.removesuffix(WEIGHT_SUFFIX)
        if self.literal is not None:
            return module == self.literal or (not self.exact and f".{self.literal}." in f".{module}.")
        try:
            if self._regex.fullmatch(module):
                return True
            # Only an expression may mean the tensor; a path with `*` would take `weight` for one more component.
            return self.text.startswith("re:") and self._regex.fullmatch(module + WEIGHT_SUFFIX)
        except UnboundedError as error:
            raise _unbounded(self.text, error) from None


def _path_regex(text: str, components: list[str]) -> str:
    while components and components[0] == "**":
        components = components[1:]
    while components and components[-1] == "**":
        components = components[:-1]
    if not components:
        return ".*"
    body, after_gap = "", True
    for component in components:
        if component == "**":
            body, after_gap = body + r"\.(?:[^.]+\.)*", True
            continue
        if "**" in component:
            raise _bad(text, "'**' stands alone between dots", "write '*' for a part of a component")
        body += ("" if after_gap else r"\.") + _component_regex(component)
        after_gap = False
    return rf"(?:.*\.)?{body}(?:\..*)?"


def _component_regex(component: str) -> str:
    return r"[^.]+" if component == "*" else re.escape(component).replace(r"\*", "[^.]*")


def _unbounded(text: str, error: UnboundedError) -> PatternError:
    rule = f"an expression is matched in bounded time, whoever wrote it: {error}"
    return _bad(text, rule, "write it without, or as several patterns")


def _bad(text: str, rule: str, fix: str) -> PatternError:
    return PatternError("a name pattern cannot be read", seen=repr(text), rule=rule, fix=fix)


class PatternSet:
    """Many patterns, searched together: thousands of literal ones cost as much as a few.

    Args:
        texts: the patterns; order is kept.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.patterns = [Pattern.parse(text) for text in texts]
        self._order = {pattern.text: index for index, pattern in enumerate(self.patterns)}
        self._exact: dict[str, list[str]] = defaultdict(list)
        self._runs: dict[str, list[str]] = defaultdict(list)
        self._searched: list[Pattern] = []
        for pattern in self.patterns:
            if pattern.literal is None:
                self._searched.append(pattern)
            else:
                (self._exact if pattern.exact else self._runs)[pattern.literal].append(pattern.text)
        self._lengths = sorted({literal.count(".") + 1 for literal in self._runs})

    @property
    def searches_numbers(self) -> bool:
        """Return whether a pattern can tell numbers apart without writing them out, as ``[0-3]`` or ``1*``."""
        return any(_TELLS_NUMBERS.search(pattern.body) for pattern in self._searched)

    def find(self, name: str) -> list[str]:
        """Return the texts of all patterns that hit ``name``, in the order in which they were given."""
        module = name.removesuffix(WEIGHT_SUFFIX)
        found = set(self._exact.get(module, ()))
        if self._lengths:
            parts = module.split(".")
            for length in self._lengths:
                for start in range(len(parts) - length + 1):
                    found.update(self._runs.get(".".join(parts[start : start + length]), ()))
        found.update(pattern.text for pattern in self._searched if pattern.matches(module))
        return sorted(found, key=self._order.__getitem__)


_NEAR = 3  # what a message has room for


def near_misses(text: str, names: Sequence[str]) -> list[str]:
    """Return at most three patterns like ``text`` that match a name: an unknown component replaced by its nearest.

    Args:
        text: a pattern that matches nothing.
        names: the names that were offered.
    """
    plain = text.removeprefix("=").removeprefix("re:").removesuffix(WEIGHT_SUFFIX)
    if text.startswith("re:"):
        plain = ".".join(re.findall(r"\w+", plain.replace("\\", ".")))
    vocabulary = {part for name in names for part in name.split(".") if not part.isdigit()}
    words = [part for part in plain.split(".") if part and "*" not in part]
    repaired = []
    for word in words:
        if word.isdigit() or word in vocabulary:
            continue
        repaired += [plain.replace(word, better) for better in nearest(word, sorted(vocabulary))]
    templates = list(dict.fromkeys(_template(name) for name in names))
    candidates = [candidate for candidate in repaired if _hits(candidate, names)]
    candidates += nearest(plain, templates)
    for word in reversed(words):
        candidates += [template for template in templates if word in template.split(".")]
    return [candidate for candidate in dict.fromkeys(candidates) if candidate != text][:_NEAR]


def _template(name: str) -> str:
    parts = name.removesuffix(WEIGHT_SUFFIX).split(".")
    return ".".join("*" if part.isdigit() else part for part in parts)


def _hits(text: str, names: Sequence[str]) -> bool:
    try:
        pattern = Pattern.parse(text)
    except PatternError:
        return False
    return any(pattern.matches(name) for name in names)


__all__ = ["WEIGHT_SUFFIX", "Pattern", "PatternSet", "near_misses"]
