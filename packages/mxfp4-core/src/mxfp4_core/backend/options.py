"""Options for one backend: what a config says under ``backend_options``, hashable so that a problem can hold it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import cast

from mxfp4_core._text import did_you_mean
from mxfp4_core.errors import ConfigError

Value = str | int | float | bool | tuple[str | int | float | bool, ...]


class Options(Mapping[str, Value]):
    """A mapping that cannot be changed: values are strings, numbers, booleans or tuples of them.

    Raises:
        ConfigError: a value of another kind.
    """

    __slots__ = ("_items",)
    _items: tuple[tuple[str, Value], ...]

    def __init__(self, values: Mapping[str, object] | None = None) -> None:
        self._items = tuple(sorted((key, _frozen(key, value)) for key, value in (values or {}).items()))

    def __getitem__(self, key: str) -> Value:
        return dict(self._items)[key]

    def __iter__(self) -> Iterator[str]:
        return (key for key, _ in self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(self._items)

    def __eq__(self, other: object) -> bool:
        return dict(self._items) == dict(other) if isinstance(other, Mapping) else NotImplemented

    def __reduce__(self) -> tuple[object, ...]:
        return Options, (dict(self._items),)

    def __repr__(self) -> str:
        return f"Options({dict(self._items)})"

    def __str__(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self._items)


NO_OPTIONS = Options()


def check_keys(backend: str, options: Mapping[str, object], known: Iterable[str]) -> None:
    """Refuse options that the backend does not have; for `check_options` of a backend.

    Raises:
        ConfigError: a key is none of ``known``.
    """
    names = sorted(known)
    for key in options:
        if key not in names:
            raise ConfigError(
                f"backend_options of {backend!r}",
                seen=f"{key} = {options[key]!r}",
                rule=f"it has {', '.join(names)}" if names else "it has no options",
                fix=did_you_mean(key, names, f"drop {key!r}"),
            )


def check_choice(backend: str, options: Mapping[str, object], key: str, choices: Iterable[str]) -> None:
    """Refuse the value of one option that is none of the choices; an option that is not given is fine.

    Raises:
        ConfigError: the value is none of ``choices``.
    """
    words = list(choices)
    if key in options and options[key] not in words:
        raise ConfigError(
            f"backend_options of {backend!r}",
            seen=f"{key} = {options[key]!r}",
            rule=f"{key} is one of {', '.join(words)}",
            fix=did_you_mean(str(options[key]), words, "use one of these"),
        )


def _frozen(key: str, value: object) -> Value:
    items = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(item, str | int | float | bool) for item in items):
        raise ConfigError(
            "options of a backend",
            seen=f"{key} = {value!r}",
            rule="a value is a string, a number, true or false, or a list of these",
            fix=f"write {key!r} in this way, or drop it",
        )
    return cast("Value", tuple(items) if isinstance(value, list | tuple) else value)


__all__ = ["NO_OPTIONS", "Options", "Value", "check_choice", "check_keys"]
