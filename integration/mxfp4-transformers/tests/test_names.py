"""Names on the Hub: what is in the cache of this machine is found there, whether the Hub can be reached or not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NoReturn

import huggingface_hub
import pytest
from tiny import DEVICE, NAMES

import mxfp4_transformers
from mxfp4_core.checkpoint import open_checkpoint
from mxfp4_core.errors import CheckpointError
from mxfp4_core.jobs import quantize_checkpoint
from mxfp4_transformers import Mxfp4Config
from mxfp4_transformers.folder import Folder


@pytest.fixture
def cached(checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A quantised model as huggingface_hub stores it, and no Hub."""
    model = tmp_path / "models--acme--tiny"
    snapshot = model / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    quantize_checkpoint(checkpoints[NAMES[0]], tmp_path / "made")
    shutil.copytree(tmp_path / "made", model / "blobs")
    for file in (model / "blobs").iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))

    def out_of_reach(*_: object, **__: object) -> NoReturn:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", out_of_reach)
    return snapshot


def test_a_name_that_is_in_the_cache(cached: Path) -> None:
    keywords = {} if DEVICE == "cpu" else {"device_map": DEVICE}
    model = mxfp4_transformers.from_pretrained("acme/tiny", Mxfp4Config(backend="reference"), **keywords)
    assert model.name_or_path == "acme/tiny"
    assert open_checkpoint("acme/tiny").path == cached


@pytest.mark.parametrize("name", ["acme/none", "none"])
def test_a_name_that_is_nowhere(cached: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"the Hub does not give it: ConnectionError: no route"):
        mxfp4_transformers.from_pretrained(name)


def test_another_revision_is_not_taken_for_it(cached: Path) -> None:
    with pytest.raises(CheckpointError, match="no route"):
        mxfp4_transformers.from_pretrained("acme/tiny", revision="4567def")


def test_an_adapter_is_left_to_transformers(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert Folder.open(tmp_path) is None
