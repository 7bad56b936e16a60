"""One row of a table, read with one config.json: from the headers of a checkpoint to parameters and tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mxfp4_core.naming import CheckpointTensor, GatedActivation, Headers, Parameter
from mxfp4_transformers_models.settings import Settings, UncertainError

_FLOATS: Final = frozenset({"BF16", "F16", "F32", "F64"})
_PLACE: Final = re.compile(r"\{\d+\}")

Sizes = tuple[int | None, ...]


@dataclass(frozen=True)
class _Entry:
    """What a name stands for: targets, as text for `str.format` with the indices, and how it lies in a file."""

    targets: tuple[tuple[str, str], ...]
    sizes: Sizes
    k_first: bool


class Row:
    """What a table knows about one class, under the settings of one model.

    Args:
        data: the row.
        config: contents of config.json.

    Raises:
        UncertainError: a setting is not the one that the facts were seen with.
    """

    def __init__(self, data: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        self._settings = Settings(config, data["aliases"], data["defaults"])
        for path, value in data["settled"].items():
            if self._settings.get(path) != value:
                raise UncertainError(path)
        self._facts: Mapping[str, Mapping[str, Any]] = data["parameters"]
        self._names: Mapping[str, Mapping[str, Any]] = data["names"]
        self._buffers = frozenset(data["buffers"])
        self._ignored = [re.compile(pattern) for pattern in data["ignored"]]
        self._counts = {prefix: self._settings.number(text) for prefix, text in data["counts"].items()}
        self._tied: Mapping[str, str] = data["tied"]
        if data["tie"] and not self._settings.get(data["tie"]):
            self._tied = {}
        self._prefix: str = data["prefix"] + "."
        self._also = frozenset(data["also"])
        self._entries: dict[str, _Entry] = {}
        self._sizes: dict[str, Sizes] = {}
        self._parameters: dict[str, Parameter] = {}

    def read(self, headers: Headers) -> tuple[dict[str, Parameter], dict[str, CheckpointTensor]]:
        """Return the parameters and the tensors of a checkpoint, by name.

        Raises:
            UncertainError: anything is not as the row has it.
        """
        tensors = {}
        for name, (dtype, shape) in headers.items():
            if (found := self._tensor(name, dtype, shape)) is not None:
                tensors[name] = found
        if 2 * len(tensors) < len(headers):
            raise UncertainError("most tensors have no place in the model; the library says why")
        self._add_tied()
        return self._parameters, tensors

    def _add_tied(self) -> None:
        """Describe what shares the memory of a parameter that is there, however many share it, and in any order."""
        pairs = [*self._tied.items(), *((other, name) for name, other in self._tied.items())]
        count = -1
        while count != len(self._parameters):
            count = len(self._parameters)
            for name, other in pairs:
                if name in self._parameters and other not in self._parameters:
                    self._parameter(other, other, self._parameters[name].shape)

    def _tensor(self, name: str, dtype: str, shape: Sequence[int]) -> CheckpointTensor | None:
        template, indices = self._starred(name)
        if template is None or template in self._buffers:
            return None
        if (entry := self._entries.get(template)) is None:
            if (found := self._entry(template)) is None:
                return self._elsewhere(name, dtype, shape)
            entry = self._entries[template] = found
        if dtype not in _FLOATS or len(shape) != len(entry.sizes):
            raise UncertainError(name)
        if any(size not in (None, axis) for size, axis in zip(entry.sizes, shape, strict=True)):
            raise UncertainError(name)
        logical = (*shape[:-2], shape[-1], shape[-2]) if entry.k_first else tuple(shape)
        targets = []
        for text, facts in entry.targets:
            target = text.format(*indices)
            if target not in self._parameters:
                self._parameter(target, facts, logical)
            targets.append(target)
        return CheckpointTensor(name, tuple(targets), entry.k_first)

    def _elsewhere(self, name: str, dtype: str, shape: Sequence[int]) -> CheckpointTensor | None:
        """Look for a name with, or without, the prefix of the base model, which the loader adds or takes away."""
        other = ""
        if name.startswith(self._prefix) and "prefixed" in self._also:
            other = name.removeprefix(self._prefix)
        elif "bare" in self._also:
            other = self._prefix + name
        template = self._starred(other)[0] if other else None
        if template in self._facts and template not in self._names:
            found = self._tensor(other, dtype, shape)
            return found and CheckpointTensor(name, found.parameters, found.k_first)
        if any(pattern.search(name) for pattern in self._ignored):
            return None
        raise UncertainError(name)

    def _starred(self, name: str) -> tuple[str | None, list[int]]:
        """Return a name with its indices taken out, and them; None where the model has no part of that number."""
        plain, kept, indices = "", "", list[int]()
        for part in name.split("."):
            number = part.isdecimal() and part.isascii()
            if number and plain[1:] in self._counts:
                count = self._counts[plain[1:]]
                if count is None or len(part) > 9:
                    raise UncertainError(name)
                if int(part) >= count:
                    return None, []
                indices.append(int(part))
                kept += ".*"
            else:
                kept += f".{part}"
            plain += ".*" if number else f".{part}"
        return kept[1:], indices

    def _entry(self, template: str) -> _Entry | None:
        data = self._names.get(template)
        if data is not None:
            targets = tuple((text, _PLACE.sub("*", text)) for text in data["to"])
            sizes = tuple(map(self._settings.number, data["dims"]))
            return _Entry(targets, sizes, data.get("k_first", False))
        if (facts := self._facts.get(template)) is None:
            return None
        k_first = facts.get("k_first", False)
        sizes = self._logical(template)
        raw = (*sizes[:-2], sizes[-1], sizes[-2]) if k_first else sizes
        pieces = template.replace("{", "{{").replace("}", "}}").split("*")
        text = pieces[0] + "".join(f"{{{place}}}{piece}" for place, piece in enumerate(pieces[1:]))
        return _Entry(((text, template),), raw, k_first)

    def _logical(self, template: str) -> Sizes:
        if template not in self._sizes:
            if not self._present(self._facts[template]):
                raise UncertainError(template)
            self._sizes[template] = tuple(map(self._settings.number, self._facts[template]["dims"]))
        return self._sizes[template]

    def _present(self, facts: Mapping[str, Any]) -> bool:
        """Say whether a parameter was seen with settings like these: some are there with certain settings alone."""
        get = self._settings.get
        wanted = facts.get("if", {})
        if any(get(path) in values for path, values in facts.get("unless", {}).items()):
            return False
        return not wanted or any(
            get(path) != said["not"] if "not" in said else get(path) in said["in"]
            for path, said in wanted.items()
        )

    def _parameter(self, name: str, template: str, stored: Sequence[int]) -> None:
        """Describe a parameter; a size that follows from no setting is that of the tensor which becomes it."""
        facts = self._facts[template]
        sizes = self._logical(template)
        if None in sizes and len(sizes) != len(stored):
            raise UncertainError(name)
        shape = (
            tuple(axis if size is None else size for size, axis in zip(sizes, stored, strict=False))
            if None in sizes
            else sizes
        )
        gate = facts.get("gate")
        self._parameters[name] = Parameter(
            name,
            facts["kind"],
            shape,  # type: ignore[arg-type]
            facts["module"],
            facts.get("k_first", False),
            self._tied.get(name, ""),
            facts.get("keep", ""),
            facts.get("refusal", ""),
            GatedActivation(*gate) if gate else None,
            self._settings.number(facts.get("top_k", 0)) or 0,
            facts.get("held", ""),
            facts.get("reader", ""),
        )


__all__ = ["Row"]
