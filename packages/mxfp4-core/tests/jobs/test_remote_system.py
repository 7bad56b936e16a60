"""Every command from and to a file system of fsspec that tells no ETag, and the moment of a file in two ways."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mxfp4_core import Mxfp4Config
from mxfp4_core.errors import OutputError
from mxfp4_core.jobs import (
    convert_checkpoint,
    dequantize_checkpoint,
    quantize_checkpoint,
    verify_checkpoint,
)

pytest.importorskip("fsspec")


def test_every_command_there_gives_the_bytes_of_here(
    save: Callable[..., Path], dense: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    import fsspec

    memory, url = fsspec.filesystem("memory"), f"memory://{tmp_path.name}"
    here, config = save(dense, config={"model_type": "llama"}), Mxfp4Config(dialect="mxfp4-core")
    for file in here.iterdir():
        memory.pipe(f"/{tmp_path.name}/source/{file.name}", file.read_bytes())
    quantize_checkpoint(f"{url}/source", f"{url}/made", config, models="none", max_shard_bytes=3000)
    convert_checkpoint(f"{url}/made", f"{url}/other", "compressed-tensors")
    dequantize_checkpoint(f"{url}/other", f"{url}/wide")
    assert verify_checkpoint(f"{url}/made", f"{url}/source").ok
    quantize_checkpoint(here, tmp_path / "made", config, models="none", max_shard_bytes=3000)
    convert_checkpoint(tmp_path / "made", tmp_path / "other", "compressed-tensors")
    dequantize_checkpoint(tmp_path / "other", tmp_path / "wide")
    for folder in ("made", "other", "wide"):
        names = {path.rsplit("/", 1)[-1] for path in memory.ls(f"/{tmp_path.name}/{folder}", detail=False)}
        assert {file.name for file in (tmp_path / folder).iterdir()} == names
        for file in (tmp_path / folder).glob("*.safetensors"):
            assert memory.cat(f"/{tmp_path.name}/{folder}/{file.name}") == file.read_bytes()
    with pytest.raises(OutputError):
        quantize_checkpoint(f"{url}/source", f"{url}/made", config, models="none")
