"""A tiny model of a type, with random weights, as a BF16 folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from architectures.catalogue import Kind
from architectures.overrides import overridden
from architectures.shrink import shrunk

MOST_NUMBERS = 60_000_000
"""A model that is not tiny means that a rule is missing."""


def configured(kind: Kind) -> Any:
    """Return the small configuration of a type."""
    return kind.config_class.from_dict(overridden(kind.name, shrunk(kind.config_class().to_dict())))


def build(kind: Kind, folder: Path) -> Any:
    """Write the folder of a tiny model, and return the model as transformers reads it back.

    Raises:
        ValueError: the model is not tiny, or transformers does not read back what it wrote.
    """
    config = configured(kind)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in kind.auto_class.from_config(config).parameters())
    if size > MOST_NUMBERS:
        raise ValueError(f"{size / 1e6:.0f} million numbers: its configuration is not small")
    torch.manual_seed(len(kind.name))
    model = kind.auto_class.from_config(configured(kind), dtype=torch.bfloat16).eval()
    fill(model)
    # What a model changes when it is loaded (a row for padding, say) is no change of ours: so it is loaded before.
    first = folder.with_name("first")
    model.save_pretrained(first)
    plain = kind.auto_class.from_pretrained(first, dtype=torch.bfloat16).eval()
    shutil.rmtree(first)
    plain.save_pretrained(folder)
    again = kind.auto_class.from_pretrained(folder, dtype=torch.bfloat16).state_dict()
    lost = [name for name, tensor in plain.state_dict().items() if not _equal(tensor, again.get(name))]
    if lost:
        raise ValueError(
            f"transformers does not read back what it wrote: {lost[0]} and {len(lost) - 1} more differ"
        )
    return plain


def _equal(one: torch.Tensor, other: torch.Tensor | None) -> bool:
    return other is not None and one.shape == other.shape and torch.equal(one, other)


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Give every matrix random rows of different size, and every vector a little noise.

    Rows differ up to eightfold, so that a row in the wrong place, or with the scales of another one, shows. The sum of
    the squares of a row stays near one, or a forward pass would overflow.
    """
    generator = torch.Generator().manual_seed(7)
    done: set[int] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) in done or not parameter.is_floating_point():
                continue
            done.add(id(parameter))
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim < 2:
                parameter += 0.05 * noise.to(parameter.dtype)
                continue
            rows = 2.0 ** (3 * torch.rand((*parameter.shape[:-1], 1), generator=generator) - 1.5)
            parameter.copy_(noise * rows / parameter.shape[-1] ** 0.5)


__all__ = ["build", "configured", "fill"]
