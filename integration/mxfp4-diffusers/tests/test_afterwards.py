"""Other ways into diffusers, and what is done with a model afterwards: one file, adapters, compile, offload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import components
import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from mxfp4_core.errors import BackendError, ConfigError, LoadError
from mxfp4_diffusers import Mxfp4Config


def single(checkpoint: Path, target: Path, *, without: str = "") -> Path:
    """Write a checkpoint into one file, as ComfyUI and others share them, and return it."""
    tensors = {
        name: each for file in checkpoint.glob("*.safetensors") for name, each in load_file(file).items()
    }
    tensors.pop(without, None)
    save_file(tensors, target / "one.safetensors")
    return target / "one.safetensors"


def from_file(name: str, file: Path, config: Path, **more: Any) -> Any:
    kind = type(components.BUILDERS[name]())
    return kind.from_single_file(
        str(file), config=str(config), dtype=torch.bfloat16, quantization_config=Mxfp4Config(), **more
    )


@pytest.mark.parametrize("name", components.NAMES)
def test_a_single_file_gives_the_bytes_of_the_folder(
    name: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    model = from_file(name, single(checkpoints[name], tmp_path), checkpoints[name])
    assert components.same(model, components.load(checkpoints[name], Mxfp4Config()))
    model.save_pretrained(tmp_path / "saved")
    assert components.same(model, components.load(tmp_path / "saved"))


def test_a_single_file_that_lacks_a_tensor_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    lost = "transformer_blocks.1.img_mlp.net.2.bias"
    file = single(checkpoints["qwen_image"], tmp_path, without=lost)
    with pytest.raises(LoadError, match=lost):
        from_file("qwen_image", file, checkpoints["qwen_image"])


def test_a_single_file_of_codes_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    components.load(checkpoints["flux"], Mxfp4Config()).save_pretrained(tmp_path / "saved")
    file = single(tmp_path / "saved", tmp_path)
    kind = diffusers.FluxTransformer2DModel
    config = kind.load_config(str(tmp_path / "saved"))["quantization_config"]
    with pytest.raises(ConfigError, match="from_pretrained"):
        kind.from_single_file(
            str(file), config=str(checkpoints["flux"]), quantization_config=Mxfp4Config(**config)
        )


def test_an_adapter_is_trained_and_loaded_again(checkpoints: dict[str, Path]) -> None:
    peft = pytest.importorskip("peft")
    model = components.load(checkpoints["wan"], Mxfp4Config())
    plain = components.run(model)
    torch.manual_seed(0)
    model.add_adapter(
        peft.LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights="gaussian")
    )
    assert torch.equal(components.run(model), plain)  # the second factor begins with zeros
    trained = [each for each in model.parameters() if each.requires_grad]
    assert len(trained) == 16  # two factors for each of two linears in two attentions of two blocks
    optimizer = torch.optim.Adam(trained, lr=0.05)
    for _ in range(2):
        inputs = torch.ones(1, 4, 2, 8, 8, dtype=torch.bfloat16), torch.tensor([3]), torch.ones(1, 5, 32)
        loss = model(inputs[0], inputs[1], inputs[2].bfloat16()).sample.float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    found = components.run(model)
    assert not torch.equal(found, plain)

    again = components.load(checkpoints["wan"], Mxfp4Config())
    again.load_lora_adapter(peft.utils.get_peft_model_state_dict(model), prefix=None)
    assert torch.equal(components.run(again), found)
    again.disable_lora()
    assert torch.equal(components.run(again), plain)


def test_a_model_is_compiled_as_one_graph(checkpoints: dict[str, Path]) -> None:
    model = components.load(checkpoints["flux"], Mxfp4Config())
    plain = components.run(model)
    model.forward = torch.compile(model.forward, fullgraph=True, backend="aot_eager")
    assert torch.equal(components.run(model), plain)


def test_groups_of_layers_may_be_offloaded(checkpoints: dict[str, Path]) -> None:
    model = components.load(checkpoints["flux"], Mxfp4Config())
    plain = components.run(model)
    where = torch.device("cpu")
    model.enable_group_offload(onload_device=where, offload_device=where, offload_type="leaf_level")
    assert torch.equal(components.run(model), plain)


def test_casting_what_is_quantised_is_refused_aloud(checkpoints: dict[str, Path]) -> None:
    model = components.load(checkpoints["flux"], Mxfp4Config())
    with pytest.raises(BackendError, match="not prepared"):
        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
        components.run(model)
