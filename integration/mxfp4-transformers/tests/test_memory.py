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

from mxfp4_core import Mxfp4Config
from mxfp4_core.jobs import quantize_checkpoint

MIB = 1 << 20

HIDDEN, INNER, NUMBER = 512, 1024, 24


def write(folder: Path) -> None:
    """Write a model whose experts are nearly all of it."""
    hidden, inner, experts, layers = HIDDEN, INNER, NUMBER, 2
    sizes = {**SIZES, "hidden_size": hidden, "num_hidden_layers": layers}
    config = Qwen3MoeConfig(
        **sizes, **EXPERTS, moe_intermediate_size=inner, num_experts=experts, dtype="bfloat16"
    )
    config.architectures = ["Qwen3MoeForCausalLM"]
    config.save_pretrained(folder)
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
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def rise(warm_up: Path, folder: Path, *more: Path) -> dict[str, int]:
    """Load both in a process of its own; return how far the second one's memory rose, and what it is."""
    command = [sys.executable, Path(__file__).parent / "measure_load.py", warm_up, folder, *more]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    measured: dict[str, int] = json.loads(run.stdout.splitlines()[-1])
    return measured


# What Python and the allocator add; a third of a stack in high precision, so that one would be noticed.
ALLOWANCE = 8 * MIB


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the measure is Linux's")
def test_a_stack_of_experts_is_never_whole_in_high_precision(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    write(tmp_path)
    largest, stack = 2 * INNER * HIDDEN, 2 * 2 * INNER * HIDDEN * NUMBER
    assert stack > 5 * ALLOWANCE
    measured = rise(checkpoints["llama"], tmp_path)
    assert measured["rise"] < measured["result"] + largest + ALLOWANCE


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the measure is Linux's")
@pytest.mark.parametrize("dialect", ["mxfp4-core", "compressed-tensors"])
def test_a_quantised_folder_takes_no_more_than_one_that_is_quantised_now(
    checkpoints: dict[str, Path], tmp_path: Path, dialect: str
) -> None:
    write(tmp_path / "bf16")
    small, large = tmp_path / "small", tmp_path / "large"
    for source, target in ((checkpoints["qwen3_moe"], small), (tmp_path / "bf16", large)):
        quantize_checkpoint(source, target, Mxfp4Config(dialect=dialect))
    measured = rise(small, large)
    assert measured["rise"] < measured["result"] + 2 * INNER * HIDDEN + ALLOWANCE


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the measure is Linux's")
def test_what_lies_on_the_disk_takes_no_memory(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    write(tmp_path)
    measured = rise(checkpoints["qwen3_moe"], tmp_path, tmp_path / "offload")
    assert measured["result"] > 4 * ALLOWANCE
    # One tensor of the checkpoint, and in the call one expert of each matrix, widened to float32.
    assert measured["rise"] < 3 * 2 * INNER * HIDDEN * 4 + ALLOWANCE
