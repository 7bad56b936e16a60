"""Weights in other kinds of quantisation that a conversion quantises anew, to MXFP4: which, how, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from mxfp4_core import dialects
from mxfp4_core.arithmetic.format import BLOCK
from mxfp4_core.arithmetic.formats.mxfp4 import MXFP4
from mxfp4_core.checkpoint.reader import Checkpoint, open_checkpoint
from mxfp4_core.dialects.base import Contents
from mxfp4_core.dialects.beside import Narrow
from mxfp4_core.jobs.made import Dequantized, Made, signal_to_noise
from mxfp4_core.jobs.planned import Layouts, planned
from mxfp4_core.jobs.units import QuantizeUnit

_PROFILE: Final = MXFP4.resolve().name
"""The profile by which they are quantised: the default."""


@dataclass(frozen=True)
class Again:
    """What is quantised anew.

    Attributes:
        contents: what a conversion goes on with: those weights are entries, or tensors in BF16 where K is not in whole
            blocks.
        weights: what they are in the source, by name.
    """

    contents: Contents
    weights: Mapping[str, Narrow]

    @property
    def told(self) -> str:
        """Say that it rounds."""
        kinds = ", ".join(dict.fromkeys(each.told for each in self.weights.values()))
        return f"lossy: {len(self.weights)} weight(s) in {kinds} were quantised anew by {_PROFILE}"

    def unit(
        self, checkpoint: Checkpoint, weight: str, names: tuple[str, ...], layouts: Layouts
    ) -> QuantizeUnit:
        """Return what quantises one of them, and writes its parts under these names."""
        made = Made.of(checkpoint, [self.weights[weight]])
        return QuantizeUnit(made, weight, names, _PROFILE, layouts=layouts)

    def errors(self, checkpoint: Checkpoint, folder: Path) -> dict[str, float]:
        """Read the result, and return the signal to noise of each in dB."""
        if not self.weights:
            return {}
        result = open_checkpoint(folder)
        found = dialects.read(result)
        entries = found[1].entries if found else {}
        return {
            name: signal_to_noise(each, checkpoint, Dequantized(name, entries[name]), result)
            for name, each in self.weights.items()
        }


def quantised_anew(contents: Contents, *, everything: bool) -> Again:
    """Choose what is quantised anew: all of another kind where that is asked for, or where there is nothing else.

    Args:
        contents: what the source holds.
        everything: whether weights beside MXFP4 ones are.
    """
    if not contents.beside or (contents.entries and not everything):
        return Again(contents, MappingProxyType({}))
    chosen = {name: each for name, each in contents.beside.items() if each.shape[-1] % BLOCK == 0}
    tensors = dict(contents.tensors)
    tensors |= {name: each.rounded() for name, each in contents.beside.items() if name not in chosen}
    entries = dict(contents.entries)
    entries |= {name: planned(name, each.shape, False, "") for name, each in chosen.items()}
    profile = contents.profile if contents.entries else _PROFILE
    static = contents.static if contents.entries else MappingProxyType({})
    activation = contents.activation if contents.entries else "none"
    changed = replace(
        contents,
        entries=entries,
        tensors=tensors,
        beside={},
        profile=profile,
        static=static,
        activation=activation,
    )
    return Again(changed, chosen)


def without_activations(contents: Contents) -> Contents:
    """Leave out what the source says about activations: static scales, and modes of single weights."""
    entries = {name: replace(entry, activation="") for name, entry in contents.entries.items()}
    return replace(contents, entries=entries, static={})


__all__ = ["Again", "quantised_anew", "without_activations"]
