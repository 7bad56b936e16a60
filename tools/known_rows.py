"""The row of one class: what all that was seen of it agrees on, and which settings its facts depend on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from known_names import Expressions, counts_of, pointed, starred
from known_probes import FREE, Config, Seen, flat, others

from mxfp4_core.naming import GatedActivation, ModelView, Parameter

TIE = "tie_word_embeddings"


class Table:
    """The row of one class: what all that was seen of it agrees on."""

    def __init__(self, kind: Any, seen: Sequence[Seen], tried: Sequence[str]) -> None:
        self.kind, self.seen = kind, seen
        self.expressions = Expressions(seen)
        self.counts = counts_of(seen, self.expressions)
        base = seen[0].settings
        proven = {path for each in seen for path, value in each.settings.items() if value != base.get(path)}
        proven |= {each.changed for each in seen}
        self.settled = {path: base[path] for path in tried if path not in proven and path in base}
        self.ties: dict[str, str] = {}
        self.tie = ""

    def build(self) -> dict[str, Any]:
        """Return the row as it is written down."""
        parameters = self._parameters()
        self._find_ties(parameters)
        renames = self._same([[list(pair) for pair in each.own.renames] for each in self.seen])
        names, buffers, labels = self._names(parameters)
        row = {
            "model_type": self.kind.config_class.model_type,
            "settled": dict(sorted(self.settled.items())),
            "aliases": dict(sorted(_aliases(self.kind.config_class()))),
            "counts": dict(sorted(self.counts.items())),
            "tie": self.tie,
            "tied": dict(sorted(self.ties.items())),
            "renames": renames,
            "prefix": self.kind.base_model_prefix,
            "also": labels,
            "ignored": self._ignored(),
            "buffers": sorted(buffers),
            "parameters": parameters,
            "names": names,
        }
        text = json.dumps(row)
        used = {
            path
            for path in self.seen[0].settings
            if not FREE.search(path) and path.rpartition(".")[2] in text
        }
        return {**row, "defaults": self._defaults(frozenset(used))}

    def _defaults(self, used: frozenset[str]) -> dict[str, Any]:
        """Return the settings in use that a config may leave out: those that follow from no other one."""
        kind = self.kind.config_class
        base = dict(flat(kind().to_dict()))
        moved = set()
        for path, value in base.items():
            for other in others(value)[:3]:
                try:
                    found = dict(flat(kind(**_nested(path, other)).to_dict()))
                except Exception:  # a value that the class does not take says nothing
                    continue
                moved |= {key for key, new in found.items() if key != path and new != base.get(key)}
        return {path: value for path, value in base.items() if path in used - moved}

    def _ignored(self) -> list[str]:
        """Return the patterns of names that the class expects in files and has no place for."""
        patterns = sorted(getattr(self.kind, "_keys_to_ignore_on_load_unexpected", None) or ())
        known = "\n".join(name for view, _ in self.seen[0].views.values() for name in view.tensors)
        return [each for each in patterns if not re.search(each, known, re.MULTILINE)]

    def _same(self, values: Sequence[Any]) -> Any:
        """Return what was seen with the base config; a setting that changes it is held to its value."""
        for each, value in zip(self.seen, values, strict=True):
            if value != values[0]:
                self._settle(each.changed)
        return values[0]

    def _settle(self, path: str) -> None:
        if path in self.seen[0].settings:
            self.settled[path] = self.seen[0].settings[path]

    def _parameters(self) -> dict[str, Any]:
        found: dict[str, list[list[Parameter]]] = {}
        for index, each in enumerate(self.seen):
            for name, parameter in each.own.parameters.items():
                template, _ = starred(name, self.counts)
                found.setdefault(template, [[] for _ in self.seen])[index].append(parameter)
        rows = {}
        for template, groups in sorted(found.items()):
            facts = [[*map(_facts, group)] for group in groups]
            if any(each != group[0] for group in facts for each in group):
                continue  # layers differ: the name alone does not tell
            first = next(group[0] for group in facts if group)
            for each, group in zip(self.seen, facts, strict=True):
                if group and group[0] != first:
                    self._settle(each.changed)
            axes = {len(parameter.shape) for group in groups for parameter in group}
            if len(axes) > 1:
                continue
            dims = self._sizes([[parameter.shape for parameter in group] for group in groups], axes.pop())
            top: Any = self.expressions.of(
                [_one(each.top_k for each in group if each.top_k) for group in groups]
            )
            if first.get("gate") and top is None:
                continue
            rows[template] = {
                **first,
                "dims": dims,
                **({"top_k": top} if top and first["kind"] == "experts" else {}),
                **self._presence(groups, dims),
            }
        return rows

    def _presence(self, groups: Sequence[Sequence[Parameter]], dims: Sequence[Any]) -> dict[str, Any]:
        if len(dims) < 2:
            return {}
        present = bool(groups[0])
        changed: dict[str, list[Any]] = {}
        for each, group in zip(self.seen, groups, strict=True):
            if bool(group) != present and each.changed in each.settings:
                values = changed.setdefault(each.changed, [])
                if (value := each.settings[each.changed]) not in values:
                    values.append(value)
        if present or not changed:
            return {"unless": changed} if changed else {}
        # Numbers and lists say where in a model something is: any but that of the base config will do.
        base = self.seen[0].settings
        where = {
            path for path, values in changed.items() if any(type(value) in (int, list) for value in values)
        }
        return {
            "if": {
                path: {"not": base[path]} if path in where else {"in": values}
                for path, values in changed.items()
            }
        }

    def _find_ties(self, parameters: Mapping[str, Any]) -> None:
        def ties(view: ModelView) -> dict[str, str]:
            pairs = {name: each.tied_to for name, each in view.parameters.items() if each.tied_to}
            return {
                starred(name, self.counts)[0]: starred(other, self.counts)[0] for name, other in pairs.items()
            }

        found = [ties(each.own) for each in self.seen]
        for each, pairs in zip(self.seen, found, strict=True):
            if pairs == found[0]:
                continue
            tied = pairs if each.settings.get(each.changed) is True else found[0]
            if (
                each.changed.endswith(TIE)
                and self.tie in ("", each.changed)
                and tied
                and not (pairs and found[0])
            ):
                self.tie, self.ties = each.changed, pairs or found[0]
            else:
                self._settle(each.changed)
        if not self.tie:
            self.ties = found[0]
        if any("*" in name for name in self.ties):
            raise ValueError("ties of layers")

    def _names(self, parameters: Mapping[str, Any]) -> tuple[dict[str, Any], set[str], list[str]]:
        names: dict[str, dict[str, Any]] = {}
        wrong: set[str] = set()
        buffers: set[str] = set()
        labels = ["bare", "prefixed"]
        prefix = self.kind.base_model_prefix + "."
        for each in self.seen:
            for label, (view, shapes) in each.views.items():
                for name, shape in shapes.items():
                    template, _ = starred(name, self.counts)
                    stored = view.tensors.get(name)
                    if label in ("bare", "prefixed"):
                        own = prefix + name if label == "bare" else name.removeprefix(prefix)
                        if label == "bare" and own not in each.own.parameters:
                            continue
                        if own in each.own.parameters and (stored is None or stored.parameters != (own,)):
                            labels = [one for one in labels if one != label]
                        continue
                    if stored is None:
                        buffers.add(template)
                        continue
                    options = [pointed(target, name, self.counts) for target in stored.parameters]
                    row = names.setdefault(
                        template, {"to": options, "k_first": stored.k_first, "shapes": [], "whole": True}
                    )
                    row["to"] = [old & new for old, new in zip(row["to"], options, strict=False)]
                    if (
                        len(options) != len(row["to"])
                        or row["k_first"] != stored.k_first
                        or not all(row["to"])
                    ):
                        wrong.add(template)
                    row["shapes"].append((each, shape))
                    logical = (*shape[:-2], shape[-1], shape[-2]) if stored.k_first else shape
                    row["whole"] &= (
                        len(options) == 1 and view.parameters[stored.parameters[0]].shape == logical
                    )
        result = {}
        for template, row in sorted(names.items()):
            if template in wrong or template in buffers:
                continue
            to = [min(options) for options in row["to"]]
            plain = [re.sub(r"\{\d+\}", "*", text) for text in to]
            if not all(text in parameters for text in plain):
                continue
            dims = self._dims(row["shapes"])
            vague = any(None in parameters[text]["dims"] for text in plain)
            if dims is None or (vague and not row["whole"]):
                continue
            own = parameters.get(template)
            raw = _raw(own) if own else None
            if (
                plain == [template]
                and _ordered(to[0])
                and row["k_first"] == bool(own and own.get("k_first"))
                and dims == raw
            ):
                continue
            result[template] = {"to": to, "dims": dims, **({"k_first": True} if row["k_first"] else {})}
        for template in parameters:
            if template in wrong or template in buffers:
                raise ValueError(f"{template} is not always itself")
        return result, buffers - {*names}, labels

    def _dims(self, shapes: Sequence[tuple[Seen, tuple[int, ...]]]) -> list[Any] | None:
        axes = {len(shape) for _, shape in shapes}
        groups = [[shape for other, shape in shapes if other is each] for each in self.seen]
        return self._sizes(groups, axes.pop()) if len(axes) == 1 else None

    def _sizes(self, groups: Sequence[Sequence[tuple[int, ...]]], axes: int) -> list[Any]:
        """Return what each axis follows from; vectors stay as they are, so nobody asks about theirs."""
        if axes < 2:
            return [None] * axes
        return [
            self.expressions.of([_one(shape[axis] for shape in group) for group in groups])
            for axis in range(axes)
        ]


def _aliases(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for alias, path in config.attribute_map.items():
        yield prefix + alias, prefix + path
    for name in config.sub_configs:
        if (part := getattr(config, name, None)) is not None:
            yield from _aliases(part, f"{prefix}{name}.")


def _nested(path: str, value: object) -> Config:
    head, _, rest = path.partition(".")
    return {head: _nested(rest, value) if rest else value}


def _one(values: Any) -> int | None:
    found = {*values}
    return found.pop() if len(found) == 1 else None


def _facts(parameter: Parameter) -> dict[str, Any]:
    gate = parameter.gate
    found = {
        "kind": parameter.kind,
        "module": parameter.module,
        "k_first": parameter.k_first,
        "keep": parameter.keep,
        "refusal": parameter.refusal,
        "held": parameter.held,
        "reader": parameter.reader,
        "gate": _numbers(gate) if gate else None,
    }
    return {key: value for key, value in found.items() if value}


def _numbers(gate: GatedActivation) -> list[Any]:
    """Return what a gate is made of, as short as it can be written."""
    whole, usual = list(gate.arguments), list(GatedActivation().arguments)
    return whole if whole[4:] != usual[4:] else whole[:4]


def _raw(row: Mapping[str, Any]) -> list[Any]:
    dims = row["dims"]
    return [*dims[:-2], dims[-1], dims[-2]] if row.get("k_first") else dims


def _ordered(text: str) -> bool:
    places = [int(place) for place in re.findall(r"\{(\d+)\}", text)]
    return places == sorted(places)
