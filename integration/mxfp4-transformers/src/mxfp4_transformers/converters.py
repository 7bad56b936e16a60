"""How transformers turns the tensors of a checkpoint into parameters, and back: what of it holds for codes and scales.

With `compat` and `meta`, the only module that touches the inside of transformers.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import core_model_loading
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    ConversionOps,
    MergeModulelist,
    SplitModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    dot_natural_key,
    rename_source_key,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Split: type[ConversionOps] | None = getattr(core_model_loading, "Split", None)
"""Cuts a fused weight as its targets are; 5.17 does not have it."""


def default_conversions(model: PreTrainedModel) -> list[WeightTransform]:
    """Return how transformers turns a checkpoint of this kind of model into its parameters."""
    return list(get_model_conversion_mapping(model, add_legacy=False))


def renames(conversions: Iterable[WeightTransform]) -> list[tuple[str, str]]:
    """Return the plain renamings among ``conversions`` as pairs of (name in the model, name in the checkpoint)."""
    pairs = []
    for entry in conversions:
        if type(entry) is WeightRenaming and len(entry.source_patterns) == len(entry.target_patterns) == 1:
            pair = [
                side[0].replace(r"\.", ".").strip(".")
                for side in (entry.target_patterns, entry.source_patterns)
            ]
            if all(re.fullmatch(r"[\w.]+", side) for side in pair):
                pairs.append((pair[0], pair[1]))
    return pairs


@dataclass
class Group:
    """Tensors of a checkpoint that become parameters of a model together.

    Attributes:
        targets: names in the model.
        converter: what turns one into the other; None where nothing but the name changes.
        columns: names in the checkpoint by pattern of the converter, in the order of experts.
    """

    targets: tuple[str, ...]
    converter: WeightConverter | None
    columns: dict[str, list[str]]

    @property
    def names(self) -> list[str]:
        """Every name in the checkpoint."""
        return [name for column in self.columns.values() for name in column]

    @property
    def turned(self) -> bool:
        """Whether the loader swaps the axes of what it reads."""
        operations = self.converter.operations if self.converter else []
        return sum(type(operation) is Transpose for operation in operations) % 2 == 1


def groups(
    names: Iterable[str],
    conversions: Sequence[WeightTransform],
    model: PreTrainedModel,
    known: Collection[str] | None = None,
) -> list[Group]:
    """Match the tensors of a checkpoint with the parameters of a model, as the loader does it.

    Args:
        names: names in the checkpoint.
        conversions: the list that the loader will get. It is not changed: matching leaves marks in it.
        model: the model, which may be on the meta device.
        known: names that it has; all of its ``state_dict`` if None.
    """
    return _matched(names, copy.deepcopy(list(conversions)), model, known)


def matched(
    names: Iterable[str], conversions: Sequence[WeightTransform], model: PreTrainedModel
) -> tuple[list[Group], list[WeightTransform]]:
    """Return `groups`, and the conversions that a load of these tensors makes use of, so that saving can undo them."""
    marked = copy.deepcopy(list(conversions))
    found = _matched(names, marked, model)
    hit = {id(group.converter) for group in found}
    renamings = [entry for entry in marked if isinstance(entry, WeightRenaming) and entry.was_used()]
    return found, [entry for entry in marked if id(entry) in hit or any(entry is each for each in renamings)]


def _matched(
    names: Iterable[str],
    conversions: Sequence[WeightTransform],
    model: PreTrainedModel,
    own: Collection[str] | None = None,
) -> list[Group]:
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
    known = dict.fromkeys(model.state_dict() if own is None else own, True)
    found: dict[str, Group] = {}
    for name in sorted(names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
        if target not in known and name in known:
            pattern = None
            target, _ = rename_source_key(
                name, [], [], base_model_prefix=model.base_model_prefix, meta_state_dict=known
            )
        converter = None if pattern is None else by_pattern[pattern]
        if target not in found:
            first, *others = [target] if converter is None else converter.target_patterns
            targets = (target, *(target.replace(first, other) for other in others))
            columns = {each: list[str]() for each in converter.source_patterns} if converter else {}
            found[target] = Group(targets, converter, columns)
        found[target].columns.setdefault(pattern or "", []).append(name)
    return list(found.values())


def destinations(
    names: Iterable[str], conversions: Sequence[WeightTransform], model: PreTrainedModel
) -> dict[str, tuple[str, ...]]:
    """Return the parameters of the model that each tensor of the checkpoint becomes; see `groups`."""
    return {name: group.targets for group in groups(names, conversions, model) for name in group.names}


def renamed(names: Iterable[str], conversions: Sequence[WeightTransform]) -> dict[str, str]:
    """Return each name of a checkpoint as the renamings of the model leave it, before any converter looks at it."""
    renamings = [copy.deepcopy(entry) for entry in conversions if isinstance(entry, WeightRenaming)]
    return {name: rename_source_key(name, renamings, [])[0] for name in sorted(names, key=dot_natural_key)}


class SplitExperts(SplitModulelist):
    """Undo ``MergeExperts``: one tensor for each index of the first axis, every other axis kept."""

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Split each tensor of ``input_dict``."""
        result: dict[str, Any] = {}
        for pattern, tensors in input_dict.items():
            tensor = tensors[0] if isinstance(tensors, list) else tensors
            size = tensor.shape[0]
            names = self.get_target_patterns(input_dict, pattern, target_patterns, size)
            result.update(zip(names, tensor.unbind(0), strict=True))
        return result

    @property
    def reverse_op(self) -> ConversionOps:
        """Return the operation that stacks them again."""
        return MergeExperts(0)


