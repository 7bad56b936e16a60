"""What this process holds of each weight where transformers spreads a model over processes (tensor or expert parallel).

transformers names a style for each module or parameter, wraps ``forward`` accordingly, and cuts what stays in high
precision itself. The pieces of quantised weights are cut here while they are read, before they are quantised: along N
anywhere, along K between blocks only, so that the bytes are those of the whole weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import torch

from mxfp4_core.errors import ConfigError
from mxfp4_core.modules import ModelPlan, Mxfp4Experts, Site, Weight, find_gate
from mxfp4_core.parallel import Range, expert_ranges, merged_ranges, shard_ranges

_COLUMNS: Final = frozenset({"colwise", "colwise_rep", "colwise_gather_output"})
_ROWS: Final = frozenset({"rowwise", "rowwise_rep", "rowwise_split_input"})
_WHOLE: Final = frozenset({"", "replicate", "mla_kv_a_proj", "replicated_with_grad_allreduce"})


@dataclass(frozen=True)
class Ranks:
    """Which process of how many this is, and what transformers wants of it.

    Attributes:
        rank: number of this process.
        size: number of processes, which all share every weight that is cut.
        styles: name of the style of each module and parameter that has one, by its name in the model.
    """

    rank: int
    size: int
    styles: Mapping[str, str]


@dataclass(frozen=True)
class Share:
    """What this process holds of one weight.

    Attributes:
        whole: the weight.
        experts: which experts; of a linear (0, 1).
        rows: which rows, in the order in which they lie here.
        cols: which columns.
    """

    whole: Weight
    experts: Range
    rows: tuple[Range, ...]
    cols: Range

    @property
    def local(self) -> Weight:
        """The weight that lies here."""
        n, k = sum(stop - start for start, stop in self.rows), self.cols[1] - self.cols[0]
        stack = (self.experts[1] - self.experts[0],) if len(self.whole.shape) == 3 else ()
        return replace(self.whole, shape=(*stack, n, k))

    def rows_of(self, row: int, value: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield what of rows ``[rows, k]`` of one expert, the first of which is ``row``, lies here, and where."""
        start = 0
        for first, last in self.rows:
            low, high = max(first, row), min(last, row + value.shape[0])
            if low < high:
                yield start + low - first, value[low - row : high - row, self.cols[0] : self.cols[1]]
            start += last - first

    def expert(self, number: int) -> int | None:
        """Return the number that an expert has here, or None where it is elsewhere."""
        first, last = self.experts
        return number - first if first <= number < last else None

    def part(
        self, values: int, rows: bool, piece: torch.Tensor, start: int
    ) -> tuple[int, torch.Tensor] | None:
        """Return what of a piece of a part lies here, and where in the first axis of the part.

        Args:
            values: how many columns of the weight an element of the part belongs to.
            rows: the part has the rows of the weight; else it is one row for all of them.
            piece: ``[experts or rows, ..]`` of the part.
            start: where it begins.
        """
        whole = self.cols == (0, self.whole.shape[-1])  # K may end inside a block then
        cols = slice(None) if whole else slice(self.cols[0] // values, self.cols[1] // values)
        if not rows:
            return start, piece[cols]
        if len(self.whole.shape) == 3:
            low, high = max(self.experts[0], start), min(self.experts[1], start + piece.shape[0])
            cut = piece[low - start : high - start] if low < high else piece[:0]
            inner = [cut[:, first:last, cols] for first, last in self.rows]
            return (low - self.experts[0], torch.cat(inner, 1)) if low < high else None
        found = [
            (place, one) for place, one in replace(self, cols=(0, piece.shape[-1])).rows_of(start, piece)
        ]
        return (found[0][0], torch.cat([one[:, cols] for _, one in found])) if found else None


def shares_of(plan: ModelPlan, ranks: Ranks) -> dict[str, Share]:
    """Return what this process holds of each weight that is cut, by name.

    Raises:
        ShapeError: a boundary would lie inside a block, or the parts would not be equal.
        ConfigError: a style that MXFP4 weights cannot follow.
    """
    found: dict[str, Share] = {}
    for site in plan.sites:
        made = _experts(site, plan, ranks) if site.is_experts else _linear(site, plan, ranks)
        found |= {name: share for name, share in made.items() if share.local.shape != share.whole.shape}
    return found


def _linear(site: Site, plan: ModelPlan, ranks: Ranks) -> dict[str, Share]:
    name = site.name("weight")
    weight, style = plan.weights[name], ranks.styles.get(site.path, "")
    (n, k), parts = weight.shape, ranks.size
    if style in _WHOLE:
        return {}
    if site.held or site.transposed or style not in _COLUMNS | _ROWS | {"packed_colwise"}:
        raise _refused(site, style)
    rows: tuple[Range, ...] = ((0, n),)
    cols = (0, k)
    if style in _ROWS:
        cols = shard_ranges(k, parts, multiple=weight.kind.block, tensor=name, dim="k")[ranks.rank]
    else:
        members = [n // 2, n - n // 2] if style == "packed_colwise" else [n]
        rows = tuple(merged_ranges(members, parts, tensor=name)[ranks.rank])
    return {name: Share(weight, (0, 1), rows, cols)}


def _experts(site: Site, plan: ModelPlan, ranks: Ranks) -> dict[str, Share]:
    names = {key: site.name(key) for key in site.weights}
    styles = {ranks.styles.get(name, "") for name in names.values()}
    if styles <= _WHOLE:
        return {}
    gate = None if site.held else find_gate(site.module)
    if gate is None:
        raise _refused(site, ", ".join(sorted(styles)))
    up, down = (plan.weights[names[key]] for key in Mxfp4Experts.kind_for(gate).matrices.values())
    experts, hidden, n = down.shape
    if styles == {"grouped_gemm"}:
        mine = expert_ranges(experts, ranks.size, tensor=site.path)[ranks.rank]
        return {
            up.name: Share(up, mine, ((0, gate.rows * n),), (0, hidden)),
            down.name: Share(down, mine, ((0, hidden),), (0, n)),
        }
    given = ranks.styles.get(up.name), ranks.styles.get(down.name), ranks.styles.get(site.path)
    columns = "packed_colwise" if gate.gated else "colwise"
    if given != (columns, "rowwise", "moe_tp_experts"):
        raise _refused(site, ", ".join(sorted(styles)))
    low, high = shard_ranges(n, ranks.size, multiple=down.kind.block, tensor=down.name, dim="k")[ranks.rank]
    rows: tuple[Range, ...] = ((gate.rows * low, gate.rows * high),)
    if gate.halves:
        rows = ((low, high), (n + low, n + high))
    return {
        up.name: Share(up, (0, experts), rows, (0, hidden)),
        down.name: Share(down, (0, experts), ((0, hidden),), (low, high)),
    }


def _refused(site: Site, style: str) -> ConfigError:
    return ConfigError(
        f"{site.path} cannot be split over processes",
        seen=f"the style {style!r} of the parallel plan" + (f", and {site.held}" if site.held else ""),
        rule=f"MXFP4 linears follow {', '.join(sorted(_COLUMNS | _ROWS))} and packed_colwise, stacks of experts "
        "packed_colwise (without a gate colwise) with rowwise, or grouped_gemm",
        fix=f"keep it in high precision: ignore=[{site.path!r}]; or give another plan",
    )


def check_whole(shares: Mapping[str, Share], what: str) -> None:
    """Check that this process holds the whole model.

    Raises:
        ConfigError: it holds a part of some weights.
    """
    if shares:
        raise ConfigError(
            f"a model that processes share cannot be {what}",
            seen=f"parts of {len(shares)} weights here",
            rule=f"what is {what} has all of its weights in one process",
            fix="load it in one process for that; what `mxfp4 quantize` writes is loaded by many as well",
        )


def local_site(site: Site, shares: Mapping[str, Share]) -> Site:
    """Return a site with the sizes that its weights have here."""
    weights = {
        key: shares[site.name(key)].local.shape if site.name(key) in shares else shape
        for key, shape in site.weights.items()
    }
    return replace(site, weights=weights)


__all__ = ["Ranks", "Share", "check_whole", "local_site", "shares_of"]
