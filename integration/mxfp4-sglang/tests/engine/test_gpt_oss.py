"""Saved folders of gpt-oss in SGLang: its own class hands whole stacks to its real experts, with biases, under TP.

SGLang's attention for a CPU has no sinks, so its engine cannot run gpt-oss there; the loader of the class and the
experts can.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from sgl_layers import parts_of, weights
from sglang.srt.layers.moe.fused_moe_triton import layer as moe_layer
from sglang.srt.layers.moe.topk import StandardTopKOutput
from sglang.srt.layers.quantization import QUANTIZATION_METHODS
from sglang.srt.models import gpt_oss

from mxfp4_core import Mxfp4Config, quantize
from mxfp4_core.jobs import quantize_checkpoint
from mxfp4_sglang import hooks

E, H, I = 4, 64, 128  # noqa: E741 - experts, hidden, intermediate
NAME = "model.layers.0.mlp.experts"
ALPHA, LIMIT = 1.702, 7.0


def source() -> dict[str, torch.Tensor]:
    """Return the experts of one layer as the library has them: K before N, gate and up in turn."""
    return {
        "gate_up_proj": weights(E, H, 2 * I, seed=1),
        "gate_up_proj_bias": weights(E, 2 * I, seed=2),
        "down_proj": weights(E, I, H, seed=3),
        "down_proj_bias": weights(E, H, seed=4),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bf16").mkdir()
    (tmp_path / "bf16" / "config.json").write_text(
        json.dumps({"model_type": "gpt_oss", "num_local_experts": E, "num_hidden_layers": 1})
    )
    save_file(
        {f"{NAME}.{name}": each for name, each in source().items()}, tmp_path / "bf16" / "model.safetensors"
    )
    config = Mxfp4Config.from_dict({"dialect": "gpt-oss", "targets": ["experts"]})
    quantize_checkpoint(tmp_path / "bf16", tmp_path / "stored", config, models="none")
    return tmp_path / "stored"


def loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the experts of one rank, loaded by SGLang's class of the model."""
    kind = QUANTIZATION_METHODS["mxfp4-core"]
    said = json.loads((folder / "config.json").read_text())["quantization_config"]
    layer = moe_layer.FusedMoE(
        **{"num_experts": E, "hidden_size": H, "intermediate_size": I, "layer_id": 0, "top_k": 2},
        **{"with_bias": True, "gemm1_alpha": ALPHA, "gemm1_clamp_limit": LIMIT},
        use_weight_loader_fused=True,
        quant_config=kind.from_config(said),
        prefix=NAME,
    )
    monkeypatch.setattr(gpt_oss, "get_parallel", moe_layer.get_parallel)
    model = object.__new__(gpt_oss.GptOssForCausalLM)
    torch.nn.Module.__init__(model)
    model.config = SimpleNamespace(num_hidden_layers=1)
    model.quant_config = layer.quant_config
    model.model = torch.nn.Module()
    model.model.start_layer, model.model.end_layer = 0, 1
    model.model.layers = torch.nn.ModuleList([torch.nn.Module()])
    model.model.layers[0].mlp = torch.nn.Module()
    model.model.layers[0].mlp.experts = layer
    asked = SimpleNamespace(quantization="mxfp4-core")
    files = SimpleNamespace(model_config=asked, model_or_path=str(folder), prefix="", revision=None)
    model.load_weights(hooks.weights(lambda *_: iter(()), None, files))
    layer.quant_method.process_weights_after_loading(layer)
    return layer


@pytest.mark.parametrize("ranks", [1, 2])
def test_each_rank_holds_its_slice_and_the_results_add_up(
    parallel: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    given, total = source(), torch.zeros(6, H, dtype=torch.float32)
    made = {
        name: quantize(given[name].transpose(-1, -2).contiguous()) for name in ("gate_up_proj", "down_proj")
    }
    x = weights(6, H, seed=5) * 20
    scores = torch.randn(6, E, generator=torch.Generator().manual_seed(6), dtype=torch.float32)
    chosen = scores.softmax(-1).topk(2)
    routes = StandardTopKOutput(chosen.values, chosen.indices.int(), scores)
    for rank in range(ranks):
        parallel(1, ranks, rank)
        layer = loaded(folder, monkeypatch)
        for matrix, name, axis in (("gate_up", "gate_up_proj", 1), ("down", "down_proj", 2)):
            for part, whole in made[name].parts.items():
                assert torch.equal(parts_of(layer, matrix)[part], whole.chunk(ranks, axis)[rank])
        total += layer(x, routes).float()

    wide = {name: each.dequantize(torch.float32) for name, each in made.items()}
    wanted = torch.zeros_like(total)
    for token, (ids, shares) in enumerate(zip(chosen.indices.tolist(), chosen.values, strict=True)):
        for expert, share in zip(ids, shares, strict=True):
            both = (
                wide["gate_up_proj"][expert] @ x[token].float() + given["gate_up_proj_bias"][expert].float()
            )
            gate, up = both[0::2].clamp(max=LIMIT), both[1::2].clamp(-LIMIT, LIMIT)
            inner = (up + 1) * gate * torch.sigmoid(ALPHA * gate)
            wanted[token] += share * (
                wide["down_proj"][expert] @ inner + given["down_proj_bias"][expert].float()
            )
    assert bool((total - wanted).abs().max() <= 2**-6 * wanted.abs().max())
