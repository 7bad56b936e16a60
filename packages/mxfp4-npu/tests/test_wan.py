"""A small transformer of Wan, diffusers' own class, on the emulated device: online, and an export with its repack."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from npu_emulated import EmulatedNpu, emulated, registered
from safetensors.torch import save_file
from torch import Tensor, nn

from mxfp4_core import Mxfp4Config, dialects, quantize
from mxfp4_core.arithmetic import get_format
from mxfp4_core.backend import numerics_for
from mxfp4_core.checkpoint import open_checkpoint
from mxfp4_core.jobs import convert_checkpoint
from mxfp4_core.loader import LoadSession
from mxfp4_core.modules import Mxfp4Linear, Mxfp4Module, quantize_
from mxfp4_core.testing import judge
from mxfp4_npu import names

# Before torch_npu is emulated: accelerate, which it imports, would take the stand-in for the real one.
WanTransformer3DModel = pytest.importorskip("diffusers").WanTransformer3DModel

FORMATS = ("mxfp4", "mxfp4-dual")


@pytest.fixture(scope="module", autouse=True)
def in_place() -> Iterator[None]:
    with emulated(), registered():
        yield


def transformer() -> nn.Module:
    torch.manual_seed(0)
    sizes = {
        "num_attention_heads": 4,
        "attention_head_dim": 128,
        "text_dim": 64,
        "freq_dim": 64,
        "ffn_dim": 1024,
    }
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2), in_channels=4, out_channels=4, num_layers=2, rope_max_seq_len=32, **sizes
    )
    return model.to(torch.bfloat16).eval()


def run(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x, text = (torch.randn(shape, generator=generator).bfloat16() for shape in ((1, 4, 2, 8, 8), (1, 5, 64)))
    with torch.no_grad():
        return model(x, torch.tensor([3]), text).sample


def check_layers(model: nn.Module) -> int:
    """Hold what each MXFP4 layer computes in a run of the model against the judge; return how many there are.

    Whole models cannot be compared: sums in another order move 4-bit activations of the next layer.
    """
    seen: list[tuple[Mxfp4Linear, Tensor, Tensor]] = []
    layers = [module for module in model.modules() if isinstance(module, Mxfp4Linear)]
    for layer in layers:
        layer.register_forward_hook(lambda module, given, out: seen.append((module, given[0], out)))
    assert torch.isfinite(run(model)).all()
    for layer, x, out in seen:
        assert layer.backend is not None
        numerics, bias = numerics_for(layer.backend, layer.problem), layer.state_dict().get("bias")
        answer = judge.linear(x.flatten(0, -2), layer.canonical("weight"), bias, numerics)
        answer.check(out.flatten(0, -2))
    assert len(seen) == len(layers)
    return len(seen)


def config(format: str) -> Mxfp4Config:
    """What Wan2.2's recipes quantise: the linears of the blocks, nothing else."""
    settings = {"format": format, "targets": ["blocks"], "backend": "npu-emulated", "activation": "auto"}
    return Mxfp4Config.from_dict({**settings, "profile": "msmodelslim"})


def export(folder: Path, format: str, multipliers: dict[str, Tensor]) -> Path:
    """Write the weights as msmodelslim exports a smoothed model: behind wrappers, divided by the multipliers."""
    model, kind = transformer(), names.DUAL if format == "mxfp4-dual" else names.SINGLE
    stored: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        module = name.removesuffix(".weight")
        if module not in multipliers:
            owner, _, last = name.rpartition(".")
            stored[f"{owner}.linear.{last}" if owner in multipliers else name] = tensor
            continue
        made = quantize((tensor / multipliers[module]).bfloat16(), format=format, profile="msmodelslim")
        stored |= {f"{module}.linear.weight": made.codes, f"{module}.linear.weight_scale": made.scales}
        if kind == names.DUAL:
            stored[f"{module}.linear.weight_dual_scale"] = made.parts["level0"][..., None].contiguous()
        stored[f"{module}.div.mul_scale"] = multipliers[module]
    described = {
        name: kind if ".linear.weight" in name or ".div." in name else names.FLOAT for name in stored
    }
    folder.mkdir()
    half = len(stored) // 2  # several shards, as exports of the 14B model have
    for number, part in enumerate((list(stored)[:half], list(stored)[half:]), 1):
        file = f"quant_model_weights-{number:05}-of-00002.safetensors"
        save_file({name: stored[name].contiguous() for name in part}, folder / file)
    (folder / names.DESCRIPTION).write_text(json.dumps(described))
    (folder / "config.json").write_text(json.dumps({"_class_name": "WanTransformer3DModel"}))
    return folder


