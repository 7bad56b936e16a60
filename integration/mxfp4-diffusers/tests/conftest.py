"""Checkpoints for the tests; what they are made of is in ``components.py``."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode does not

# A machine with an accelerator and no network may lack diffusers; noxfile.py says so there.
collect_ignore_glob = [] if importlib.util.find_spec("diffusers") else ["test_*.py"]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import diffusers

    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One BF16 checkpoint of each class; that of Wan has several files."""
    import components

    root = tmp_path_factory.mktemp("bf16")
    for name in components.NAMES:
        components.build(name).save_pretrained(root / name, max_shard_size="80KB" if name == "wan" else "1GB")
    return {name: root / name for name in components.NAMES}


@pytest.fixture
def edited(tmp_path: Path) -> Callable[[Path, dict[str, torch.Tensor | None]], Path]:
    """Copy a checkpoint of one file with some tensors changed, added, or (None) left out."""

    def edit(path: Path, changes: dict[str, torch.Tensor | None]) -> Path:
        target = tmp_path / "edited"
        target.mkdir(exist_ok=True)
        (target / "config.json").write_text((path / "config.json").read_text())
        (file,) = path.glob("*.safetensors")
        kept = {**load_file(file), **changes}
        save_file({n: t for n, t in kept.items() if t is not None}, target / file.name, {"format": "pt"})
        return target

    return edit