class MergeExperts(MergeModulelist):
    """Stack one tensor per expert along a new first axis."""

    @property
    def reverse_op(self) -> ConversionOps:
        """Return the operation that splits them again."""
        return SplitExperts(0)


def stacks(converter: WeightConverter) -> bool:
    """Say whether a converter stacks experts, and their rows one below the other, and does nothing else."""
    operations = converter.operations
    merge = isinstance(operations[0], MergeModulelist) and operations[0].dim == 0
    rows = [op for op in operations[1:] if type(op) is Concatenate and op.dim == 1]
    return merge and len(rows) == len(operations) - 1 <= 1 and len(converter.target_patterns) == 1


def keeps_rows_whole(converter: WeightConverter) -> bool:
    """Say whether every operation only moves whole rows, so that it may be applied to codes and to scales."""
    if stacks(converter):
        return True
    return all(type(op) in (Chunk, Concatenate, Split) and op.dim == 0 for op in converter.operations)


def feeds(converter: WeightConverter, names: Iterable[str]) -> bool:
    """Say whether one of the parameters ``names`` may come out of a converter."""
    # A target is plain text, but for a reference to what its source caught.
    texts = [re.escape(target.strip("$")).replace(r"\\1", ".+") for target in converter.target_patterns]
    return re.search("|".join(texts), "\n".join(names)) is not None


def bounded(converter: WeightConverter) -> None:
    """Let no pattern of ``converter`` match the beginning of a longer name."""
    branches = []
    for index, source in sorted(enumerate(converter.source_patterns), key=lambda item: -len(item[1])):
        pattern = source.replace("*.", r".*\.")
        end = r"(?!\w)" if re.search(r"[a-zA-Z0-9]$", pattern) else ""
        branches.append(f"(?P<g{index}>{pattern}{end})")
    converter.compiled_sources = re.compile("|".join(branches))


def rebuilt(cls: type[WeightConverter], converter: WeightConverter) -> WeightConverter:
    """Return a converter like ``converter``, of another class, whose way back drops no axis but that of the experts."""
    operations = [
        MergeExperts(0) if isinstance(op, MergeModulelist) and op.dim == 0 else copy.copy(op)
        for op in converter.operations
    ]
    result = cls(
        list(converter._original_source_patterns),
        list(converter._original_target_patterns),
        operations=operations,
        force_cpu=converter.force_cpu,
    )
    result.scope_prefix, result.base_model_prefix = converter.scope_prefix, converter.base_model_prefix
    return result


def conversions_of(model: PreTrainedModel) -> list[WeightTransform]:
    """Return the conversions that ``save_pretrained`` will undo."""
    return list(getattr(model, "_weight_conversions", None) or [])


def set_conversions(model: PreTrainedModel, conversions: Iterable[WeightTransform]) -> None:
    """Set the conversions that ``save_pretrained`` will undo."""
    model._weight_conversions = list(conversions)