def loaded(folder: Path) -> nn.Module:
    """Fill the linears of a model from a folder of any dialect, and everything else by name."""
    checkpoint, model = open_checkpoint(folder), transformer()
    found = dialects.read(checkpoint)
    assert found is not None
    for weight, entry in found[1].entries.items():
        path = weight.removesuffix(".weight")
        old, (n, k) = model.get_submodule(path), entry.shape
        made = Mxfp4Linear(
            n,
            k,
            bias=old.bias is not None,
            activation="mxfp4",
            format=entry.format,
            device="cpu",
            dtype=torch.bfloat16,
        )
        model.set_submodule(path, made)
    session = LoadSession(config("mxfp4"))
    for weight, target in session.bind(model, exact=True, backend=EmulatedNpu()).items():
        target.put({name: recipe.load(checkpoint) for name, recipe in found[1].entries[weight].parts.items()})
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name, recipe in found[1].tensors.items():
            state[name].copy_(recipe.load(checkpoint))
    session.close()
    return model


@pytest.mark.parametrize("format", FORMATS)
def test_online_the_blocks_compute_on_the_device(format: str) -> None:
    model = quantize_(transformer(), config(format)).model
    modules = [module for module in model.modules() if isinstance(module, Mxfp4Module)]
    assert {module.format.name for module in modules} == {format}
    assert check_layers(model) == len(modules) == 20


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_and_its_repack_are_one_model(format: str, tmp_path: Path) -> None:
    modules = transformer().named_modules()
    linears = {
        name: module for name, module in modules if isinstance(module, nn.Linear) and "blocks." in name
    }
    sizes = {path: module.in_features for path, module in linears.items()}
    generator = torch.Generator().manual_seed(2)
    multipliers = {path: torch.rand(size, generator=generator) + 0.5 for path, size in sizes.items()}
    folder = export(tmp_path / "export", format, multipliers)
    convert_checkpoint(folder, tmp_path / "repacked", "modelslim", max_shard_bytes=2 << 20)
    shards = list((tmp_path / "repacked").glob("*.safetensors"))
    assert len(shards) > 1
    first, second = (run(loaded(path)) for path in (folder, tmp_path / "repacked"))
    assert torch.equal(first, second)
    assert check_layers(loaded(folder)) == len(linears)


def test_multipliers_of_one_are_no_work(tmp_path: Path) -> None:
    """Whether there is anything to multiply by is seen once, when a layer is loaded."""
    ones = {"blocks.0.attn1.to_q": torch.ones(512), "blocks.0.attn1.to_k": torch.full((512,), 2.0)}
    model = loaded(export(tmp_path / "export", "mxfp4-dual", ones))
    packed = {path: model.get_submodule(path)._take("weight").tensors for path in ones}
    assert "multiplier" not in packed["blocks.0.attn1.to_q"] and "multiplier" in packed["blocks.0.attn1.to_k"]


def test_a_row_parallel_linear_has_its_part_of_the_multipliers() -> None:
    """Two ranks, each with half of K; whether a rank has anything to multiply by is decided for its own part."""
    n, k, name = 48, 1024, "mxfp4-dual+input_scale"
    generator = torch.Generator().manual_seed(3)
    weight = quantize(torch.randn(n, k, generator=generator).bfloat16(), format="mxfp4-dual")
    parts = {**weight.parts, "input_scale": torch.ones(k)}
    parts["input_scale"][: k // 2] = torch.rand(k // 2, generator=generator) + 0.5
    x = torch.randn(5, k, generator=generator).bfloat16()

    def rank(start: int, stop: int) -> Mxfp4Linear:
        module = Mxfp4Linear(n, stop - start, activation="mxfp4", format=name, device="meta")
        session = LoadSession(config("mxfp4"))
        (target,) = session.bind(module, exact=True, backend=EmulatedNpu(), tp=k // (stop - start)).values()
        each = {part.name: k // parts[part.name].shape[-1] for part in get_format(name).parts}
        target.put(
            {part: values[..., start // each[part] : stop // each[part]] for part, values in parts.items()}
        )
        session.close()
        return module

    halves = [rank(0, k // 2), rank(k // 2, k)]
    assert ["multiplier" in half._take("weight").tensors for half in halves] == [True, False]
    whole = rank(0, k)(x).float()
    found = halves[0](x[:, : k // 2].contiguous()).float() + halves[1](x[:, k // 2 :].contiguous()).float()
    assert torch.allclose(found, whole, atol=float(whole.abs().max()) * 2.0**-7)
