"""A quantised folder as a stream for engines: per-expert names, both parts, whatever dialect it was written in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from loader_layers import weights

from mxfp4_core import Mxfp4Config, quantize
from mxfp4_core.errors import DialectError
from mxfp4_core.jobs import quantize_checkpoint
from mxfp4_core.loader import StoredTensors

Save = Callable[..., Path]
LAYER = "model.layers.0."
E, H, I = 3, 64, 32  # noqa: E741 - experts, hidden, intermediate


def model() -> dict[str, torch.Tensor]:
    experts = {
        f"{LAYER}mlp.experts.{index}.{part}.weight": weights(*shape, seed=7 * index + place)
        for index in range(E)
        for place, (part, shape) in enumerate(
            {"gate_proj": (I, H), "up_proj": (I, H), "down_proj": (H, I)}.items()
        )
    }
    return {
        "model.embed_tokens.weight": weights(16, H),
        f"{LAYER}self_attn.q_proj.weight": weights(H, H, seed=1),
        f"{LAYER}mlp.gate.weight": weights(E, H, seed=2),
        f"{LAYER}input_layernorm.weight": weights(H, seed=3),
        **experts,
    }


def kept(name: str) -> bool:
    return any(part in name for part in ("embed", "norm", "gate.weight"))


def stream_of(source: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what a stream must bring."""
    found = {}
    for name, tensor in source.items():
        made = None if kept(name) else quantize(tensor)
        found |= {name: tensor} if made is None else {name: made.codes, f"{name}_scale": made.scales}
    return found


@pytest.mark.parametrize("dialect", ["mxfp4-core", "compressed-tensors"])
def test_each_dialect_gives_the_same_stream(save: Save, dialect: str) -> None:
    source = save(model(), config={"model_type": "qwen3_moe", "num_experts": E})
    target = source.parent / dialect
    quantize_checkpoint(source, target, Mxfp4Config.from_dict({"dialect": dialect}))
    stored = StoredTensors.open(target)
    assert stored is not None and stored.dialect.name == dialect
    found, want = dict(stored), stream_of(model())
    assert found.keys() == want.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in want.items())
    assert stored.headers == {name: tuple(tensor.shape) for name, tensor in model().items()}


@pytest.mark.parametrize("alternate", [False, True])
def test_stacks_are_taken_apart(save: Save, alternate: bool) -> None:
    """A fused stack comes as gate and up of each expert, also where their rows alternate."""
    names = {f"{LAYER}mlp.experts.gate_up_proj": (E, 2 * I, H), f"{LAYER}mlp.experts.down_proj": (E, H, I)}
    made = {name: quantize(weights(*shape)) for name, shape in names.items()}
    stored_as = {name: each.codes for name, each in made.items()}
    stored_as |= {f"{name}_scale": each.scales for name, each in made.items()}
    described = {"quant_method": "mxfp4-core", "shapes": {}, "transposed": []}
    if alternate:
        described["interleaved"] = [f"{LAYER}mlp.experts.gate_up_proj"]
    folder = save(stored_as, config={"model_type": "qwen3_moe", "quantization_config": described})
    stored = StoredTensors.open(folder)
    assert stored is not None
    found = dict(stored)
    assert len(found) == E * 3 * 2
    both = made[f"{LAYER}mlp.experts.gate_up_proj"]
    for expert in range(E):
        prefix = f"{LAYER}mlp.experts.{expert}"
        for place, part in enumerate(("gate_proj", "up_proj")):
            rows = slice(place, None, 2) if alternate else slice(place * I, (place + 1) * I)
            assert torch.equal(found[f"{prefix}.{part}.weight"], both.codes[expert, rows])
            assert torch.equal(found[f"{prefix}.{part}.weight_scale"], both.scales[expert, rows])
        down = made[f"{LAYER}mlp.experts.down_proj"]
        assert torch.equal(found[f"{prefix}.down_proj.weight"], down.codes[expert])


def test_stacks_come_whole_and_turned_where_an_engine_takes_them_so(save: Save) -> None:
    stem = f"{LAYER}mlp.experts."
    made = {"gate_up_proj": quantize(weights(E, 2 * I, H)), "down_proj": quantize(weights(E, H, I))}
    tensors = {f"{stem}{name}": each.codes for name, each in made.items()}
    tensors |= {f"{stem}{name}_scale": each.scales for name, each in made.items()}
    tensors["model.norm.weight"] = weights(H)
    described = {"quant_method": "mxfp4-core", "shapes": {}, "transposed": []}
    stored = StoredTensors.open(
        save(tensors, config={"model_type": "gpt_oss", "quantization_config": described})
    )
    assert stored is not None
    found = dict(stored.stacks())
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor if name == "model.norm.weight" else tensor.transpose(1, 2))


def test_high_precision_is_no_stored_checkpoint(save: Save) -> None:
    assert StoredTensors.open(save(model(), config={"model_type": "qwen3_moe"})) is None


def test_codes_without_scales_are_refused_before_a_tensor_is_read(save: Save) -> None:
    made = quantize(weights(H, H))
    name = f"{LAYER}self_attn.q_proj.weight"
    other = quantize(weights(H, H, seed=1))
    tensors = {
        name: made.codes,
        f"{LAYER}self_attn.k_proj.weight": other.codes,
        f"{LAYER}self_attn.k_proj.weight_scale": other.scales,
    }
    folder = save(tensors, config={"quantization_config": {"quant_method": "mxfp4-core"}})
    with pytest.raises(DialectError, match=r"q_proj.weight' without .*q_proj.weight_scale"):
        StoredTensors.open(folder)
