"""Which patterns hit a name, through which spelling.

A pattern counts for a name through its own spellings first. Through the name of the fused module that the weight
is part of it counts only where it hits no shard by itself: so ``qkv_proj`` reaches q, k and v, and ``re:.*v_proj``
reaches v alone, which is then an error, because the three share one kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from mxfp4_core.config.patterns import PatternSet
from mxfp4_core.naming.vocabulary import Fused, fused_names, spellings

Hits = Mapping[str, str]
"""Pattern to the spelling that it hit."""

NO_HITS: Final[Hits] = MappingProxyType({})
"""What hits where there are no patterns."""


class Matcher:
    """Finds the patterns that hit a leaf, and remembers what it found.

    Safe to share between threads: what is remembered is stored only when it is complete.

    Args:
        texts: the patterns.
        fused: fused modules and their shards.
        renames: pairs (engine, checkpoint) of component runs that mean the same.
        aliases: further names that mean the same as one; see `ModelView.aliases`.
    """

    def __init__(
        self,
        texts: Iterable[str],
        fused: Fused,
        renames: Sequence[tuple[str, str]],
        aliases: Callable[[str], Sequence[str]] | None = None,
    ) -> None:
        self._patterns, self._aliases = PatternSet(texts), aliases
        self._fused, self._renames = fused, renames
        self._own: dict[str, Hits] = {}
        self._all: dict[str, Hits] = {}
        self._guards: dict[str, frozenset[str]] = {}

    @property
    def texts(self) -> list[str]:
        """Return the patterns in their order."""
        return [pattern.text for pattern in self._patterns.patterns]

    @property
    def searches_numbers(self) -> bool:
        """Return whether a pattern can tell numbers apart that it does not write out."""
        return self._patterns.searches_numbers

    def hits(self, leaf: str) -> Hits:
        """Return the patterns that hit a leaf, by itself or through a fused module."""
        if not self._patterns.patterns:
            return NO_HITS
        if (known := self._all.get(leaf)) is not None:
            return known
        hits = dict(self._own_hits(leaf))
        for fused, shards in fused_names(leaf, self._fused):
            of_shards = {text for shard in shards for text in self._own_hits(shard)}
            for text, spelling in self._own_hits(fused).items():
                if text not in of_shards:
                    hits.setdefault(text, spelling)
        self._all[leaf] = hits
        return hits

    def meant(self, leaf: str) -> Collection[str]:
        """Return those patterns that hit a leaf and mean it.

        ``X.*`` hits the bias of a linear X, which is kept in any case, and not X, which it was to keep.
        """
        hits, module = self.hits(leaf), leaf.removesuffix(".bias")
        if module == leaf:
            return hits.keys()
        return {
            text
            for text in hits
            if not text.endswith("*") or text.startswith("re:") or text in self.hits(module)
        }

    def _own_hits(self, module: str) -> Hits:
        if (known := self._own.get(module)) is not None:
            return known
        hits: dict[str, str] = {}
        aliases = self._aliases(module) if self._aliases else ()
        for name in (module, *aliases):
            for spelling in spellings(name, self._renames):
                guarded = self._guarded(spelling.guard)
                for text in self._patterns.find(spelling.text):
                    if text not in guarded:
                        hits.setdefault(text, spelling.text)
        self._own[module] = hits
        return hits

    def _guarded(self, prefix: str) -> frozenset[str]:
        if (known := self._guards.get(prefix)) is None:
            known = self._guards[prefix] = frozenset(self._patterns.find(prefix) if prefix else ())
        return known


__all__ = ["Hits", "Matcher"]
