"""Which axis of a weight is K: the model type says it, and the sizes of the model confirm it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from mxfp4_core.errors import DialectError
from mxfp4_core.naming.vocabulary import module_of, transposed

_ALWAYS: Final = frozenset({"gpt_oss", "openai_privacy_filter"})
"""Model types whose files are K-first whoever saved them; those of others depend on the writer."""


def model_type(config: Mapping[str, Any]) -> str:
    """Return the model type of config.json, that of the language model where there are several."""
    return str(_language(config).get("model_type") or "")


def k_first(name: str, shape: Sequence[int], config: Mapping[str, Any]) -> bool:
    """Return whether a stored weight has K before N.

    For stacked experts the type of the model only says how its release was written: saved again by transformers, some
    come out as ``[E, N, K]``. There the hidden size, which is K of gate-up and N of down, tells the two apart.

    Args:
        name: name of the tensor.
        shape: its stored shape.
        config: contents of config.json.

    Raises:
        DialectError: the sizes fit both orders, or neither.
    """
    kind = model_type(config)
    if not transposed(name, kind):
        return False
    hidden = _language(config).get("hidden_size")
    if kind in _ALWAYS or len(shape) != 3 or not isinstance(hidden, int):
        return True
    down = module_of(name).rsplit(".", 1)[-1].startswith(("down", "w2"))
    middle, last = shape[1] == hidden, shape[2] == hidden
    if middle == last:
        raise DialectError(
            f"tensor {name!r} cannot be read",
            seen=f"shape {list(shape)}, hidden_size {hidden}, model type {kind!r}",
            rule="its files hold stacked experts as [E, N, K] or [E, K, N], and the hidden size tells which",
            fix="add the name to ignore, or save the experts one by one",
        )
    return last if down else middle


def _language(config: Mapping[str, Any]) -> Mapping[str, Any]:
    text = config.get("text_config")
    return text if isinstance(text, dict) and "model_type" in text else config


__all__ = ["k_first", "model_type"]
