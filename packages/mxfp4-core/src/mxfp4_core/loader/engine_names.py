"""Which layers of an engine hold MXFP4 weights, by the names that the engine gives its modules.

An engine fuses projections (``qkv_proj``), stacks experts, and tells the name of a module when it builds it: before it
has read a tensor. What a folder holds is known from its headers, so patterns are checked against all of its names
before a layer is built, and a stored weight is known by its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mxfp4_core.backend.device import Device
from mxfp4_core.backend.usual import settled, settled_folder
from mxfp4_core.checkpoint.reader import Checkpoint, open_checkpoint
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.dialects.base import Contents, Entry
from mxfp4_core.dialects.registry import read
from mxfp4_core.errors import LoadError
from mxfp4_core.naming.resolver import Resolver
from mxfp4_core.naming.vocabulary import (
    DEFAULT_FUSED,
    Fused,
    module_of,
    parse_expert,
    shards_of,
    spellings,
)

STORED = "in the checkpoint"


@dataclass(frozen=True)
class EngineDecision:
    """What happens to one layer of an engine.

    Attributes:
        quantize: whether it holds MXFP4 weights.
        reason: why, in words.
        profile: name of the profile of its bytes, empty where that is unknown.
        activation: how its input is quantised.
        format: name of the format of its weights.
        suffixes: what follows the name of the module in the names of its parts in the checkpoint, less ``.weight``.
    """

    quantize: bool
    reason: str
    profile: str = ""
    activation: Any = "none"
    format: str = "mxfp4"
    suffixes: Mapping[str, str] = field(default_factory=dict[str, str])


class EngineNames:
    """Decides about the layers of one model in the words of an engine.

    Args:
        config: patterns, and how weights are quantised; of a stored folder what its ``quantization_config`` says.
        model_config: contents of config.json; may be empty.
        folder: the checkpoint, where its files are at hand; then patterns are checked at once.
        fused: modules that the engine fuses, and the projections in each, in stacking order.
        renames: pairs (engine, checkpoint) of component runs that mean the same.
        stored: the weights are quantised in the folder, and none is quantised here.

    Raises:
        PatternError: a pattern matches nothing in the folder, or splits what the engine fuses.
        DialectError, CheckpointError, LoadError: the folder is damaged, lacks a part of a weight, or contradicts its
            own description.
    """

    def __init__(
        self,
        config: Mxfp4Config,
        *,
        model_config: Mapping[str, Any],
        folder: str | Path | None = None,
        fused: Fused = DEFAULT_FUSED,
        renames: Sequence[tuple[str, str]] = (),
        stored: bool = False,
    ) -> None:
        self.config = config = config if stored else settled(config, [Device.current()])
        self._fused, self._renames = {**DEFAULT_FUSED, **fused}, tuple(renames)
        self._resolver = Resolver.for_model(
            config, model_config, fused=self._fused, renames=self._renames, stored=stored
        )
        self._contents: Contents | None = None
        checkpoint = _opened(folder)
        self._checked = checkpoint is not None
        if checkpoint is not None and stored:
            found = _contents(checkpoint)
            self._contents, self.config = settled_folder(found, config, [Device.current()])
        elif checkpoint is not None:
            self._resolver.decide_all([(each.name, each.shape) for each in checkpoint.tensors.values()])

    def decide(self, name: str, shape: Sequence[int] | None = None) -> EngineDecision:
        """Decide about one module of the engine, fused or not.

        Args:
            name: the engine's name of it, such as ``model.layers.0.self_attn.qkv_proj`` or ``….mlp.experts``.
            shape: logical shape of its weight, where it is known.

        Raises:
            PatternError: it would be split.
            LoadError: the folder holds some of its projections quantised and others not, or differently.
        """
        if self._contents is not None:
            return self._as_stored(name, self._contents)
        found = self._resolver.decide(name, shape)
        return EngineDecision(
            found.quantize, found.reason, found.profile or "", found.activation, found.format
        )

    def check(self) -> None:
        """Check that every pattern had something to do, once all layers are decided; again it does nothing.

        Raises:
            PatternError: one had not; the message has near misses.
        """
        if not self._checked:
            self._resolver.check_patterns()
        self._checked = True

    def _as_stored(self, name: str, contents: Contents) -> EngineDecision:
        found = {leaf: self._entry(leaf) for leaf in self._leaves(name)}
        held = {leaf: entry for leaf, entry in found.items() if entry is not None}
        if not held:
            return EngineDecision(False, "not quantised in the checkpoint")
        modes = {leaf: self._mode(leaf, entry, contents) for leaf, entry in held.items()}
        kinds = {(entry.format, modes[leaf]) for leaf, entry in held.items()}
        if len(held) < len(found) or len(kinds) > 1:
            told = len(set(modes.values())) > 1
            said = {
                leaf: "high precision"
                if each is None
                else each.format + (f" with activation {modes[leaf]}" if told else "")
                for leaf, each in found.items()
            }
            raise LoadError(
                f"{name} cannot be loaded as one module",
                seen=", ".join(f"{leaf}: {word}" for leaf, word in said.items())[:400],
                rule="all projections of a module that the engine fuses are quantised alike",
                fix="quantise the model again, with patterns that name all of them or none",
            )
        ((form, activation),) = kinds
        profiles = {each.profile or contents.profile for each in held.values()}
        profile = profiles.pop() if len(profiles) == 1 else ""
        suffixes = _suffixes(next(iter(held.values())))
        return EngineDecision(True, STORED, profile, activation, form, suffixes)

    def _mode(self, leaf: str, entry: Entry, contents: Contents) -> str:
        """Return how the input of a projection is quantised: as an override names it, else as the folder says."""
        own = self.config.own_activation(self._resolver.decide(leaf, entry.shape).pattern)
        return own or entry.activation or contents.activation

    def _leaves(self, name: str) -> list[str]:
        """Return the projections in a module; of all experts those of any one of them."""
        module = module_of(name)
        if (expert := parse_expert(module)) is not None:
            return [expert.leaf(0, part) for part in expert.parts]
        return shards_of(module, self._fused) or [module]

    def _entry(self, leaf: str) -> Entry | None:
        """Return what the folder holds of a projection, under any name that means the same."""
        known = self._known
        return next((known[each.text] for each in spellings(leaf, self._renames) if each.text in known), None)

    @cached_property
    def _known(self) -> Mapping[str, Entry]:
        """What the folder holds by module; experts, stacked or not, by the names of the first of them."""
        known: dict[str, Entry] = {}
        for name, entry in self._contents.entries.items() if self._contents else ():
            expert = parse_expert(module_of(name))
            names = [expert.leaf(0, part) for part in expert.parts] if expert else [module_of(name)]
            for each in names:
                known.setdefault(each, entry)
        return known


def renames_of(prefixes: Mapping[str, str | None]) -> list[tuple[str, str]]:
    """Return pairs (engine, checkpoint) of runs that mean the same, from the engine's table of prefixes.

    Args:
        prefixes: from the checkpoint to the engine, ``WeightsMapper.orig_to_new_prefix`` in vLLM and SGLang; None for
            what the engine drops.
    """
    return [(f"^{new.strip('.')}", f"^{old.strip('.')}") for old, new in prefixes.items() if new is not None]


def _suffixes(entry: Entry) -> dict[str, str]:
    """Return how the parts of a weight are called in the file, where each is a tensor of its own.

    Stacks of experts have names of their own in each engine.
    """
    stem = entry.weight.removesuffix("weight")
    names = {part: recipe.names for part, recipe in entry.parts.items() if stem != entry.weight}
    return {
        part: name.removeprefix(stem).removeprefix("weight")
        for part, (name, *others) in names.items()
        if not others and not entry.parts[part].children and name.startswith(stem)
    }


def _contents(checkpoint: Checkpoint) -> Contents:
    found = read(checkpoint)
    if found is None:
        raise LoadError(
            f"{checkpoint.path} is not loaded as quantised weights",
            seen="a checkpoint in high precision",
            rule="its config.json says that its weights are quantised",
            fix="load it without quantization_config, or quantise it first: mxfp4 quantize",
        )
    return found[1]


def _opened(folder: str | Path | None) -> Checkpoint | None:
    """Open a folder of safetensors; None where there is none, as for a name of a hub or weights made at random."""
    if folder is None or not any(Path(folder).glob("*.safetensors")):
        return None
    return open_checkpoint(Path(folder))


__all__ = ["STORED", "EngineDecision", "EngineNames", "renames_of"]
