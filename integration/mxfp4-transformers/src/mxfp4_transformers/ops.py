"""Quantise while transformers converts: converters and operations, fed by the loader one target at a time.

``from_pretrained`` collects for each parameter of the model the tensors of the checkpoint that it is made of (one
for a linear, two for each expert of a stack), reads them, and asks the converter for the parameter. Here the
converter reads, quantises and drops one such tensor after the other, so that the memory in high precision is one
tensor of the checkpoint, also where the parameter is a stack of hundreds.

An error leaves ``from_pretrained`` as it is: it is raised outside of the net in which transformers collects the
errors of operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers.core_model_loading import ConversionOps, WeightConverter

from mxfp4_transformers import converters
from mxfp4_transformers.filler import Filler
from mxfp4_transformers.packer import Packer


class QuantizeOp(ConversionOps):
    """The operation that transformers runs where a weight meets none of the converters below."""

    def __init__(self, packer: Packer) -> None:
        self.packer = packer

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Quantise the tensors of one target; ``input_dict`` has full names."""
        return dict(self.packer.convert(input_dict))


class Converter(WeightConverter):
    """A converter of the model, one that ends names where they end, and quantises if it has a packer."""

    packer: Packer | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        converters.bounded(self)

    def add_tensor(self, target_key: str, source_key: str, source_pattern: str, future: Any) -> None:
        """Collect a tensor for a parameter."""
        if self.packer is not None:
            first, *others = self.target_patterns
            names = [target_key, *(target_key.replace(first, other) for other in others)]
            future = self.packer.feed.unrounded(names, source_key, future)
            self.packer.feed.collect(target_key, self.source_patterns, source_pattern, source_key)
        super().add_tensor(target_key, source_key, source_pattern, future)

    def convert(
        self,
        layer_name: str,
        model: Any = None,
        config: Any = None,
        hf_quantizer: Any = None,
        loading_info: Any = None,
    ) -> dict[str, Any]:
        """Return the parameters that are made of the collected tensors, quantised where they should be."""
        packer = self.packer
        if packer is not None and layer_name in packer.targets.weights and converters.stacks(self):
            columns = [self.collected_tensors.pop(pattern, []) for pattern in self.source_patterns]
            names = packer.feed.collected.get(layer_name, {})
            return dict(packer.stack(layer_name, columns, [names.get(p, []) for p in self.source_patterns]))
        if packer is None:
            return super().convert(layer_name, model, config, hf_quantizer, loading_info)
        with packer.report.timing("reading"):
            tensors = super().convert(layer_name, model, config, None, loading_info)
        return dict(packer.convert(tensors))


class Direct(WeightConverter):
    """Takes the weights that go into the model as they are in the checkpoint, and quantises them."""

    PATTERN = "mxfp4: weights without a conversion"

    def __init__(self, packer: Packer, prefix: str) -> None:
        super().__init__([self.PATTERN], [self.PATTERN], operations=[QuantizeOp(packer)])
        self.packer, self.prefix = packer, f"{prefix}."

    def __deepcopy__(self, memo: dict[int, Any]) -> Direct:
        return Direct(self.packer, self.prefix[:-1])

    def add_tensor(self, target_key: str, source_key: str, source_pattern: str, future: Any) -> None:
        """Collect the one tensor of a weight."""
        future = self.packer.feed.unrounded([target_key], source_key, future)
        super().add_tensor(target_key, source_key, source_pattern, future)
        self.packer.feed.collect(target_key, self.source_patterns, source_pattern, source_key)

    def rename_source_key(self, source_key: str) -> tuple[str, str | None]:
        """Claim the name of a weight to quantise, which the loader may still give a prefix or take it away."""
        names = (source_key, f"{self.prefix}{source_key}", source_key.removeprefix(self.prefix))
        return source_key, self.PATTERN if any(
            name in self.packer.targets.weights for name in names
        ) else None

    def convert(
        self,
        layer_name: str,
        model: Any = None,
        config: Any = None,
        hf_quantizer: Any = None,
        loading_info: Any = None,
    ) -> dict[str, Any]:
        """Read and quantise the one tensor that was collected."""
        entry = self.collected_tensors.pop(self.PATTERN).pop(0)
        (source,) = self.packer.feed.collected[layer_name][self.PATTERN]
        return dict(self.packer.single(layer_name, entry, source))


class Nothing(ConversionOps):
    """What transformers is given as an operation where a converter of ours does all of it."""

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return what was given."""
        return input_dict


class Placed(WeightConverter):
    """Takes the names under which a checkpoint has quantised weights, and fills those from it.

    What transformers has found under these names is let go unread.

    Args:
        filler: reads the parts.
        groups: names in the model of the weights that are filled together, by the first of them.
        names: the first one of a group, by the names that stand for it behind the renamings of the model.
        device_of: where transformers puts a parameter.
    """

    PATTERN = "mxfp4: weights that are quantised already"

    def __init__(
        self,
        filler: Filler,
        groups: Mapping[str, tuple[str, ...]],
        names: Mapping[str, str],
        device_of: Callable[[str], torch.device],
    ) -> None:
        super().__init__([self.PATTERN], [self.PATTERN], operations=[Nothing()])
        self.filler, self.groups, self.names, self.device_of = filler, groups, names, device_of

    def __deepcopy__(self, memo: dict[int, Any]) -> Placed:
        # transformers makes a copy for every tensor; all that this one holds is what it is asked for.
        return self

    def add_tensor(self, target_key: str, source_key: str, source_pattern: str, future: Any) -> None:
        """Let go what transformers has found."""

    def rename_source_key(self, source_key: str) -> tuple[str, str | None]:
        """Claim a name that stands for quantised weights."""
        target = self.names.get(source_key)
        return (source_key, None) if target is None else (target, self.PATTERN)

    def convert(
        self,
        layer_name: str,
        model: Any = None,
        config: Any = None,
        hf_quantizer: Any = None,
        loading_info: Any = None,
    ) -> dict[str, Any]:
        """Read the parts of a group onto the devices where transformers wants them."""
        result: dict[str, Any] = {}
        for name in self.groups[layer_name]:
            result |= self.filler.fill(name, self.device_of(name))
        return result
