"""tools/check_api.py: what a leaf may take from the core."""

from __future__ import annotations

from pathlib import Path

import check_api
import pytest

AGREED = frozenset(
    {"mxfp4_core.MxTensor", "mxfp4_core.errors.ShapeError", "mxfp4_core.checkpoint.TensorInfo"}
)


def found(folder: Path, source: str) -> list[str]:
    (folder / "leaf.py").write_text(source)
    return list(check_api.violations(folder, AGREED))


@pytest.mark.parametrize(
    "source",
    [
        "from mxfp4_core import MxTensor\nfrom mxfp4_core.errors import ShapeError as Wrong\n",
        "import torch, mxfp4_core_extras\nfrom mxfp4_core_extras import anything\n",
        "from . import checkpoint\nfrom .mxfp4_core import MxTensor\n",
        "'mxfp4_core.errors is what a sentence may say'\n",
    ],
)
def test_public_names_and_what_is_not_of_the_core_pass(tmp_path: Path, source: str) -> None:
    assert found(tmp_path, source) == []


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("from mxfp4_core.errors import _hidden", "mxfp4_core.errors._hidden"),
        (
            "from mxfp4_core.checkpoint.header import TensorInfo",
            "from mxfp4_core.checkpoint import TensorInfo",
        ),
        ("from mxfp4_core.errors import *", "mxfp4_core.errors.*"),
        ("from mxfp4_core import errors", "mxfp4_core.errors,"),
        ("import mxfp4_core", "mxfp4_core,"),
        ("import os, mxfp4_core.errors as e", "mxfp4_core.errors,"),
        (
            "def late():\n    from mxfp4_core._plugins import plugins",
            "leaf.py:2: imports mxfp4_core._plugins.plugins",
        ),
        ("import importlib\nimportlib.import_module('mxfp4_core.jobs.plan')", "mxfp4_core.jobs.plan"),
        ("__import__('mxfp4_core')", "imports mxfp4_core,"),
    ],
)
def test_anything_else_is_named_with_its_line(tmp_path: Path, source: str, says: str) -> None:
    (message,) = found(tmp_path, source)
    assert says in message
    assert "leaf.py:" in message


def test_the_leaves_of_this_repository_keep_to_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_api.main() == 0, capsys.readouterr().out
    assert len(check_api.leaves()) >= 2
