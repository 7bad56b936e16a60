"""Small models of diffusers' own classes, with random weights of the size that trained ones have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

Builder = Callable[[], Any]

WAN = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 32,
    "freq_dim": 32,
    "ffn_dim": 128,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}
Z_IMAGE = {
    "in_channels": 4,
    "dim": 96,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 3,
    "n_kv_heads": 3,
    "cap_feat_dim": 32,
    "axes_dims": [8, 12, 12],
    "axes_lens": [64, 32, 32],
}
FLUX = {
    "in_channels": 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "axes_dims_rope": (8, 12, 12),
}
QWEN = {
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "axes_dims_rope": (8, 12, 12),
}
SD3 = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "caption_projection_dim": 64,
    "pooled_projection_dim": 32,
    "out_channels": 4,
    "pos_embed_max_size": 8,
}
BUILDERS: dict[str, Builder] = {
    "wan": lambda: diffusers.WanTransformer3DModel(**WAN),
    "z_image": lambda: diffusers.ZImageTransformer2DModel(**Z_IMAGE),
    "flux": lambda: diffusers.FluxTransformer2DModel(**FLUX),
    "qwen_image": lambda: diffusers.QwenImageTransformer2DModel(**QWEN),
    "sd3": lambda: diffusers.SD3Transformer2DModel(**SD3),
}
NAMES = tuple(BUILDERS)


def build(name: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Return a model with large random weights, so that each of them counts."""
    torch.manual_seed(list(BUILDERS).index(name))
    model = BUILDERS[name]().to(torch.float32)
    for key, parameter in model.named_parameters():
        scale = 0.1 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
        parameter.data = torch.randn(parameter.shape).mul_(scale)
        if "norm" in key and parameter.ndim == 1 and key.endswith("weight"):
            parameter.data += 1
    return model.to(dtype).eval()


def _noise(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator)


def run(model: nn.Module) -> Tensor:
    """Return what a model of this module makes of fixed inputs, float32."""
    dtype: Any = model.dtype
    name = type(model).__name__
    calls: dict[str, Callable[[], Any]] = {
        "WanTransformer3DModel": lambda: (
            model(_noise(1, 4, 2, 8, 8).to(dtype), torch.tensor([3]), _noise(1, 5, 32).to(dtype)).sample
        ),
        "ZImageTransformer2DModel": lambda: model(
            [_noise(4, 1, 8, 8).to(dtype)], torch.tensor([0.3]).to(dtype), [_noise(5, 32).to(dtype)]
        ).sample[0],
        "FluxTransformer2DModel": lambda: (
            model(
                hidden_states=_noise(1, 16, 4).to(dtype),
                encoder_hidden_states=_noise(1, 5, 32).to(dtype),
                pooled_projections=_noise(1, 32).to(dtype),
                timestep=torch.tensor([0.3]).to(dtype),
                img_ids=torch.zeros(16, 3),
                txt_ids=torch.zeros(5, 3),
                guidance=None,
            ).sample
        ),
        "QwenImageTransformer2DModel": lambda: (
            model(
                hidden_states=_noise(1, 16, 16).to(dtype),
                encoder_hidden_states=_noise(1, 5, 32).to(dtype),
                encoder_hidden_states_mask=torch.ones(1, 5, dtype=torch.int64),
                timestep=torch.tensor([0.3]).to(dtype),
                img_shapes=[[(1, 4, 4)]],
            ).sample
        ),
        "SD3Transformer2DModel": lambda: (
            model(
                hidden_states=_noise(1, 4, 8, 8).to(dtype),
                encoder_hidden_states=_noise(1, 5, 32).to(dtype),
                pooled_projections=_noise(1, 32).to(dtype),
                timestep=torch.tensor([3]),
            ).sample
        ),
    }
    with torch.no_grad():
        return calls[name]().float()


def load(path: Any, config: Any = None, dtype: torch.dtype = torch.bfloat16, **more: Any) -> Any:
    """Load a component with AutoModel."""
    given = {} if config is None else {"quantization_config": config}
    return diffusers.AutoModel.from_pretrained(str(path), dtype=dtype, **given, **more)


def same(first: nn.Module, second: nn.Module) -> bool:
    """Say whether two models hold the same bytes under the same names."""
    one, other = first.state_dict(), second.state_dict()
    equal = all(torch.equal(tensor, other[name]) for name, tensor in one.items() if name in other)
    return one.keys() == other.keys() and equal
