"""Who knows what the weights of a checkpoint are, and what the plan of it should say about that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from mxfp4_core.checkpoint.reader import Checkpoint
from mxfp4_core.dialects.base import Contents
from mxfp4_core.errors import ModelError
from mxfp4_core.naming.braces import collapse
from mxfp4_core.naming.by_family import advice
from mxfp4_core.naming.decision import Decision
from mxfp4_core.naming.facts import ModelFacts
from mxfp4_core.naming.providers import Described, describe
from mxfp4_core.naming.view import ModelView
from mxfp4_core.naming.vocabulary import module_of

_LARGE: Final = 0.01
"""Share of a checkpoint from which on it is worth a note that something of it stays in high precision."""


def describe_checkpoint(checkpoint: Checkpoint, models: str) -> Described:
    """Ask the model providers about a checkpoint in high precision.

    Args:
        checkpoint: its config.json and headers are all that is looked at.
        models: ``auto``, ``none`` or the name of a provider; see `describe`.

    Raises:
        ConfigError: no provider has that name.
        ModelError: the named provider cannot say, or two claim the model.
    """
    headers = {name: (info.dtype, info.shape) for name, info in checkpoint.tensors.items()}
    return describe(checkpoint.config, headers, models)


def describe_contents(model: Mapping[str, Any], contents: Contents) -> Described:
    """Ask the model providers about what a quantised checkpoint holds, as if it were in high precision.

    They are asked only how the result is loaded. Where two claim the model, the answer is the one without a provider.

    Args:
        model: its config.json, without what describes the quantisation.
        contents: what a dialect reads from it.
    """
    headers = {name: (recipe.dtype, recipe.shape) for name, recipe in contents.tensors.items()}
    headers |= {name: ("BF16", each.shape) for name, each in contents.beside.items()}
    for name, entry in contents.entries.items():
        *lead, n, k = entry.shape if len(entry.shape) > 1 else (1, *entry.shape)
        headers[name] = "BF16", (*lead, k, n) if entry.transposed else entry.shape
    try:
        return describe({k: v for k, v in model.items() if k != "quantization_config"}, headers)
    except ModelError as error:
        return Described(None, f"kinds by names: {error.what}")


def with_readers(contents: Contents, view: ModelView | None) -> Contents:
    """Say of each weight which class of the library reads it itself, beside calling its module."""
    if view is None:
        return contents
    entries = {}
    for name, entry in contents.entries.items():
        reader = next((each.reader for each in view.find(name) if each.reader), "")
        entries[name] = replace(entry, reader=reader) if reader != entry.reader else entry
    return replace(contents, entries=entries)


def is_refused(view: ModelView | None, quantized: Iterable[str]) -> bool:
    """Say whether the library that owns the model cannot compute with one of these tensors as MXFP4."""
    return view is not None and any(each.refusal for name in quantized for each in view.find(name))


def notes_of(
    checkpoint: Checkpoint, view: ModelView | None, decisions: Sequence[Decision]
) -> tuple[str, ...]:
    """Return what a reader of a plan should know though nothing stands against it.

    Args:
        checkpoint: the checkpoint in high precision.
        view: what a model provider says, if one does.
        decisions: about each tensor, in its order.
    """
    decided = list(zip(checkpoint.tensors, decisions, strict=True))
    names = [name for name, decision in decided if decision.quantize]
    refused: dict[str, list[str]] = {}
    widened: dict[str, list[str]] = {}
    for name in names if view else ():
        for parameter in view.find(name) if view else ():
            if parameter.refusal:
                refused.setdefault(parameter.refusal, []).append(name)
            elif parameter.held:
                widened.setdefault(parameter.held, []).append(name)
    notes = [
        f"{view.provider} cannot compute with {', '.join(collapse(held))} as MXFP4: {why}"
        for why, held in refused.items()
        if view
    ]
    notes += [
        f"{view.provider} computes with {', '.join(collapse(held))} by its own code, widened in each call: {why}"
        for why, held in widened.items()
        if view
    ]
    notes += _large_others(checkpoint, view)
    if view is None and "auto_map" in checkpoint.config:
        notes.append(
            "code of the model lies in the checkpoint: loading runs it, and takes trust_remote_code=True, "
            "or --trust-remote-code in an engine"
        )
    facts = ModelFacts.read(checkpoint.config)
    rows: dict[str, list[str]] = {}
    for name, decision in decided:
        if decision.row:
            rows.setdefault(decision.row, []).append(module_of(name))
    for source, held in rows.items():
        kept = f"{len(held)} tensors of a {facts.model_type} stay in high precision by the table of families"
        notes.append(f"{kept} ({source}): {', '.join(collapse(held))}; --no-family-defaults quantises them")
    for source, patterns in advice(facts.model_type, map(module_of, names)).items():
        options = " ".join(f"--ignore {pattern}" for pattern in patterns)
        notes.append(f"others keep more of a {facts.model_type} in high precision ({source}): {options}")
    return tuple(notes)


def _large_others(checkpoint: Checkpoint, view: ModelView | None) -> list[str]:
    """Return a note for each reason why a good part of the model stays in high precision that no default names."""
    total = sum(info.nbytes for info in checkpoint.tensors.values())
    held: dict[str, dict[str, int]] = {}
    for name, info in checkpoint.tensors.items():
        known = view.find(name) if view else ()
        if not known or len(info.shape) < 2:
            continue
        if all(each.kind == "other" for each in known):
            held.setdefault(f"{known[0].module} is no linear layer", {})[name] = info.nbytes
        elif all(each.keep and each.kind in ("linear", "experts") for each in known):
            held.setdefault(known[0].keep, {})[name] = info.nbytes
    shares = {why: sum(sizes.values()) / total for why, sizes in held.items()}
    return [
        f"{shares[why]:.0%} of the checkpoint stays in high precision, since {why}: {', '.join(collapse(sizes))}"
        for why, sizes in held.items()
        if shares[why] >= _LARGE
    ]


__all__ = ["describe_checkpoint", "describe_contents", "is_refused", "notes_of", "with_readers"]
