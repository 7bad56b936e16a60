"""How the files of a checkpoint are named and written, where a vendor's own writer does it in its way."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True)
class Layout:
    """How files are named and written.

    Args:
        stem: what the names of weight files begin with; what the library of the model looks for if empty.
        bare: weight files are what the library of safetensors writes of itself: tensors by dtype, the widest first, and
            by name, with nothing beside them in the header. That a manifest belongs to them says a file beside, which
            else their headers say.
        newline: whether a JSON document ends with one.
    """

    stem: str = ""
    bare: bool = False
    newline: bool = True

    def text(self, document: Mapping[str, Any]) -> bytes:
        """Return a JSON document as it is stored."""
        return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n" * self.newline


OF_LIBRARY: Final = Layout()
"""As the library of the model has them, whichever it is."""

OF_TRANSFORMERS: Final = Layout("model")
"""As transformers has them."""

__all__ = ["OF_LIBRARY", "OF_TRANSFORMERS", "Layout"]
