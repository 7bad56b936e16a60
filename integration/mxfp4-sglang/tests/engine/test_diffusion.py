"""Real transformers of SGLang's diffusion server, tiny, through its own loader: what is MXFP4, and what it computes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from sgl_layers import parts_of
from sglang.multimodal_gen.configs.models.dits.flux import FluxConfig
from sglang.multimodal_gen.configs.models.dits.qwenimage import QwenImageDitConfig
from sglang.multimodal_gen.configs.models.dits.wanvideo import WanVideoConfig
from sglang.multimodal_gen.configs.models.dits.zimage import ZImageDitConfig
from sglang.multimodal_gen.runtime import server_args
from sglang.multimodal_gen.runtime.distributed import parallel_state
from sglang.multimodal_gen.runtime.layers import layernorm
from sglang.multimodal_gen.runtime.layers.quantization import get_quantization_config
from sglang.multimodal_gen.runtime.loader import fsdp_load, transformer_load_utils
from sglang.multimodal_gen.runtime.loader.utils import initialize_model
from sglang.multimodal_gen.runtime.managers.forward_context import set_forward_context
from sglang.multimodal_gen.runtime.models.dits.flux_2 import Flux2Transformer2DModel
from sglang.multimodal_gen.runtime.models.dits.qwen_image import QwenImageTransformer2DModel
from sglang.multimodal_gen.runtime.models.dits.wanvideo import WanTransformer3DModel
from sglang.multimodal_gen.runtime.models.dits.zimage import ZImageTransformer2DModel
from sglang.multimodal_gen.runtime.platforms import plugins

from mxfp4_core import quantize
from mxfp4_core.errors import LoadError, PatternError
from mxfp4_sglang import diffusion

plugins.load_plugins()
plugins.apply_plugin_hooks()

HEADS = {"num_attention_heads": 2, "attention_head_dim": 64}
WAN = {
    **HEADS,
    "ffn_dim": 256,
    "num_layers": 2,
    "text_dim": 64,
    "freq_dim": 64,
    "in_channels": 4,
    "out_channels": 4,
}
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any], int]] = {
    "wan": (WanTransformer3DModel, WanVideoConfig, WAN, 21),
    "z-image": (
        ZImageTransformer2DModel,
        ZImageDitConfig,
        {
            "dim": 384, "num_layers": 2, "n_refiner_layers": 1, "num_attention_heads": 6, "n_kv_heads": 6,
            "in_channels": 16, "cap_feat_dim": 64, "axes_dims": [16, 24, 24], "axes_lens": [64, 32, 32],
            "all_patch_size": [2], "all_f_patch_size": [1],
        },
        16,
    ),
    "qwen-image": (
        QwenImageTransformer2DModel,
        QwenImageDitConfig,
        {
            **HEADS, "patch_size": 2, "in_channels": 64, "out_channels": 16, "num_layers": 2,
            "joint_attention_dim": 64, "axes_dims_rope": [16, 24, 24],
        },
        31,
    ),
    "flux.2": (
        Flux2Transformer2DModel,
        FluxConfig,
        {
            **HEADS, "patch_size": 1, "in_channels": 32, "out_channels": None, "num_layers": 1, "num_single_layers": 1,
            "joint_attention_dim": 64, "timestep_guidance_channels": 64, "axes_dims_rope": [16, 16, 16, 16],
            "mlp_ratio": 3.0, "rope_theta": 2000, "eps": 1e-6,
        },
        15,
    ),
}  # fmt: skip


class Settings(SimpleNamespace):
    """Stands for the arguments of the server: what is not said is None."""

    def __getattr__(self, name: str) -> None:
        return None


@pytest.fixture(autouse=True, scope="module")
def _process() -> Iterator[None]:
    """Make one process a server of one rank."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29711", RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    parallel_state.maybe_init_distributed_environment_and_model_parallel(tp_size=1, sp_size=1)
    sizes = dict.fromkeys(("kv_gather_degree", "tp_size", "sp_degree", "ulysses_degree", "ring_degree"), 1)
    server_args.set_global_server_args(
        Settings(attention_backend="torch_sdpa", disable_autocast=True, **sizes)
    )
    yield
    torch.distributed.destroy_process_group()


def named(kind: Any, stored: bool = False) -> Any:
    method = get_quantization_config("mxfp4-core")
    how = method.from_config({"quant_method": "mxfp4-core"}) if stored else method()
    how.packed_modules_mapping = getattr(kind, "packed_modules_mapping", {})
    return how


def settings_of(config: Any, sizes: dict[str, Any]) -> Any:
    made = config()
    made.update_model_arch(sizes)
    return made


