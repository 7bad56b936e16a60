"""The only module, beside `meta`, that touches what transformers changes between releases, or keeps to itself.

Checked with 5.17.0 and 5.23.0. What differs between them, and what is done about it:

* ``update_weight_conversions`` is called with the model in 5.23 only: the quantizer remembers the model.
* 5.17 casts a tensor from the checkpoint to the dtype of the placeholder before it is quantised: placeholders
  have the dtype of the model (`mxfp4_core.modules.hold_place`).
* 5.17 ends no pattern at a name boundary, so ``w1.weight`` also matches ``w1.weight_scale``: ``bounded`` does.
* ``SplitModulelist`` of 5.17 drops every axis of length 1, so the scales of a weight with K = 32 would lose
  their last axis when they are saved: ``SplitExperts`` drops the expert axis only.
* Both catch what an operation raises during conversion, and end with a RuntimeError of their own: the
  converters of this package run outside of that net (``ops.py``).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
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
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.integrations.accelerate import get_device
from transformers.models.auto.auto_factory import _get_model_class
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer

from mxfp4_core.checkpoint import TensorInfo, read_header
from mxfp4_core.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.utils.quantization_config import QuantizationConfigMixin


def register(method: str, config: type[QuantizationConfigMixin], quantizer: type[HfQuantizer]) -> None:
    """Make ``method`` known to ``from_pretrained``; doing it again changes nothing.

    transformers has no entry points and refuses a second registration, so this looks before it registers.
    A config that is given together with a checkpoint which is quantised already is dropped, except for the
    classes in ``LOADING_ATTRIBUTES_CONFIG_TYPES``: there is no other way to choose a backend for such a
    checkpoint, nor to notice that the two contradict each other.
    """
    if auto.AUTO_QUANTIZATION_CONFIG_MAPPING.get(method) is not config:
        auto.register_quantization_config(method)(config)
    if auto.AUTO_QUANTIZER_MAPPING.get(method) is not quantizer:
        auto.register_quantizer(method)(quantizer)
    if config not in auto.LOADING_ATTRIBUTES_CONFIG_TYPES:
        auto.LOADING_ATTRIBUTES_CONFIG_TYPES = (*auto.LOADING_ATTRIBUTES_CONFIG_TYPES, config)


def class_of(auto_class: Any, config: Any, path: Path, trust_remote_code: bool) -> tuple[Any, Any]:
    """Return the class of model that an Auto class chooses, with the config that it takes.

    An Auto class wants a path, and a model that is given a state dict may have none: so the choice is made here.
    """
    mapping = getattr(auto_class, "_model_mapping", None)
    if mapping is None:
        return auto_class, config
    remote = getattr(config, "auto_map", {}).get(auto_class.__name__)
    if remote and trust_remote_code:
        return get_class_from_dynamic_module(remote, path), config
    if type(config) not in mapping:
        raise ConfigError(
            f"{auto_class.__name__} cannot load {path}",
            seen=f"a {type(config).__name__}",
            rule="an Auto class knows the kinds of model that it loads",
            fix="pass the auto_class, or the class of model, that belongs to it",
        )
    model_class: Any = _get_model_class(config, mapping)
    text = config.sub_configs.get("text_config")
    if text is not None and getattr(model_class, "config_class", None) == text:
        config = config.get_text_config()
    return model_class, config


def headers(files: Sequence[str] | None) -> dict[str, TensorInfo]:
    """Read what the safetensors files say about their tensors; empty for other formats.

    Args:
        files: what ``from_pretrained`` resolved, or None where it was given a state dict.
    """
    found: dict[str, TensorInfo] = {}
    for path in files or ():
        if str(path).endswith(".safetensors"):
            found |= read_header(Path(path))[0]
    return found


def device_of(device_map: dict[str, Any] | None, name: str) -> torch.device:
    """Return the device on which transformers puts a parameter."""
    return torch.device(get_device(device_map, name, valid_torch_device=True))


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
    names: Iterable[str], conversions: Sequence[WeightTransform], model: PreTrainedModel
) -> list[Group]:
    """Match the tensors of a checkpoint with the parameters of a model, as the loader does it.

    Args:
        names: names in the checkpoint.
        conversions: the list that the loader will get. It is not changed: matching leaves marks in it.
        model: the model on the meta device.
    """
    return _matched(names, copy.deepcopy(list(conversions)), model)


def used(
    names: Iterable[str], conversions: Sequence[WeightTransform], model: PreTrainedModel
) -> list[WeightTransform]:
    """Return the conversions that a load of these tensors makes use of, so that saving can undo them."""
    marked = copy.deepcopy(list(conversions))
    hit = {id(group.converter) for group in _matched(names, marked, model)}
    renamings = [entry for entry in marked if isinstance(entry, WeightRenaming) and entry.was_used()]
    return [entry for entry in marked if id(entry) in hit or any(entry is each for each in renamings)]


def _matched(
    names: Iterable[str], conversions: Sequence[WeightTransform], model: PreTrainedModel
) -> list[Group]:
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
    known: dict[str, Any] = model.state_dict()
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
    return all(type(op) in (Chunk, Concatenate) and op.dim == 0 for op in converter.operations)


def feeds(converter: WeightConverter, names: Iterable[str]) -> bool:
    """Say whether one of the parameters ``names`` may come out of a converter."""
    return bool(_targets(converter, "").search("\n".join(names)))


def names_weights(converter: WeightConverter, names: Iterable[str]) -> bool:
    """Say whether the patterns of a converter reach to the end of the names of parameters, not just of modules."""
    return bool(_targets(converter, "$").search("\n".join(names)))


def _targets(converter: WeightConverter, end: str) -> re.Pattern[str]:
    # A target is plain text, but for a reference to what its source caught.
    texts = [re.escape(target.strip("$")).replace(r"\\1", ".+") for target in converter.target_patterns]
    return re.compile("|".join(f"{text}{end}" for text in texts), re.MULTILINE)


def bounded(converter: WeightConverter) -> None:
    """Let no pattern of ``converter`` match the beginning of a longer name."""
    branches = []
    for index, source in sorted(enumerate(converter.source_patterns), key=lambda item: -len(item[1])):
        pattern = source.replace("*.", r".*\.")
        end = r"(?!\w)" if re.search(r"[a-zA-Z0-9]$", pattern) else ""
        branches.append(f"(?P<g{index}>{pattern}{end})")
    converter.compiled_sources = re.compile("|".join(branches))


def rebuilt(cls: type[WeightConverter], converter: WeightConverter, suffix: str = "") -> WeightConverter:
    """Return a converter like ``converter``, of another class and for the names with ``suffix`` appended."""
    operations = [
        MergeExperts(0) if isinstance(op, MergeModulelist) and op.dim == 0 else copy.copy(op)
        for op in converter.operations
    ]
    result = cls(
        [_suffixed(pattern, suffix) for pattern in converter._original_source_patterns],
        [_suffixed(pattern, suffix) for pattern in converter._original_target_patterns],
        operations=operations,
        force_cpu=converter.force_cpu,
    )
    result.scope_prefix, result.base_model_prefix = converter.scope_prefix, converter.base_model_prefix
    return result


def _suffixed(pattern: str, suffix: str) -> str:
    return f"{pattern[:-1]}{suffix}$" if pattern.endswith("$") else f"{pattern}{suffix}"


def is_distributed(model: PreTrainedModel) -> bool:
    """Say whether ``from_pretrained`` was asked to shard the model over processes."""
    return getattr(model.config, "distributed_config", None) is not None


def materialised(entry: Any) -> torch.Tensor:
    """Return the tensor behind an entry of ``collected_tensors``: a future, a callable or the tensor."""
    if isinstance(entry, torch.Tensor):
        return entry
    value = entry.result() if hasattr(entry, "result") else entry()
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"the loader gave {type(value).__name__} instead of a tensor")
    return value


def conversions_of(model: PreTrainedModel) -> list[WeightTransform]:
    """Return the conversions that ``save_pretrained`` will undo."""
    return list(getattr(model, "_weight_conversions", None) or [])


def set_conversions(model: PreTrainedModel, conversions: Iterable[WeightTransform]) -> None:
    """Set the conversions that ``save_pretrained`` will undo."""
    model._weight_conversions = list(conversions)
