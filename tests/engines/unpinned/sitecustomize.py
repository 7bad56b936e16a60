"""For SGLang's LoRA without an accelerator: torch pins no memory there, and SGLang asks for it in any case."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


def _unpinned(make: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(make)
    def made(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Any:
        return make(*args, **kwargs)

    return made


for name in ("empty", "zeros", "tensor"):
    setattr(torch, name, _unpinned(getattr(torch, name)))
torch.Tensor.pin_memory = lambda self, *args, **kwargs: self  # type: ignore[assignment, method-assign]
