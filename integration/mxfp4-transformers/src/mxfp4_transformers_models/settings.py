"""The settings of one config.json, by path, as a row of a table asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class UncertainError(Exception):
    """A table does not know for certain; the library does."""


class Settings:
    """What a config.json says, with the defaults of its class where it says nothing.

    Args:
        config: contents of config.json.
        aliases: other paths of settings, by which older files call them.
        defaults: settings that a file may leave out.
    """

    def __init__(
        self, config: Mapping[str, Any], aliases: Mapping[str, str], defaults: Mapping[str, Any]
    ) -> None:
        self._config, self._defaults = config, defaults
        self._others: dict[str, list[str]] = {}
        for alias, path in aliases.items():
            self._others.setdefault(path, []).append(alias)

    def get(self, path: str) -> Any:
        """Return a setting.

        Raises:
            UncertainError: neither the file nor the defaults say it, or the file says it twice.
        """
        given = [found for each in (path, *self._others.get(path, ())) for found in self._given(each)]
        if len(given) == 1 or (given and all(each == given[0] for each in given)):
            return given[0]
        if given or path not in self._defaults:
            raise UncertainError(path)
        return self._defaults[path]

    def number(self, text: str | int | None) -> int | None:
        """Return a size: a number as it is, a product of settings, or None where it follows from nothing known.

        Args:
            text: for example ``2*moe_intermediate_size``.
        """
        if not isinstance(text, str):
            return text
        product = 1
        for factor in text.split("*"):
            try:
                value = int(factor) if factor.isdigit() else self.get(factor)
            except UncertainError:
                return None
            if type(value) is not int:
                return None
            product *= value
        return product

    def _given(self, path: str) -> list[Any]:
        section: Any = self._config
        for key in path.split("."):
            if not isinstance(section, Mapping) or key not in section:
                return []
            section = section[key]
        return [section]


__all__ = ["Settings", "UncertainError"]
