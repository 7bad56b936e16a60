from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

Save = Callable[..., Path]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def vendor_llama() -> Path:
    return Path(__file__).parent.parent / "data" / "vendor_llama"


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Write a checkpoint with safetensors' own library, in one file or, given several mappings, with an index."""

    def write(
        *files: Mapping[str, torch.Tensor], config: Mapping[str, Any] | None = None, name: str = "source"
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        if config is not None:
            (folder / "config.json").write_text(json.dumps(config))
        if len(files) == 1:
            save_file(dict(files[0]), folder / "model.safetensors", metadata={"format": "pt"})
            return folder
        weight_map = {}
        for number, tensors in enumerate(files, 1):
            file = f"model-{number:05}-of-{len(files):05}.safetensors"
            save_file(dict(tensors), folder / file, metadata={"format": "pt"})
            weight_map.update(dict.fromkeys(tensors, file))
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return folder

    return write


@pytest.fixture
def dense() -> dict[str, torch.Tensor]:
    """One decoder layer, an embedding, a head and norms, in bfloat16."""
    generator = torch.Generator().manual_seed(7)

    def weight(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(torch.bfloat16)

    layer = "model.layers.0."
    return {
        "lm_head.weight": weight(48, 64),
        "model.embed_tokens.weight": weight(48, 64),
        "model.norm.weight": weight(64),
        f"{layer}input_layernorm.weight": weight(64),
        f"{layer}self_attn.q_proj.weight": weight(64, 64),
        f"{layer}self_attn.q_proj.bias": weight(64),
        f"{layer}self_attn.k_proj.weight": weight(32, 64),
        f"{layer}self_attn.v_proj.weight": weight(32, 64),
        f"{layer}self_attn.o_proj.weight": weight(64, 64),
        f"{layer}mlp.gate_proj.weight": weight(96, 64),
        f"{layer}mlp.up_proj.weight": weight(96, 64),
        f"{layer}mlp.down_proj.weight": weight(64, 96),
    }


def everything_below(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Read every file below a folder, to compare folders and to see that nothing was left."""
    return everything_below
