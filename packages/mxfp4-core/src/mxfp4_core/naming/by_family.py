"""What the rows about one model keep in high precision by default, asked for one name after the other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.naming.families import TOWERS, Family, kept_of, rows
from mxfp4_core.naming.matching import Matcher
from mxfp4_core.naming.towers import has_towers, tower_of
from mxfp4_core.naming.view import ModelView
from mxfp4_core.naming.vocabulary import DEFAULT_FUSED, Fused


class ByFamily:
    """The rows about one model.

    Args:
        model_config: contents of config.json; may be empty.
        config: may switch them off. So do targets: who names them has said what is quantised, and a default is for what
            nobody said.
        fused: fused modules and their shards.
        renames: pairs (engine, checkpoint) of component runs that mean the same.
        view: what a model provider says about the model; None where the names alone decide.
    """

    def __init__(
        self,
        model_config: Mapping[str, Any],
        config: Mxfp4Config,
        fused: Fused,
        renames: Sequence[tuple[str, str]] = (),
        view: ModelView | None = None,
    ) -> None:
        if not (config.keep_defaults and config.family_defaults) or config.targets:
            model_config = {}
        self._rows = kept_of(model_config)
        self._towers, self._view = has_towers(model_config), view
        self._matcher = Matcher(self._rows, fused, renames, view.aliases if view else None)

    def why(self, leaf: str) -> tuple[str, str] | None:
        """Return why a weight stays in high precision, and the source of the row that says so; None where none does.

        Args:
            leaf: checkpoint name without ``.weight``.
        """
        if text := next(iter(self._matcher.hits(leaf)), None):
            return f"{text!r} stays as {self._rows[text]} has it, kept by default", self._rows[text]
        for name in (leaf, *(self._view.aliases(leaf) if self._view else ())) if self._towers else ():
            if found := tower_of(name):
                part, what = found
                inside = f"{part!r} is" if name.endswith(part) else f"inside {part!r},"
                return f"{inside} {what}, which SGLang 0.5.23 leaves as it is, kept by default", TOWERS
        return None


def advice(model_type: str, modules: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return what others keep in high precision of a model of this type: the source, and their patterns for ``ignore``.

    Args:
        model_type: as in config.json.
        modules: the weights that would be quantised; patterns that hit none of them are left out.
    """
    advised = [row for row in rows(model_type) if row.kept or row.advised or row.ends]
    names = list(modules) if advised else []
    found = {}
    for row in advised:
        texts = (*row.kept, *row.advised, *_ends(row, names))
        matcher = Matcher(texts, DEFAULT_FUSED, ())
        hit = {text for name in names for text in matcher.hits(name)}
        if hit:
            found[row.source] = tuple(text for text in texts if text in hit)
    return found


def _ends(row: Family, names: Iterable[str]) -> list[str]:
    """Return patterns for the first and the last blocks; none where no block would be left between them."""
    if row.ends is None:
        return []
    blocks, count = row.ends
    matches = (re.search(rf"(?:^|\.){blocks}\.(\d{{1,6}})(?:\.|$)", name) for name in names)
    last = max((int(match[1]) for match in matches if match), default=-1)
    if last < 2 * count:
        return []
    return [f"{blocks}.{number}" for number in (*range(count), *range(last - count + 1, last + 1))]


__all__ = ["ByFamily", "advice"]
