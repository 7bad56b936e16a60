"""What a tensor's name tells: its layer, its kind, and which experts share one line of the report."""

from __future__ import annotations

import re

from mxfp4_core._text import is_index, printable

_EXPERT = re.compile(r"(^|\.)experts\.([0-9]{1,9})(?=\.|$)")
_LAYER = re.compile(r"(?:^|\.)([0-9]{1,9})(?=\.|$)")
_DIGITS = re.compile(r"([0-9]{1,18})")
_STEM = re.compile(r"\.weight$")


def group_of(name: str) -> tuple[str, int | None]:
    """Return the line of the report that a tensor belongs to, and its expert number.

    >>> group_of("model.layers.3.mlp.experts.17.down_proj.weight")
    ('model.layers.3.mlp.experts.*.down_proj.weight', 17)
    >>> group_of("model.layers.3.mlp.down_proj.weight")
    ('model.layers.3.mlp.down_proj.weight', None)
    """
    match = _EXPERT.search(name)
    if match is None:
        return name, None
    return f"{name[: match.start(2)]}*{name[match.end(2) :]}", int(match.group(2))


def layer_of(name: str) -> int | None:
    """Return the layer number: the first component that is a number, None without one.

    >>> layer_of("model.layers.12.mlp.experts.*.down_proj.weight")
    12
    """
    match = _LAYER.search(name)
    return int(match.group(1)) if match else None


def kind_of(name: str) -> str:
    """Return the kind of a tensor, the same in all layers: its last named component.

    The tensors of experts get ``experts.`` before it.

    >>> kind_of("model.layers.3.self_attn.q_proj.weight"), kind_of("lm_head.weight")
    ('q_proj', 'lm_head')
    >>> kind_of("model.layers.3.mlp.experts.*.down_proj.weight"), kind_of("layers.3.mlp.experts.gate_up_proj")
    ('experts.down_proj', 'experts.gate_up_proj')
    """
    parts = [part for part in _STEM.sub("", name).split(".") if part and part != "*" and not is_index(part)]
    if not parts:
        return name
    return f"experts.{parts[-1]}" if "experts" in parts[:-1] else parts[-1]


def natural_key(name: str) -> tuple[tuple[int, str], ...]:
    """Return a sort key by which layer 2 comes before layer 10.

    >>> sorted(["layers.10.mlp", "layers.2.mlp"], key=natural_key)
    ['layers.2.mlp', 'layers.10.mlp']
    """
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in _DIGITS.split(name))


__all__ = ["group_of", "kind_of", "layer_of", "natural_key", "printable"]
