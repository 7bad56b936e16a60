"""Models that tests of engines make for themselves: other weights, other sizes, other families, saved in dialects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kit
import torch
from safetensors.torch import load_file, save_file

from mxfp4_core import Mxfp4Config
from mxfp4_core.jobs import quantize_checkpoint


def stored(source: Path, folder: Path, dialect: str, **settings: Any) -> None:
    """Save a model in MXFP4 in some dialect."""
    config = Mxfp4Config.from_dict({"dialect": dialect, **settings})
    quantize_checkpoint(source, folder, config, models="none")


def stored_experts(source: Path, folder: Path) -> None:
    """Save a gpt-oss as its checkpoints are: the experts in MXFP4, and nothing else."""
    stored(source, folder, "gpt-oss", targets=["experts"])


def shifted(source: Path, folder: Path) -> None:
    """Save other weights for a model, as a step of training makes them."""
    folder.mkdir(parents=True)
    made = torch.Generator().manual_seed(1)
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
            continue
        changed = {
            name: (each + torch.randn(each.shape, generator=made).to(each.dtype) * 0.02)
            if "_proj" in name
            else each
            for name, each in load_file(file).items()
        }
        save_file(changed, folder / file.name, metadata={"format": "pt"})


def other_experts(source: Path, folder: Path) -> None:
    """Save a gpt-oss with other experts and biases."""
    gpt_oss(folder, seed=1)
    (file,) = folder.glob("*.safetensors")
    other = load_file(file)
    changed = {
        name: other[name] if ".experts." in name else each for name, each in kit.tensors(source).items()
    }
    save_file(changed, file, metadata={"format": "pt"})


def without(source: Path, folder: Path, name: str) -> None:
    """Save a model without one of its tensors."""
    folder.mkdir(parents=True)
    for file in source.iterdir():
        if file.suffix == ".safetensors":
            left = {each: tensor for each, tensor in load_file(file).items() if each != name}
            save_file(left, folder / file.name, metadata={"format": "pt"})
        elif file.name == "config.json":
            (folder / file.name).write_bytes(file.read_bytes())


def untied(source: Path, folder: Path) -> None:
    """Save a model with an output head of its own: SGLang's Qwen3-MoE leaves a shared one out, and says nothing."""
    folder.mkdir(parents=True)
    tensors = kit.tensors(source)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))


def random(folder: Path, **sizes: Any) -> None:
    """Save a Qwen3 or, with ``num_experts``, a Qwen3-MoE of these sizes with weights made at random."""
    from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig

    common = {"head_dim": 32, "vocab_size": 512, "max_position_embeddings": 256, "tie_word_embeddings": True}
    kind: Any = Qwen3MoeConfig if "num_experts" in sizes else Qwen3Config
    config = kind(**{**common, "num_attention_heads": 4, "num_key_value_heads": 2, **sizes})
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


def gpt_oss(folder: Path, seed: int = 0) -> None:
    """Save a small gpt-oss with weights and biases made at random: stacks, gate and up in turn, attention sinks."""
    from transformers import AutoModelForCausalLM, GptOssConfig

    sizes = {
        "hidden_size": 128,
        "intermediate_size": 128,
        "vocab_size": 512,
        "max_position_embeddings": 131072,
    }
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "num_hidden_layers": 2}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 32}
    rope = {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0}
    rope |= {"truncate": False, "original_max_position_embeddings": 4096}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = GptOssConfig(
            **sizes, **heads, **experts, rope_parameters=rope, pad_token_id=0, eos_token_id=1
        )
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        for name, parameter in model.named_parameters():
            if "bias" in name:
                parameter.data.normal_(0, 0.2)
    model.save_pretrained(folder)


def adapter(source: Path, folder: Path) -> None:
    """Save an adapter of LoRA of rank 8 and a factor of 1, made at random, on projections that engines fuse and not."""
    folder.mkdir(parents=True)
    made, low = torch.Generator().manual_seed(2), {}
    names = ("q_proj", "v_proj", "down_proj")
    for name, each in kit.tensors(source).items():
        if name.removesuffix(".weight").rpartition(".")[2] in names:
            stem = kit.LORA + name.removesuffix(".weight")
            for side, shape in (("A", (8, each.shape[1])), ("B", (each.shape[0], 8))):
                values = torch.randn(shape, generator=made) * 0.1
                low[f"{stem}.lora_{side}.weight"] = values.to(torch.bfloat16)
    save_file(low, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    said = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": names, "task_type": "CAUSAL_LM"}
    said |= {"base_model_name_or_path": str(source), "bias": "none", "lora_dropout": 0.0}
    (folder / "adapter_config.json").write_text(json.dumps(said))
