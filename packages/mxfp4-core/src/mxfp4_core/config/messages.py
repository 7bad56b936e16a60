"""Config errors in the reader's words: what pydantic found, turned into ``ConfigError`` with near misses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from mxfp4_core._text import nearest
from mxfp4_core.errors import ConfigError


def unknown_name(key: str, name: str, known: Sequence[str], *, cutoff: float = 0.5) -> ConfigError:
    """Return the error for a name that is not among the known ones, with the nearest of them."""
    near = nearest(name, known, count=1, cutoff=cutoff)
    return ConfigError(
        f"{key} names nothing that exists",
        seen=f"{key} = {name!r}",
        rule=f"{key} is one of {', '.join(dict.fromkeys(known))}",
        fix=f"did you mean {near[0]!r}?" if near else "use one of these",
    )


def contradiction(what: str, seen: str, rule: str, fix: str) -> ConfigError:
    """Return the error for two settings that cannot both hold."""
    return ConfigError(f"{what}: two settings contradict each other", seen=seen, rule=rule, fix=fix)


def listed(**values: str | None) -> str:
    """Return the settings that are not None as text, ``profile = 'quark', ties = 'away'``."""
    return ", ".join(f"{key} = {value!r}" for key, value in values.items() if value is not None)


def explain(error: ValidationError, data: Any, title: str, keys: Sequence[str]) -> ConfigError:
    """Return the ``ConfigError`` for what pydantic found.

    Args:
        error: the error; all of its findings are listed.
        data: what was validated.
        title: the thing in words, for example ``the config``.
        keys: the keys that exist.
    """
    if not isinstance(data, dict):
        return ConfigError(
            f"{title} cannot be read",
            seen=type(data).__name__,
            rule=f"{title} is a table of keys and values",
            fix="write it as an object",
        )
    seen, rules, fixes = [], [], []
    for finding in error.errors(include_url=False):
        path = ".".join(str(part) for part in finding["loc"])
        seen.append(
            f"{path} = {_short(finding.get('input'))}" if finding["type"] != "missing" else f"no {path}"
        )
        rule, fix = _words(finding["type"], finding["msg"], path, keys)
        rules.append(rule)
        fixes.append(fix)
    return ConfigError(
        f"{title} is not valid",
        seen="; ".join(seen),
        rule="; ".join(dict.fromkeys(rules)),
        fix="; ".join(dict.fromkeys(fixes)),
    )


def _words(kind: str, message: str, path: str, keys: Sequence[str]) -> tuple[str, str]:
    if kind == "extra_forbidden":
        near = nearest(path, keys, count=1, cutoff=0.5)
        rule = f"the keys are {', '.join(keys)}"
        return rule, f"did you mean {near[0]!r}?" if near else f"drop {path!r}"
    if kind == "missing":
        return f"{path} is required", f"add {path}"
    wanted = message[0].lower() + message[1:]
    return f"{path}: {wanted}", f"correct {path}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


__all__ = ["contradiction", "explain", "listed", "unknown_name"]
