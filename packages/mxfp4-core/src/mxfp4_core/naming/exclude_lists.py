"""Exclude lists of other producers, translated into our patterns with their own meaning.

Every producer matches names in its own way, and reading one list with another's rule is a common way to lose a
model. So the translation is exact: what their matcher hits is what ours hits, on the module name or, where a list
was written for tensors (``*mlp.gate.*``), on the tensor name.

    dialect              how they match                                                 source
    mxfp4-core           our own patterns                                               patterns.py
    quark                fnmatch on the whole name                                      amd-quark 0.13
    modelopt             fnmatch on the whole name                                      vLLM modelopt.py
    compressed-tensors   the whole name, or ``re:`` with re.match (start anchored)      CT 0.20 utils/match.py
    auto-round           the whole name, or a regex somewhere in it                     0.16.1 inference/utils.py
    transformers         regex from the start to a component border, or plain suffix    5.23 quantizers_utils.py
    sglang               the whole name, or ``re:`` with re.match                       0.5.23 quark/utils.py
    sglang-diffusion     a run of whole components                                      0.5.23 is_layer_skipped
    msmodelslim          the whole tensor name                                          26.1 description file
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from mxfp4_core.config.messages import unknown_name
from mxfp4_core.config.patterns import Pattern
from mxfp4_core.errors import PatternError

_GLOB: Final = re.compile(r"[*?\[]")
_PLAIN: Final = re.compile(r"[\w\-]+(\.[\w\-]+)*", re.ASCII)


def exclude_patterns(dialect: str, patterns: Iterable[str]) -> list[str]:
    """Translate another producer's exclude list into our patterns, without repetitions.

    Args:
        dialect: whose list it is; see the table above. ``gpt-oss``, ``mxfp4``, ``torchao`` and ``fp-quant`` mean
            ``transformers``.
        patterns: the entries of their list.

    Returns:
        Patterns for ``Mxfp4Config.ignore``, in the same order.

    Raises:
        ConfigError: the dialect is unknown.
        PatternError: an entry cannot be read.
    """
    if dialect not in _TRANSLATORS:
        raise unknown_name("dialect", dialect, list(_TRANSLATORS))
    translate = _TRANSLATORS[dialect]
    return list(dict.fromkeys(_checked(dialect, entry, translate(entry)) for entry in patterns))


def _checked(dialect: str, entry: str, translated: str) -> str:
    try:
        return Pattern.parse(translated).text
    except PatternError as error:
        raise PatternError(
            f"an entry of a {dialect} exclude list cannot be read",
            seen=repr(entry),
            rule=error.rule,
            fix=error.fix,
        ) from None


def _exact(entry: str) -> str:
    return f"={entry}" if _PLAIN.fullmatch(entry) else f"re:{re.escape(entry)}"


def _glob(entry: str) -> str:
    if not _GLOB.search(entry):
        return _exact(entry)
    if re.search(r"[?\[]", entry):
        # Its atomic groups only save time: what matches is the same without, and time is bounded here anyway.
        return f"re:{fnmatch.translate(entry).replace('(?>', '(?:')}"
    return "re:" + re.escape(entry).replace(r"\*", ".*")


def _name_or_regex(entry: str) -> str:
    if not entry.startswith("re:"):
        return _exact(entry)
    # re.match anchors only the start; our expressions cover the whole name.
    return f"re:(?:{entry.removeprefix('re:')}).*"


def _transformers(entry: str) -> str:
    return rf"re:(?:{entry})(?:(?<=\.)|(?=\.|$)).*|.*{re.escape(entry)}"


def _name_or_search(entry: str) -> str:
    return _exact(entry) if _PLAIN.fullmatch(entry) else f"re:.*(?:{entry}).*"


_TRANSLATORS: Final[Mapping[str, Callable[[str], str]]] = {
    "mxfp4-core": str,
    "quark": _glob,
    "modelopt": _glob,
    "compressed-tensors": _name_or_regex,
    "auto-round": _name_or_search,
    "transformers": _transformers,
    "torchao": _transformers,
    "torchao-plain": _transformers,
    "fp-quant": _transformers,
    "gpt-oss": _transformers,
    "gpt-oss-original": str,
    "mxfp4": _transformers,
    "sglang": _name_or_regex,
    "sglang-diffusion": str,
    "msmodelslim": _exact,
}

__all__ = ["exclude_patterns"]
