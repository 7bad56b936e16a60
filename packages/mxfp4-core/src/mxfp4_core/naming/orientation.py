"""Which axis of a stored weight is K: the model's library knows, else the family says it and the sizes confirm it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mxfp4_core.errors import DialectError
from mxfp4_core.naming.facts import ModelFacts
from mxfp4_core.naming.view import ModelView
from mxfp4_core.naming.vocabulary import k_first_row, module_of


def k_first(
    name: str, shape: Sequence[int], config: Mapping[str, Any] | ModelFacts, view: ModelView | None = None
) -> bool:
    """Return whether a stored weight has K before N.

    For stacked experts the type of the model only says how its release was written: saved again by transformers, some
    come out as ``[E, N, K]``. There the hidden size, which is K of gate-up and N of down, tells the two apart.

    Args:
        name: name of the tensor.
        shape: its stored shape.
        config: contents of config.json, or what `ModelFacts.read` found there, for who asks often.
        view: what a model provider says; where it knows the tensor, nothing else counts.

    Raises:
        DialectError: the sizes fit both orders, or neither.
    """
    if view is not None and name in view.tensors:
        return view.k_first(name)
    facts = config if isinstance(config, ModelFacts) else ModelFacts.read(config)
    row = k_first_row(name, facts.model_type)
    if row is None:
        return False
    if row.k_first_always or len(shape) != 3 or not facts.hidden:
        return True
    down = module_of(name).rsplit(".", 1)[-1].startswith(("down", "w2"))
    middle, last = shape[1] == facts.hidden, shape[2] == facts.hidden
    if middle == last:
        raise DialectError(
            f"tensor {name!r} cannot be read",
            seen=f"shape {list(shape)}, hidden_size {facts.hidden}, model type {facts.model_type!r}",
            rule="its files hold stacked experts as [E, N, K] or [E, K, N], and the hidden size tells which",
            fix="add the name to ignore, or save the experts one by one",
        )
    return last if down else middle


__all__ = ["k_first"]