def checkpoint(family: str, path: Path) -> dict[str, torch.Tensor]:
    """Write random weights under the names that the model itself has."""
    kind, config, sizes, _ = FAMILIES[family]
    given = {"config": settings_of(config, sizes), "hf_config": sizes, "quant_config": named(kind)}
    shapes = initialize_model(kind, given, torch.bfloat16, torch.device("meta")).state_dict()
    made = torch.Generator().manual_seed(1)
    tensors = {
        name: (torch.randn(each.shape, generator=made, dtype=torch.float32) * 0.05).to(each.dtype)
        for name, each in shapes.items()
    }
    save_file(tensors, path / "model.safetensors")
    return tensors


def load(family: str, path: Path, how: Any) -> Any:
    kind, config, sizes, _ = FAMILIES[family]
    given = {"config": settings_of(config, sizes), "hf_config": sizes, "quant_config": how}
    files = [str(path / "model.safetensors")]
    device, dtype = torch.device("cpu"), torch.bfloat16
    return fsdp_load.maybe_load_fsdp_model(
        kind, given, files, device, 1, 1, dtype, torch.float32, strict=False
    )


def held(model: Any) -> dict[str, Any]:
    return {name: each for name, each in model.named_modules() if "mxfp4" in dict(each.named_children())}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_each_linear_holds_the_bytes_of_its_weight(family: str, tmp_path: Path) -> None:
    source = checkpoint(family, tmp_path)
    model = load(family, tmp_path, named(FAMILIES[family][0]))
    layers = held(model)
    assert len(layers) == FAMILIES[family][3]
    for name, layer in layers.items():
        want = quantize(source[f"{name}.weight"])
        assert torch.equal(parts_of(layer)["codes"], want.codes)
        assert torch.equal(parts_of(layer)["scales"], want.scales)
        assert "weight" not in layer._parameters  # nothing in high precision is left
        assert layer.weight.shape == source[f"{name}.weight"].shape


def reference(path: Path, names: list[str]) -> Any:
    """Return diffusers' own Wan with the values that the codes of these layers stand for."""
    sizes = {**WAN, "patch_size": (1, 2, 2), "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads"}
    model = diffusers.WanTransformer3DModel(**sizes).to(torch.bfloat16)
    made = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=made, dtype=torch.float32) * 0.05)
    save_file(
        {name: each.contiguous() for name, each in model.state_dict().items()}, path / "model.safetensors"
    )
    for name, parameter in model.named_parameters():
        if any(name.endswith(f"{each}.weight") for each in names):
            parameter.data = quantize(parameter.data).dequantize(torch.bfloat16)
    return model


def test_wan_computes_what_diffusers_does_with_the_same_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2", "proj_out"]
    want = reference(tmp_path, names)
    model = load("wan", tmp_path, named(WanTransformer3DModel))
    # Its fused kernels for a CPU are in a package that is not to be had: take the operators that they fuse.
    monkeypatch.setattr(
        layernorm,
        "fuse_scale_shift_kernel",
        lambda x, scale, shift, constant=1.0, **_: x * (constant + scale) + shift,
    )
    for each in model.modules():
        if hasattr(each, "_forward_method") and hasattr(each, "forward_native"):
            each._forward_method = each.forward_native
    made = torch.Generator().manual_seed(5)
    x, text = (
        torch.randn(s, generator=made, dtype=torch.float32).bfloat16() for s in ((1, 4, 1, 8, 8), (1, 12, 64))
    )
    when = torch.tensor([500.0], dtype=torch.float32)
    with torch.no_grad(), set_forward_context(current_timestep=0, attn_metadata=None):
        found = model(hidden_states=x, encoder_hidden_states=text, timestep=when)
        expected = want(x, when, text, return_dict=False)[0]
    # Two implementations of two blocks in BF16, about twenty roundings of 2^-9 one after the other.
    assert (found.float() - expected.float()).norm() <= 20 * 2**-9 * expected.float().norm()


def saved(path: Path) -> dict[str, torch.Tensor]:
    """Write the checkpoint of Z-Image under diffusers' names: q, k and v apart, and what is MXFP4 in parts."""
    kind = ZImageTransformer2DModel
    whole = checkpoint("z-image", path)
    model = load("z-image", path, named(kind))
    apart = {"to_qkv": ["to_q", "to_k", "to_v"], "w13": ["w1", "w3"]}
    tensors = {name: each for name, each in whole.items() if name.removesuffix(".weight") not in held(model)}
    for name in held(model):
        parent, _, last = name.rpartition(".")
        pieces = apart.get(last, [last])
        for piece, weight in zip(pieces, whole[f"{name}.weight"].chunk(len(pieces)), strict=True):
            made = quantize(weight)
            tensors |= {f"{parent}.{piece}.weight": made.codes, f"{parent}.{piece}.weight_scale": made.scales}
    save_file({name: each.contiguous() for name, each in tensors.items()}, path / "model.safetensors")
    return whole


def test_a_saved_folder_fuses_its_parts(tmp_path: Path) -> None:
    """SGLang's table for Z-Image has no line for scales."""
    whole = saved(tmp_path)
    how = named(ZImageTransformer2DModel, stored=True)
    how.model.folder = describe(tmp_path)
    for name, layer in (layers := held(load("z-image", tmp_path, how))).items():
        want = quantize(whole[f"{name}.weight"])
        assert torch.equal(parts_of(layer)["codes"], want.codes)
        assert torch.equal(parts_of(layer)["scales"], want.scales)
    assert len(layers) == FAMILIES["z-image"][3]


