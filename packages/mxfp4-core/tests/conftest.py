"""Settings that all tests of the core share."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from safetensors.torch import save_file

from mxfp4_core.backend import registry, select
from mxfp4_core.backend.registry import Plugin
from mxfp4_core.naming import providers

for folder in ("backend", "jobs", "loader", "testing"):  # pytest's importlib mode does not
    sys.path.insert(0, str(Path(__file__).parent / folder))

Save = Callable[..., Path]

# The first example of a test may compile kernels or import torch; a busy machine does the rest.
settings.register_profile("mxfp4", deadline=None)
settings.load_profile("mxfp4")


@pytest.fixture(autouse=True)
def without_the_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the core and the test provide backends and know models: what else is there is the machine's affair."""
    others = tuple(known.distribution.replace("-", "_") for known in select.KNOWN.values())

    def installed() -> Mapping[str, Plugin]:
        found = registry.installed().items()
        return {name: one for name, one in found if not one.points[0].value.startswith(others)}

    monkeypatch.setattr(select, "installed", installed)
    monkeypatch.setattr(providers, "plugins", lambda group: {})


@pytest.fixture
def vendor_llama() -> Path:
    return Path(__file__).parent / "data" / "vendor_llama"


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
