from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mxfp4_core.backend import build
from mxfp4_core.backend.build import torch_build


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for another torch, which comes first on the path."""
    folder = tmp_path / "torch"
    folder.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch")
    yield folder
    build._read.cache_clear()


def test_it_says_what_torch_says() -> None:
    found = torch_build()
    assert found is not None
    assert (found.version, found.cuda, found.hip) == (
        torch.__version__,
        torch.version.cuda,
        torch.version.hip,
    )


def test_a_build_for_an_accelerator(installed: Path) -> None:
    (installed / "__init__.py").touch()
    (installed / "version.py").write_text(
        "from typing import Optional\n__all__ = ['cuda', 'hip']\n__version__ = '2.11.0+cu130'\n"
        "debug = False\ncuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n"
    )
    assert torch_build() == build.TorchBuild("2.11.0+cu130", "13.0", None)
    assert "torch" not in sys.modules


@pytest.mark.parametrize(
    "text", [None, "def broken(", "cuda = None", "__version__ = 'x'\ncuda = f()\nhip = None"]
)
def test_what_cannot_be_read_is_nothing(installed: Path, text: str | None) -> None:
    (installed / "__init__.py").touch()
    if text is not None:
        (installed / "version.py").write_text(text)
    assert torch_build() is None


def test_a_file_in_the_place_of_torch_and_no_torch_at_all(
    tmp_path: Path, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed.rmdir()
    (tmp_path / "torch.py").write_text("raise ImportError")
    assert torch_build() is None
    monkeypatch.setitem(sys.modules, "torch", None)
    build._read.cache_clear()
    assert torch_build() is None
