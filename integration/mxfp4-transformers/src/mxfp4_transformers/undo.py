"""What ``save_pretrained`` undoes: each part of a weight is saved where its codes are, under their name and its suffix.

transformers undoes by patterns what a load did to names and tensors. One that names a weight does not name its scales,
so one converter stands for all of them here: it takes what there is to save, and undoes the conversions of the model
for each part by itself, under the name of the weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.core_model_loading import WeightConverter, WeightTransform, revert_weight_conversion

from mxfp4_core.modules import ModelPlan
from mxfp4_transformers import converters
from mxfp4_transformers.ops import Direct, Nothing


@dataclass(frozen=True)
class Undo:
    """What a load did that saving has to undo.

    Attributes:
        plain: the conversions of what is in high precision.
        rows: those of quantised weights, which only move whole rows. Where the model's would do more (a transposition),
            our files have the weights as the module here holds them.
        parts: name of the weight and suffix, by the name of each part of it in the model.
    """

    plain: tuple[WeightTransform, ...]
    rows: tuple[WeightTransform, ...]
    parts: Mapping[str, tuple[str, str]]

    @classmethod
    def of(cls, conversions: Iterable[WeightTransform], plan: ModelPlan, model: Any) -> Undo:
        """Sort the conversions that a load has made use of.

        Args:
            conversions: of the model, and ours.
            plan: the quantised weights.
            model: loaded.
        """
        rowless = {
            name: torch.empty((*weight.shape[:-1], 1), dtype=torch.uint8, device="meta")
            for name, weight in plan.weights.items()
        }
        parts = {
            f"{name}{part.suffix}": (name, part.suffix)
            for name, weight in plan.weights.items()
            for part in weight.kind.parts
        }
        plain: list[WeightTransform] = []
        rows: list[WeightTransform] = []
        for entry in conversions:
            if isinstance(entry, Direct):
                continue
            if not (isinstance(entry, WeightConverter) and converters.feeds(entry, plan.weights)):
                plain.append(entry)
                rows.append(entry)
                continue
            plain.append(converter := converters.rebuilt(WeightConverter, entry))
            if converters.keeps_rows_whole(converter) or _moves_rows(converter, rowless, model):
                rows.append(converter)
        return cls(tuple(plain), tuple(rows), parts)

    def saved(self, model: Any, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return what is saved, by name, of tensors by their names in the model."""
        kinds: dict[str | None, dict[str, torch.Tensor]] = {}
        for key, tensor in state.items():
            name, suffix = self.parts.get(key, (key, None))
            kinds.setdefault(suffix, {})[name] = tensor
        result: dict[str, torch.Tensor] = {}
        for suffix, tensors in kinds.items():
            view: Any = _With(model, self.plain if suffix is None else self.rows)
            made = revert_weight_conversion(view, tensors)
            result.update({f"{name}{suffix or ''}": tensor for name, tensor in made.items()})
        return result


class Loaded(WeightConverter):
    """Stands in a model for everything that saving has to undo."""

    PATTERN = "mxfp4: what was loaded"

    def __init__(self, undo: Undo) -> None:
        super().__init__([self.PATTERN], [self.PATTERN], operations=[Nothing()])
        self.undo = undo

    def rename_source_key(self, source_key: str) -> tuple[str, str | None]:
        """Claim nothing: it is there for saving alone."""
        return source_key, None

    def reverse_transform(self) -> Undone:
        """Return what undoes it."""
        return Undone(self.undo)


class Undone(WeightConverter):
    """Takes all that is to be saved, and undoes what was loaded."""

    def __init__(self, undo: Undo) -> None:
        super().__init__([Loaded.PATTERN], [Loaded.PATTERN], operations=[Nothing()])
        self.undo = undo
        self.state: dict[str, Any] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Undone:
        # transformers makes a copy for every name; all of them are undone together.
        return self

    def rename_source_key(self, source_key: str) -> tuple[str, str | None]:
        """Claim every name."""
        return Loaded.PATTERN, Loaded.PATTERN

    def add_tensor(self, target_key: str, source_key: str, source_pattern: str, future: Any) -> None:
        """Collect a tensor under its name in the model."""
        self.state[source_key] = future

    def convert(
        self,
        layer_name: str,
        model: Any = None,
        config: Any = None,
        hf_quantizer: Any = None,
        loading_info: Any = None,
    ) -> dict[str, Any]:
        """Return everything under the name that it is saved with."""
        return dict(self.undo.saved(model, self.state))


class _With:
    """A model with other conversions."""

    def __init__(self, model: Any, conversions: Sequence[WeightTransform]) -> None:
        self._model, self._weight_conversions = model, list(conversions)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _moves_rows(converter: WeightConverter, columns: Mapping[str, torch.Tensor], model: Any) -> bool:
    """Say whether undoing a converter only moves rows, from what it makes of weights with a single column."""
    view: Any = _With(model, [converter])
    try:
        made = revert_weight_conversion(view, dict(columns))
    except Exception:  # an operation may want anything of its tensors, and raise anything
        return False
    return all(tensor.dtype == torch.uint8 and tensor.shape[-1] == 1 for tensor in made.values())


__all__ = ["Loaded", "Undo", "Undone"]
