"""The small trained models of this repository on a backend of this package."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers

import mxfp4_transformers
from mxfp4_core import _plugins
from mxfp4_core.backend import registry
from mxfp4_core.modules import Mxfp4Module
from mxfp4_petit import emulated

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "demo"))

import perplexity  # noqa: E402

NAMES = ("qwen3-tiny", "qwen3-moe-tiny")
TEXT = (ROOT / "models" / "heldout.txt").read_text(encoding="utf-8")


@contextmanager
def registered() -> Iterator[None]:
    """Register the emulated backend beside the installed ones, with the stand-in for petit-kernel in its place."""
    real = _plugins.entry_points
    point = EntryPoint("petit-emulated", "mxfp4_petit.emulated:backend", _plugins.BACKENDS)

    def entry_points(group: str) -> list[EntryPoint]:
        return [*real(group=group), *([point] if group == _plugins.BACKENDS else [])]

    with patch.object(_plugins, "entry_points", entry_points), emulated.stand_in():
        registry.refresh()
        yield
    registry.refresh()


def from_pretrained(path: Path, **settings: Any) -> Any:
    return mxfp4_transformers.from_pretrained(path, config=mxfp4_transformers.Mxfp4Config(**settings)).eval()


def windows(name: str, count: int | None = 3, length: int = 128) -> torch.Tensor:
    """Return int64 [count, length] of the held-out text."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(ROOT / "models" / name)
    return perplexity.cut(tokenizer(TEXT).input_ids, length=length, count=count)


def layouts(model: Any) -> set[str]:
    """Return the layouts of all weights."""
    modules = [module for module in model.modules() if isinstance(module, Mxfp4Module)]
    return {
        name for one in modules for name in re.findall(r"\(((?:petit|portable)-[\w.-]+)\)", one.extra_repr())
    }
