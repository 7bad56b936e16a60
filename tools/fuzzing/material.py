"""The tiny checkpoints that inputs are made from, and that runs are killed on; made from fixed random numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mxfp4_core import quantize
from mxfp4_core.config import Mxfp4Config
from mxfp4_core.jobs import convert_checkpoint, quantize_checkpoint

SHARD_BYTES = 3000
"""Small enough for several files."""

DIALECTS = (
    "mxfp4-core", "compressed-tensors", "quark", "gpt-oss", "deepseek-v4", "auto-round", "modelopt", "torchao",
    "torchao-plain", "gpt-oss-original", "gguf",
)  # fmt: skip
OTHERS = ("fp8", "nvfp4", "fp-quant")
"""Quantised in other ways that are read."""

MIXED = ("mixed-native", "mixed-compressed-tensors")
"""Weights of several formats in one folder."""

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 1,
    "hidden_size": 64,
    "num_attention_heads": 2,
    "rope_scaling": {"factor": 2.0, "limits": [0.0, 1e30]},
}


def dense() -> dict[str, torch.Tensor]:
    """Return a decoder layer, an embedding and a head, in bfloat16."""
    generator = torch.Generator().manual_seed(7)
    shapes = {"lm_head.weight": (32, 64), "model.embed_tokens.weight": (32, 64), "model.norm.weight": (64,)}
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.gate_proj"):
        shapes[f"model.layers.0.{name}.weight"] = (32, 64)
    return {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}


def source(
    folder: Path, tensors: Mapping[str, torch.Tensor] | None = None, model_type: str = "llama"
) -> Path:
    """Write a model in high precision, with other files beside it."""
    folder.mkdir(parents=True)
    save_file(dict(tensors or dense()), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**LLAMA, "model_type": model_type}))
    (folder / "tokenizer.json").write_text('{"words": ["a", "b"]}')
    (folder / "2_Dense").mkdir()
    save_file({"linear.weight": torch.ones(2, 4)}, folder / "2_Dense" / "model.safetensors")
    return folder


def experts() -> dict[str, torch.Tensor]:
    """Return stacked experts as gpt-oss has them, with K before N."""
    generator = torch.Generator().manual_seed(3)
    sizes = {"gate_up_proj": (2, 32, 64), "gate_up_proj_bias": (2, 64), "down_proj": (2, 32, 32)}
    sizes |= {"down_proj_bias": (2, 32)}
    prefix = "model.layers.0.mlp.experts."
    return {
        f"{prefix}{name}": torch.randn(size, generator=generator).bfloat16() for name, size in sizes.items()
    }


def quantised(folder: Path) -> dict[str, Path]:
    """Write one checkpoint of each dialect, and return them by name, with ``plain`` for the one they come from."""
    plain, stacked = source(folder / "plain"), source(folder / "stacked", experts(), "gpt_oss")
    found = {"plain": plain, "mxfp4-core": _native(plain, folder / "mxfp4-core", max_shard_bytes=SHARD_BYTES)}
    native = {
        "compressed-tensors": found["mxfp4-core"],
        "quark": found["mxfp4-core"],
        "gpt-oss": _native(stacked, folder / "native-stacked"),
        "deepseek-v4": _native(
            source(folder / "v4", None, "deepseek_v4"), folder / "native-v4", activation="fp8"
        ),
    }
    native |= dict.fromkeys(
        ("auto-round", "modelopt", "torchao", "torchao-plain", "gguf"), found["mxfp4-core"]
    )
    native |= {
        "gpt-oss-original": native["gpt-oss"],
        "fp8": found["mxfp4-core"],
        "nvfp4": found["mxfp4-core"],
    }
    for dialect, path in native.items():
        mode = "mxfp4" if dialect in ("modelopt", "torchao", "torchao-plain") else None
        convert_checkpoint(path, folder / dialect, dialect, activation=mode)
        found[dialect] = folder / dialect
    found["fp-quant"] = _fp_quant(folder / "fp-quant")
    formats = {"q_proj": "mxfp8", "k_proj": "mxfp8", "v_proj": "mxfp8"}
    overrides = [{"pattern": name, "format": format} for name, format in formats.items()]
    found["mixed-native"] = _native(plain, folder / "mixed-native", overrides=overrides)
    found["mixed-compressed-tensors"] = folder / "mixed-compressed-tensors"
    convert_checkpoint(found["mixed-native"], found["mixed-compressed-tensors"], "compressed-tensors")
    return found


def _fp_quant(folder: Path) -> Path:
    """Write what FP-Quant writes of one layer."""
    folder.mkdir()
    module, made = "model.layers.0.mlp.up_proj", quantize(dense()["model.layers.0.mlp.up_proj.weight"])
    tensors = {f"{module}.qweight": made.codes, f"{module}.scales": made.scales}
    tensors |= {f"{module}.{side}_global_scale": torch.tensor([3.0]) for side in ("weight", "act")}
    tensors |= {
        f"{module}.{way}_hadamard_matrix": torch.eye(32).bfloat16() for way in ("forward", "backward")
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    described = {"quant_method": "fp_quant", "forward_dtype": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps({**LLAMA, "quantization_config": described}))
    return folder


def smallest(folder: Path) -> dict[str, Path]:
    """Write results with every kind of file, as small as they can be, by dialect."""
    plain = folder / "few"
    weight = torch.arange(1024).reshape(32, 32).bfloat16()
    source(plain, {"a.up_proj.weight": weight, "a.norm.weight": weight[0].clone()})
    (plain / "config.json").write_text("{}")
    found = {"mxfp4-core": _native(plain, folder / "few-native", max_shard_bytes=64)}
    for dialect, mode in {"compressed-tensors": None, "quark": None, "modelslim": "mxfp4"}.items():
        target = folder / f"few-{dialect}"
        convert_checkpoint(found["mxfp4-core"], target, dialect, activation=mode, max_shard_bytes=64)
        found[dialect] = folder / f"few-{dialect}"
    return found


def _native(plain: Path, destination: Path, *, max_shard_bytes: int = 10**9, **settings: Any) -> Path:
    config = Mxfp4Config(dialect="mxfp4-core", **settings)
    quantize_checkpoint(plain, destination, config, max_shard_bytes=max_shard_bytes, models="none")
    return destination


__all__ = ["DIALECTS", "OTHERS", "SHARD_BYTES", "quantised", "smallest", "source"]
