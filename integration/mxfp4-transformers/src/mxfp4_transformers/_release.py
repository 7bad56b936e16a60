"""Check the release of transformers when the package is imported, before modules ask for names that others lack."""

from __future__ import annotations

import re
from typing import Final

import transformers

from mxfp4_core.errors import ConfigError

VERSION: Final[str] = transformers.__version__
FIRST: Final = (5, 17)
"""The oldest release whose names `compat` knows; of later ones all with the same first number will do."""


def check_version(found: str) -> None:
    """Check that a release of transformers is one that this package works with.

    Args:
        found: for example ``5.17.0`` or ``5.25.0.dev0``.

    Raises:
        ConfigError: it is not.
    """
    numbers = re.match(r"(\d+)\.(\d+)", found)
    if numbers and FIRST <= (int(numbers[1]), int(numbers[2])) < (FIRST[0] + 1, 0):
        return
    raise ConfigError(
        "mxfp4_transformers cannot be used with this transformers",
        seen=f"transformers {found}",
        rule="transformers 5.17 and later of 5 ask a quantizer what it has to answer",
        fix="pip install 'transformers>=5.17,<6'",
    )


check_version(VERSION)

__all__ = ["FIRST", "VERSION", "check_version"]
