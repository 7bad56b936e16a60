"""Models that several processes share: two of them, on two cores or on two GPUs."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import DEVICE, EXPERTS, SIZES, load, settings
from transformers import AutoModelForCausalLM, GptOssConfig, LlamaConfig, MixtralConfig, Qwen3MoeConfig

HERE = Path(__file__).parent
MOE = {**SIZES, **EXPERTS, "intermediate_size": 128}
MODELS = {
    "llama": lambda: LlamaConfig(**SIZES, intermediate_size=128, attention_bias=True, mlp_bias=True),
    "qwen3_moe": lambda: Qwen3MoeConfig(**MOE, moe_intermediate_size=64, num_experts=6, mlp_only_layers=[0]),
    "mixtral": lambda: MixtralConfig(**MOE, num_local_experts=4),
    "gpt_oss": lambda: GptOssConfig(**MOE, num_local_experts=4, sliding_window=16),
    "odd": lambda: LlamaConfig(**SIZES, intermediate_size=96),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shared")
    for number, (name, config) in enumerate(MODELS.items()):
        torch.manual_seed(number)
        model = AutoModelForCausalLM.from_config(config(), dtype=torch.bfloat16)
        for key, parameter in model.named_parameters():
            scale = 0.3 if key.endswith("bias") or parameter.ndim == 1 else 0.2
            parameter.data = torch.randn(parameter.shape).mul_(scale).to(torch.bfloat16)
            if "norm" in key:
                parameter.data += 1
        model.save_pretrained(root / name)
    for name in ("llama", "qwen3_moe"):
        load(root / name, settings()).save_pretrained(root / f"{name}-native")
    return root


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def spread(root: Path, *arguments: str) -> list[str]:
    """Run two processes of ``spread.py``, and return what each wrote."""
    common = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    started = [
        subprocess.Popen(
            [sys.executable, str(HERE / "spread.py"), str(root), *arguments],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        written = [process.communicate(timeout=240)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    for process, text in zip(started, written, strict=True):
        assert process.returncode == 0, text[-6000:]
    return written


@pytest.mark.skipif(
    DEVICE != "cpu" and torch.cuda.device_count() < 2, reason="a device is needed for each process"
)
def test_two_processes_share_a_model(models: Path) -> None:
    written, _ = spread(models, "reference", "float32")
    print(written)
    assert written.count("parts cut") == 7
    # K of 96 over two processes cuts a block; saving, dequantising, refitting and values take whole weights.
    assert "mlp.down_proj.weight cannot be sharded along k" in written
    if importlib.util.find_spec("peft") is not None:
        assert "adapter: 28 trained" in written
    assert "refused: the values of model.layers.0.self_attn.o_proj.weight cannot be read" in written
    assert written.count("refused: ") == 5
