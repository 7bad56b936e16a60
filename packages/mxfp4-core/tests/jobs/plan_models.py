"""Checkpoints to plan: headers of any size, and no data."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mxfp4_core.backend.device import Device
from mxfp4_core.jobs.plan import Plan

Shapes = Mapping[str, tuple[int, ...]]


H200 = Device("cuda", "sm_90")


def write(path: Path, shapes: Shapes, config: Mapping[str, Any], dtype: str = "BF16") -> Path:
    """Write a checkpoint whose data is a hole in the file, so that it may be of any size."""
    path.mkdir(exist_ok=True)
    width, end, header = {"BF16": 2, "F32": 4, "I32": 4}[dtype], 0, {}
    for name, shape in shapes.items():
        nbytes = width
        for size in shape:
            nbytes *= size
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + nbytes]}
        end += nbytes
    text = json.dumps(header).encode()
    with open(path / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    (path / "config.json").write_text(json.dumps(config))
    return path


def moe(
    layers: int = 2, experts: int = 4, hidden: int = 128, inner: int = 192
) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (512, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.self_attn.{part}_proj.weight": (hidden, hidden) for part in "qo"}
        shapes |= {f"{prefix}.self_attn.{part}_proj.weight": (hidden // 2, hidden) for part in "kv"}
        shapes |= {
            f"{prefix}.input_layernorm.weight": (hidden,),
            f"{prefix}.mlp.gate.weight": (experts, hidden),
        }
        for expert in range(experts):
            shapes |= {
                f"{prefix}.mlp.experts.{expert}.{part}_proj.weight": (inner, hidden)
                for part in ("gate", "up")
            }
            shapes[f"{prefix}.mlp.experts.{expert}.down_proj.weight"] = (hidden, inner)
    config = {
        "model_type": "qwen3_moe",
        "num_hidden_layers": layers,
        "num_experts": experts,
        "num_experts_per_tok": 2,
    }
    return shapes, {**config, "num_attention_heads": 4, "num_key_value_heads": 2}


def row(found: Plan, name: str) -> Any:
    return next(row for row in found.rows if row.name == name)
