"""From a name to a decision: which weights become MXFP4, by which profile, and why.

One resolver serves every caller, whichever vocabulary its names are in. What outranks what, strongest first:

1. what a tensor is (a bias, a vector, a convolution, what a model provider says) can never become MXFP4;
2. ``ignore`` and overrides with ``keep = true``;
3. overrides with ``keep = false`` quantise even what the defaults keep;
4. the defaults (output heads, embeddings, routers and gates, norms, draft layers);
5. ``targets``, where any are given, and else what the table of families keeps of a model of its type;
6. everything else is quantised.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn, Self

from mxfp4_core.config.schema import Mxfp4Config, Override
from mxfp4_core.naming import decision as decisions
from mxfp4_core.naming.alike import Alike, again, part_of
from mxfp4_core.naming.by_family import ByFamily
from mxfp4_core.naming.decision import NO_TARGET, Decision, refuse_pair, refuse_split
from mxfp4_core.naming.exclude_lists import exclude_patterns
from mxfp4_core.naming.facts import ModelFacts
from mxfp4_core.naming.kept import kept_by_default, kept_by_nature
from mxfp4_core.naming.matching import Hits, Matcher
from mxfp4_core.naming.view import ModelView, Parameter
from mxfp4_core.naming.vocabulary import (
    DEFAULT_FUSED,
    Fused,
    fused_names,
    module_of,
    parse_expert,
    rename,
    shards_of,
    weight_of,
)

_NUMBER = re.compile(r"(?<!\d)\d{1,5}(?!\d)")
_MAX_PROBES = 1024  # experts that are asked one by one; also bounds what a hostile header can make us do


class Resolver:
    """Decides about names, under one config and for one model.

    Args:
        config: the config; its patterns may be in checkpoint or in module vocabulary.
        fused: fused modules and their shards; an engine passes its own, empty if it fuses nothing.
        renames: pairs (engine, checkpoint) of component runs that mean the same; ``^`` anchors at the start.
        layers: ``num_hidden_layers`` of the model, to tell draft layers; None if unknown.
        experts: experts of one layer, for names that come without a shape; None if unknown.
        view: what a model provider says about the model; None where the names alone decide.
        family: contents of config.json, by which the table of families keeps what it does; None: it keeps nothing.
    """

    def __init__(
        self,
        config: Mxfp4Config,
        *,
        fused: Fused = DEFAULT_FUSED,
        renames: Sequence[tuple[str, str]] = (),
        layers: int | None = None,
        experts: int | None = None,
        view: ModelView | None = None,
        family: Mapping[str, Any] | None = None,
    ) -> None:
        self.config, self.view = config, view
        self._fused, self._renames = fused, (*renames, *(view.renames if view else ()))
        self._layers, self._expert_count = layers, experts
        self._targets, self._ignore = frozenset(config.targets), frozenset(config.ignore)
        self._overrides: dict[str, Override] = {override.pattern: override for override in config.overrides}
        texts = dict.fromkeys([*config.ignore, *self._overrides, *config.targets])
        self._matcher = Matcher(texts, fused, self._renames, view.aliases if view else None)
        self._family = ByFamily(family or {}, config, fused, self._renames, view)
        self._probes = frozenset(int(number) for text in texts for number in _NUMBER.findall(text))
        self._offered, self._kept = dict[str, None](), dict[str, str]()
        self._matched, self._effective = set[str](), set[str]()

    @classmethod
    def for_model(
        cls, config: Mxfp4Config, model_config: Mapping[str, Any], *, stored: bool = False, **keywords: Any
    ) -> Self:
        """Return a resolver that knows from config.json the depth of the model, its experts and its family.

        Args:
            config: the config.
            model_config: contents of config.json; may be empty.
            stored: the weights are quantised already: what their writer decided is not decided again by family.
            **keywords: as for the constructor.
        """
        facts, family = ModelFacts.read(model_config), None if stored else model_config
        return cls(
            config, layers=facts.layers or None, experts=facts.experts or None, family=family, **keywords
        )

    def decide(self, name: str, shape: Sequence[int] | None = None) -> Decision:
        """Decide about one name of a tensor or module, fused or not, with or without ``.weight``.

        Args:
            name: in the vocabulary of the checkpoint or of the engine.
            shape: logical shape where known; tells vectors and convolutions, and the number of experts.

        Raises:
            PatternError: patterns split a fused module or the experts of a layer, or two overrides differ.
        """
        return self._decide(name, shape)[0]

    def _decide(self, name: str, shape: Sequence[int] | None) -> tuple[Decision, bool]:
        """Return the decision, and whether the nature of the tensor made it."""
        module = self._checkpoint_name(module_of(name))
        self._offered[module] = None
        verdicts = {leaf: self._decide_leaf(leaf) for leaf in self._leaves(module, shape)}
        if nature := self._by_nature(name, shape):
            # A norm is a vector, but that it is a norm tells a reader more.
            role = self._by_default(module) if self.config.keep_defaults else None
            self._note(verdicts, nature)
            bare = module_of(name) == name
            return Decision(module if bare else self._weight_of(name, module), False, role or nature), True
        if len({found.outcome for found in verdicts.values()}) > 1:
            every = self._leaves(module, shape, every=True)
            refuse_split(module, {leaf: self._decide_leaf(leaf) for leaf in every})
        decision = next(iter(verdicts.values()))
        self._note(verdicts, "" if decision.quantize else decision.reason)
        return replace(decision, name=self._weight_of(name, module)), False

    def decide_all(self, names: Iterable[tuple[str, Sequence[int] | None]]) -> list[Decision]:
        """Decide about every tensor of a model, then check that every pattern had something to do.

        Args:
            names: name and shape of each tensor or module.

        Raises:
            PatternError: as ``decide``, also across names that are fused later; or as ``check_patterns``.
        """
        pairs, decisions = list(names), list[Decision]()
        outcomes: dict[str, set[object]] = {}
        alike = Alike(self.view, self._layers)
        plain = not self._matcher.texts and not any(map(str.isdigit, "".join(map("".join, self._renames))))
        for name, shape in pairs:
            kind = alike.kind(name, shape) if plain else None
            if (known := alike.find(kind)) is not None:
                decision = again(known, name)
                wholes = [part_of(name, *place) for place in known.groups]
            else:
                decision, by_nature = self._decide(name, shape)
                groups = () if by_nature else self._groups(module_of(decision.name))
                wholes = [group for group, _ in groups]
                alike.remember(kind, name, decision, wholes)
            decisions.append(decision)
            for each in wholes:
                outcomes.setdefault(each, set()).add(decision.outcome)
        if split := next((each for each, found in outcomes.items() if len(found) > 1), None):
            self._refuse(split, pairs)
        self.check_patterns()
        return decisions

    def _refuse(self, group: str, pairs: Iterable[tuple[str, Sequence[int] | None]]) -> NoReturn:
        """Raise the error about a whole whose parts are decided differently."""
        members: dict[str, Decision] = {}
        for decision, by_nature in (self._decide(name, shape) for name, shape in pairs):
            for each, leaf in () if by_nature else self._groups(module_of(decision.name)):
                members |= {leaf: decision} if each == group else {}
        refuse_split(group, members)

    def unmatched(self) -> list[str]:
        """Return the patterns that have hit no name so far."""
        return [text for text in self._matcher.texts if text not in self._matched]

    def check_patterns(self) -> None:
        """Check that every pattern of the config did something for the names decided so far.

        Raises:
            PatternError: a pattern matches no name, with near misses; or a target or an override matches only
                names that are kept for another reason.
        """
        if missing := self.unmatched():
            decisions.refuse_unmatched(missing, len(self._matcher.texts), list(self._offered))
        asked = [text for text in self._matcher.texts if self._should_quantize(text)]
        if idle := [text for text in asked if text not in self._effective]:
            decisions.refuse_idle({text: self._kept.get(text, "") for text in idle}, self._overrides)

    def _note(self, leaves: Iterable[str], kept: str) -> None:
        for leaf in leaves:
            hits = self._matcher.hits(leaf)
            self._effective.update(() if kept else hits)
            self._kept = {**dict.fromkeys(hits, f"{leaf}: {kept}"), **self._kept}

    def _should_quantize(self, text: str) -> bool:
        return text in self._targets or (text in self._overrides and not self._overrides[text].keep)

    def _checkpoint_name(self, module: str) -> str:
        known = bool(self._renames) and self.view is not None and self.view.knows(module)
        for engine, checkpoint in self._renames:
            renamed = rename(module, engine, checkpoint)
            # A name that takes several renames is half a name after one, which nobody knows.
            if renamed != module and (not known or (self.view and self.view.knows(renamed))):
                return renamed
        return module

    def _leaves(self, module: str, shape: Sequence[int] | None, *, every: bool = False) -> list[str]:
        if (expert := parse_expert(module)) is not None:
            if expert.index is not None:
                return [expert.leaf(expert.index, part) for part in expert.parts]
            count = shape[0] if shape is not None and len(shape) == 3 else self._expert_count
            ask_all = every and count is not None
            experts = range(min(count or 0, _MAX_PROBES)) if ask_all else self._experts(count)
            return [expert.leaf(index, part) for index in experts for part in expert.parts]
        finer = self.view.finer(module) if self.view else ()
        return list(finer) or shards_of(module, self._fused) or [module]

    def _experts(self, count: int | None) -> list[int]:
        # Only experts that a pattern can tell from the others need asking: those with a number that some
        # pattern contains, and one more for all the rest.
        if self._matcher.searches_numbers:
            asked = max(self._probes, default=0) + 2 if count is None else count
            return list(range(min(asked, _MAX_PROBES)))
        numbers = sorted(number for number in self._probes if count is None or number < count)
        rest = next(number for number in range(len(numbers) + 1) if number not in self._probes)
        return [*numbers, rest] if count is None or rest < count else numbers

    def _decide_leaf(self, leaf: str) -> Decision:
        hits = self._matcher.hits(leaf)
        self._matched.update(self._matcher.meant(leaf))
        override = self._override(leaf, hits)
        for text in hits:
            if text in self._ignore:
                if override is not None and override.keep is False:
                    refuse_pair(leaf, f"ignore {text!r} and override {override.pattern!r} with keep = false")
                return Decision(leaf, False, f"ignored by {text!r}", text, None, hits[text])
        if override is not None and override.keep:
            text = override.pattern
            return Decision(leaf, False, f"kept by override {text!r}", text, None, hits[text])
        forced = override is not None and override.keep is False
        if self.config.keep_defaults and not forced and (reason := self._by_default(leaf)):
            return Decision(leaf, False, reason)
        target = next((text for text in hits if text in self._targets), None)
        if self._targets and target is None and not forced:
            return Decision(leaf, False, NO_TARGET)
        if not forced and (kept := self._family.why(leaf)):
            return Decision(leaf, False, kept[0], row=kept[1])
        chosen = target if override is None else override.pattern
        told = "a linear or expert weight" if chosen is None else f"target {chosen!r}"
        if override is not None:
            told = f"override {chosen!r}" + (", which outranks the defaults" if forced else "")
        profile, activation, format = self.config.outcome_for(override)
        return Decision(leaf, True, told, chosen, profile, hits.get(chosen or ""), activation, format)

    def _weight_of(self, name: str, module: str) -> str:
        exact = self.view is not None and self.view.names(name) and module == module_of(name)
        return name if exact else weight_of(module)

    def _by_nature(self, name: str, shape: Sequence[int] | None) -> str | None:
        """Return why a tensor can never be MXFP4: the model's library knows best, where it is asked."""
        if self.view is None:
            return kept_by_nature(name, shape)
        known = self.view.find(name)
        if known and shape is not None and len(shape) >= 2 and 0 not in shape:
            return next((each.by_nature for each in known if each.by_nature), None)
        return kept_by_nature(name, shape) or next((each.by_nature for each in known if each.by_nature), None)

    def _by_default(self, module: str) -> str | None:
        known = self._known(module)
        linear = bool(known) and {each.kind for each in known} <= {"linear", "experts"}
        reason = kept_by_default(module, self._layers, known=linear)
        if reason or self.view is None:
            return reason
        if not known:
            return f"{self.view.model} does not load it, kept by default"
        return next((each.by_default for each in known if each.by_default), None)

    def _known(self, leaf: str) -> Sequence[Parameter]:
        """Return what is known about a leaf; one of a stack of experts, or of a fused module, is known by the whole."""
        if self.view is None:
            return ()
        if found := self.view.find(leaf):
            return found
        wholes = (whole for whole, _ in fused_names(leaf, self._fused))
        return next((found for whole in wholes if (found := self.view.find(whole))), ())

    def _override(self, leaf: str, hits: Hits) -> Override | None:
        found = [self._overrides[text] for text in hits if text in self._overrides]
        said = [(each.keep, self.config.outcome_for(each)) for each in found]
        for other, its in zip(found[1:], said[1:], strict=True):
            if its != said[0]:
                refuse_pair(leaf, f"overrides {found[0].pattern!r} and {other.pattern!r}")
        return found[0] if found else None

    def _groups(self, module: str) -> Iterator[tuple[str, str]]:
        if (expert := parse_expert(module)) is not None:
            yield expert.prefix, module
            return
        for whole in self.view.coarser(module) if self.view else ():
            yield whole, module
        for fused, _ in fused_names(module, self._fused):
            yield fused, module


__all__ = ["DEFAULT_FUSED", "Decision", "Resolver", "exclude_patterns"]
