"""The memory that a load takes: what it keeps, and one tensor of the checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import EXPERTS, SIZES
from transformers import Qwen3MoeConfig

MIB = 1 << 20


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the measure is Linux's")
def test_a_stack_of_experts_is_never_whole_in_high_precision(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    hidden, inner, experts, layers = 512, 1024, 24, 2
    sizes = {**SIZES, "hidden_size": hidden, "num_hidden_layers": layers}
    config = Qwen3MoeConfig(
        **sizes, **EXPERTS, moe_intermediate_size=inner, num_experts=experts, dtype="bfloat16"
    )
    config.architectures = ["Qwen3MoeForCausalLM"]
    config.save_pretrained(tmp_path)
    small = {"embed_tokens.weight": (128, hidden), "norm.weight": (hidden,)}
    for layer in range(layers):
        head = f"layers.{layer}"
        small |= {f"{head}.{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
        small |= {f"{head}.self_attn.{name}_norm.weight": (32,) for name in "qk"}
        rows = {"q": (128, hidden), "k": (64, hidden), "v": (64, hidden), "o": (hidden, 128)}
        small |= {f"{head}.self_attn.{name}_proj.weight": shape for name, shape in rows.items()}
        small[f"{head}.mlp.gate.weight"] = (experts, hidden)
        for expert in range(experts):
            small |= {
                f"{head}.mlp.experts.{expert}.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")
            }
            small[f"{head}.mlp.experts.{expert}.down_proj.weight"] = (hidden, inner)
    tensors = {f"model.{name}": torch.ones(shape, dtype=torch.bfloat16) for name, shape in small.items()}
    tensors["lm_head.weight"] = torch.ones(128, hidden, dtype=torch.bfloat16)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    largest, stack = 2 * inner * hidden, 2 * 2 * inner * hidden * experts
    del tensors

    command = [sys.executable, Path(__file__).parent / "measure_load.py", checkpoints["llama"], tmp_path]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    measured = json.loads(run.stdout.splitlines()[-1])

    allowance = 8 * MIB  # what Python and the allocator add; a third of a stack, so that one would be noticed
    assert stack > 5 * allowance
    assert measured["rise"] < measured["result"] + largest + allowance
