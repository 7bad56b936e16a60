"""What a model library says about a model: for each parameter and each tensor of its checkpoint, what it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Literal, get_args

from mxfp4_core.arithmetic.gate import Gate
from mxfp4_core.errors import ModelError
from mxfp4_core.naming.vocabulary import module_of, parse_expert

Kind = Literal["linear", "embedding", "head", "router", "experts", "norm", "convolution", "other"]

KINDS: Final[tuple[str, ...]] = get_args(Kind)
"""What a parameter can be. ``linear`` and ``experts`` become MXFP4; heads and routers do where the config says so."""

_BY_NATURE: Final[Mapping[str, str]] = {
    "embedding": "an embedding is looked up, not multiplied",
    "norm": "a normalisation is not multiplied as a matrix",
    "convolution": "a convolution is no linear layer",
    "other": "the model does not use it as the weight of a linear layer",
}
_BY_DEFAULT: Final[Mapping[str, str]] = {
    "head": "the output head of the model",
    "router": "it chooses the experts, as a router does",
}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a model, as the library that owns the model knows it.

    Attributes:
        name: the model's own name.
        kind: one of `KINDS`.
        shape: logical shape with K last: ``[N, K]``, for stacked experts ``[E, N, K]``.
        module: name of the class that holds it, for messages.
        k_first: whether the model holds K before N.
        tied_to: name of the parameter whose memory it shares, empty if it has its own.
        keep: why it must stay in high precision, empty where it need not.
        refusal: why the library cannot compute with it as MXFP4, empty where it can. Such a weight may be quantised
            for another engine; loading it with this library is refused.
        gate: for experts, the gated activation between their weights; None if unknown or not one that we know.
        top_k: for experts, experts per token; 0 if unknown.
        held: why no backend computes with it: the library's own code does, with values that are widened in each call.
        reader: class of the library whose code reads it, beside calling the module that holds it; empty if none does.
            Empty where a backend does.
        default: why the defaults keep it in high precision, though it could be MXFP4; empty where they do not.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    module: str = ""
    k_first: bool = False
    tied_to: str = ""
    keep: str = ""
    refusal: str = ""
    gate: Gate | None = None
    top_k: int = 0
    held: str = ""
    reader: str = ""
    default: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ModelError(
                f"parameter {self.name!r} has no kind that is known",
                seen=f"kind {self.kind!r}",
                rule=f"a kind is one of {', '.join(KINDS)}",
                fix="correct the model provider that says so",
            )

    @property
    def by_nature(self) -> str:
        """Return why it can never be MXFP4, empty where it can."""
        tied = f"shares its weight with {self.tied_to}" if self.tied_to else ""
        return self.keep or _BY_NATURE.get(self.kind, "") or tied

    @property
    def by_default(self) -> str:
        """Return why the defaults keep it in high precision, empty where they do not."""
        reason = _BY_DEFAULT.get(self.kind, "") or self.default
        return f"{reason}, kept by default" if reason else ""


@dataclass(frozen=True)
class CheckpointTensor:
    """One tensor of a checkpoint, and what of the model is made of it.

    Attributes:
        name: name in the checkpoint.
        parameters: the model's names of what it becomes, or becomes a part of.
        k_first: whether the file holds K before N.
    """

    name: str
    parameters: tuple[str, ...]
    k_first: bool = False


@dataclass(frozen=True)
class ModelView:
    """A model as its library knows it, with the checkpoint that is to be loaded.

    Attributes:
        provider: who says so, with its version, for example ``transformers 5.24.0``.
        model: name of the model's class.
        parameters: the parameters, by the model's names.
        tensors: the tensors of the checkpoint, by their names; those that the model does not load are missing. Empty
            where there is no checkpoint to look at: then a parameter stands for itself.
        renames: pairs (name in the model, name in the checkpoint) of component runs that mean the same.
        config: contents of its config.json; may be empty.
    """

    provider: str
    model: str
    parameters: Mapping[str, Parameter]
    tensors: Mapping[str, CheckpointTensor] = field(default_factory=dict[str, CheckpointTensor])
    renames: Sequence[tuple[str, str]] = ()
    config: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)

    def __post_init__(self) -> None:
        for key, parameter in self.parameters.items():
            if key != parameter.name:
                self._refuse(f"parameter {parameter.name!r} is listed as {key!r}", "keys are the names")
        for key, stored in self.tensors.items():
            if key != stored.name:
                self._refuse(f"tensor {stored.name!r} is listed as {key!r}", "keys are the names")
            unknown = [name for name in stored.parameters if name not in self.parameters]
            if unknown or not stored.parameters:
                self._refuse(
                    f"tensor {key!r} becomes {', '.join(unknown) or 'nothing'}",
                    "each tensor that is listed becomes parameters that are listed",
                )

    def _refuse(self, seen: str, rule: str) -> None:
        raise ModelError(
            f"what {self.provider} says about {self.model} does not fit together",
            seen=seen,
            rule=rule,
            fix="correct the model provider, or go by names: --models none",
        )

    def find(self, name: str) -> tuple[Parameter, ...]:
        """Return the parameters behind a name of the checkpoint or of the model, with or without ``.weight``."""
        module = module_of(name)
        if found := self._by_name.get(name) or self._by_name.get(module):
            return found
        # A projection of one expert, in the words of the vocabulary: known by the stack that it is a part of.
        expert = parse_expert(module)
        stacks = self._experts.get(expert.prefix, {}) if expert else {}
        return tuple(each for each, parts in stacks.items() if expert and parts & {*expert.parts})

    def names(self, name: str) -> bool:
        """Say whether a tensor of the checkpoint, or a parameter of the model, has exactly this name."""
        return name in self.tensors or name in self.parameters

    def knows(self, name: str) -> bool:
        """Say whether a name of the checkpoint, or of the model, is loaded by the model."""
        return bool(self.find(name))

    def k_first(self, name: str) -> bool:
        """Say whether the file holds a tensor with K before N; False for names that the model does not load."""
        stored = self.tensors.get(name)
        return stored is not None and stored.k_first

    def finer(self, module: str) -> Sequence[str]:
        """Return the smallest modules that a name stands for, where the other side of the file divides it further.

        A tensor that becomes several parameters stands for these; a parameter that is made of several tensors stands
        for those. Empty where nothing divides it. Experts are divided by the vocabulary of names instead.

        Args:
            module: a name of the checkpoint or of the model, without ``.weight``.
        """
        others = self._others.get(module, ())
        return others if len(others) > 1 else ()

    def coarser(self, module: str) -> Sequence[str]:
        """Return the names on the other side of the file that a module is one part of several of."""
        return [other for other in self._others.get(module, ()) if len(self._others.get(other, ())) > 1]

    def aliases(self, module: str) -> Sequence[str]:
        """Return the names on the other side of the file that mean the same: model for checkpoint, and back.

        Args:
            module: a name of the checkpoint or of the model, without ``.weight``.
        """
        if others := self._others.get(module):
            return others
        if (expert := parse_expert(module)) is None:
            return ()
        tail = module.removeprefix(expert.prefix)
        return [other + tail for other in self._stacks.get(expert.prefix, ())]

    @cached_property
    def _by_name(self) -> Mapping[str, tuple[Parameter, ...]]:
        found: dict[str, tuple[Parameter, ...]] = {}
        for name, parameter in self.parameters.items():
            found[name] = found[module_of(name)] = (parameter,)
        for name, stored in self.tensors.items():
            found[name] = found[module_of(name)] = tuple(self.parameters[each] for each in stored.parameters)
        return found

    @cached_property
    def _experts(self) -> Mapping[str, Mapping[Parameter, frozenset[str]]]:
        found: dict[str, dict[Parameter, frozenset[str]]] = {}
        for name, parameter in self.parameters.items():
            if (expert := parse_expert(module_of(name))) is not None:
                for prefix in (expert.prefix, *self._stacks.get(expert.prefix, ())):
                    found.setdefault(prefix, {})[parameter] = frozenset(expert.parts)
        return found

    @cached_property
    def _others(self) -> Mapping[str, tuple[str, ...]]:
        # Experts are left to `_stacks`: their parts and numbers are words of the vocabulary, on both sides.
        found: dict[str, dict[str, None]] = {}
        for stored in self.tensors.values():
            source = module_of(stored.name)
            for held in map(module_of, stored.parameters):
                if held != source and parse_expert(held) is None:
                    found.setdefault(source, {})[held] = None
                    found.setdefault(held, {})[source] = None
        return {name: tuple(others) for name, others in found.items()}

    @cached_property
    def _stacks(self) -> Mapping[str, tuple[str, ...]]:
        found: dict[str, dict[str, None]] = {}
        for stored in self.tensors.values():
            source = parse_expert(module_of(stored.name))
            for held in map(parse_expert, map(module_of, stored.parameters)):
                if source and held and source.prefix != held.prefix:
                    found.setdefault(source.prefix, {})[held.prefix] = None
                    found.setdefault(held.prefix, {})[source.prefix] = None
        return {name: tuple(others) for name, others in found.items()}


__all__ = ["KINDS", "CheckpointTensor", "Kind", "ModelView", "Parameter"]
