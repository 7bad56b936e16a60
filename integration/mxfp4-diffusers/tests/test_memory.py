"""The memory that a load takes beside the mapped files: the quantised weights, and one tensor."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import components
import diffusers
import pytest
import torch

MIB = 1 << 20
WIDTH, LAYERS = 768, 3


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the measure is Linux's")
def test_a_load_takes_what_it_keeps_and_one_tensor(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    sizes = {"num_attention_heads": WIDTH // 32, "ffn_dim": 4 * WIDTH, "num_layers": LAYERS}
    with torch.device("meta"):
        model = diffusers.WanTransformer3DModel(**{**components.WAN, **sizes})
    model = model.to_empty(device="cpu").to(torch.bfloat16)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.fill_(1)
    model.save_pretrained(tmp_path, max_shard_size="24MB")
    before = sum(tensor.nbytes for tensor in model.parameters())
    del model
    command = [sys.executable, Path(__file__).parent / "measure_load.py", checkpoints["wan"], tmp_path]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    measured = json.loads(run.stdout.splitlines()[-1])
    largest, allowance = 4 * WIDTH * WIDTH * 2, 8 * MIB
    assert measured["rise"] < measured["result"] + largest + allowance
    assert measured["result"] + largest + allowance < before / 2