def describe(path: Path) -> str:
    (path / "config.json").write_text('{"quantization_config": {"quant_method": "mxfp4-core"}}')
    return str(path)


def test_missing_scales_are_an_error(tmp_path: Path) -> None:
    saved(tmp_path)
    how = named(ZImageTransformer2DModel, stored=True)
    how.model.folder = describe(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    lost = "layers.0.attention.to_out.0.weight_scale"
    how.model.decide("layers.0.feed_forward.w2")  # the folder was whole when its headers were read
    save_file({name: each for name, each in tensors.items() if name != lost}, tmp_path / "model.safetensors")
    with pytest.raises((LoadError, ValueError), match=r"layers.0.attention.to_out.0.weight_scale"):
        load("z-image", tmp_path, how)


def resolve(
    ignored: list[str] | None = None, path: Path = Path("nowhere"), method: str | None = "mxfp4-core"
) -> Any:
    """Let the server decide which config a transformer gets, as its loader does."""
    described = {"quantization_config": {"quant_method": "mxfp4-core"}} if method is None else {}
    return transformer_load_utils._resolve_quant_config(
        hf_config={"_class_name": "WanTransformer3DModel", **described},
        server_args=Settings(quantization=method, quantization_ignored_layers=ignored),
        safetensors_list=[],
        component_model_path=str(path),
        arch_config=settings_of(WanVideoConfig, WAN).arch_config,
    )


def test_a_saved_transformer_has_the_names_of_diffusers(tmp_path: Path) -> None:
    """Its config.json says what it is, and the server calls the layers otherwise."""
    tensors = dict(reference(tmp_path, []).state_dict())
    for name in [each for each in tensors if each.endswith(("attn1.to_q.weight", "ffn.net.2.weight"))]:
        made = quantize(tensors[name])
        tensors |= {name: made.codes, f"{name}_scale": made.scales}
    save_file({name: each.contiguous() for name, each in tensors.items()}, tmp_path / "model.safetensors")
    describe(tmp_path)
    layers = held(load("wan", tmp_path, resolve(path=tmp_path, method=None)))
    assert set(layers) == {f"blocks.{n}.{name}" for n in range(2) for name in ("to_q", "ffn.fc_out")}
    assert torch.equal(parts_of(layers["blocks.1.to_q"])["codes"], tensors["blocks.1.attn1.to_q.weight"])


def test_ignored_layers_of_the_command_line_stay(tmp_path: Path) -> None:
    checkpoint("wan", tmp_path)
    how = resolve(["blocks.0", "proj_out"])
    assert isinstance(how, diffusion.Mxfp4DiffusionConfig)
    layers = held(load("wan", tmp_path, how))
    assert len(layers) == 10
    assert all(name.startswith("blocks.1.") for name in layers)


def test_an_ignored_layer_that_is_none_is_an_error(tmp_path: Path) -> None:
    checkpoint("wan", tmp_path)
    with pytest.raises(PatternError, match=r"'blocks\.7'"):
        load("wan", tmp_path, resolve(["blocks.7"]))


def test_an_ignored_half_of_a_fused_layer_is_an_error(tmp_path: Path) -> None:
    """SGLang's own rule demands both halves by name, and the fused name does nothing."""
    checkpoint("z-image", tmp_path)
    how = named(ZImageTransformer2DModel)
    how.ignoring(["layers.0.feed_forward.w1"])
    with pytest.raises(PatternError, match=r"layers.0.feed_forward.w13 would be split"):
        load("z-image", tmp_path, how)
    how = named(ZImageTransformer2DModel)
    how.ignoring(["layers.0.feed_forward.w13"])
    assert "layers.0.feed_forward.w13" not in held(load("z-image", tmp_path, how))


def test_a_model_that_moves_is_prepared_again(tmp_path: Path) -> None:
    checkpoint("wan", tmp_path)
    layer = held(load("wan", tmp_path, named(WanTransformer3DModel)))["blocks.0.ffn.fc_in"]
    x = torch.randn(2, 128, generator=torch.Generator().manual_seed(1), dtype=torch.float32).bfloat16()
    before = layer(x)[0]
    layer.to(torch.float32).to(torch.bfloat16)
    assert torch.equal(layer(x)[0], before)


def test_a_process_that_loads_plug_ins_knows_both_methods() -> None:
    assert get_quantization_config("mxfp4-core") is diffusion.Mxfp4DiffusionConfig
    assert get_quantization_config("mxfp8-core") is diffusion.Mxfp8DiffusionConfig
    assert get_quantization_config("fp8").__name__ == "Fp8Config"
    with pytest.raises(ValueError, match="Invalid quantization method"):
        get_quantization_config("mxfp5-core")
