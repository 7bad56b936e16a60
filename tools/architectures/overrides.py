"""What rules cannot tell about single types: fields that depend on one another, or that have no usable default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_SWIN: Final = {
    "embed_dim": 32,
    "depths": [1, 1],
    "num_heads": [2, 4],
    "window_size": 4,
    "image_size": 64,
    "hidden_size": 64,
}
_HEAD: Final = {"head_dim": 32}
_CONV: Final = {"hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 1, 1]}
_PYRAMID: Final = {
    "hidden_sizes": [32, 64, 96, 128],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 2, 3, 4],
    "sr_ratios": [2, 2, 2, 1],
}
_VOCABULARY: Final = {"vocabulary_map": {"<image>": 300, "<|extra_200|>": 301}}
_DORY: Final = {"n_input_layers": 2, "n_recurrent_layers": 2, "n_output_layers": 2, "num_hidden_layers": 6}

OVERRIDES: Final[Mapping[str, Mapping[str, Any]]] = {
    "apertus1p5": {"audio_token_offset": 556, "image_token_offset": 300},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "bit": {"hidden_sizes": [64, 96, 128, 160], "depths": [1, 1, 1, 1], "embedding_size": 32},
    "chameleon": _VOCABULARY,
    "cohere_compass": {"text_config.layer_types": ["sliding_attention", "full_attention"]},
    "convnext": _CONV,
    "convnextv2": _CONV,
    "deit": {"architectures": ["DeiTForImageClassification"]},
    "donut-swin": _SWIN,
    "dory": {
        **_DORY,
        "layer_types": ["sliding_attention", "mlp", "full_attention", "mlp", "sliding_attention", "mlp"],
    },
    "dots1": {"n_routed_experts": 4, "num_local_experts": 4},
    "emu3": _VOCABULARY,
    "esm": {"vocab_size": 352},
    "evolla": {},
    "falcon_h1": {"mamba_d_ssm": 256},
    "focalnet": {
        "embed_dim": 32,
        "depths": [1, 1],
        "focal_levels": [1, 1],
        "focal_windows": [3, 3],
        "hidden_sizes": [32, 64],
        "image_size": 32,
    },
    "granite4_vision": {"deepstack_layer_map": {}},
    "granite_speech5_ctc": {"max_position_embeddings": 512},
    "hiera": {
        "embed_dim": 32,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 2, 4, 4],
        "image_size": [64, 64],
        "masked_unit_size": [2, 2],
    },
    "hunyuan_v1_dense": _HEAD,
    "hunyuan_v1_moe": _HEAD,
    "hunyuan_vl": {"text_config.head_dim": 32},
    "levit": {"architectures": ["LevitForImageClassification"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"zero_expert_num": 2},
    "mamba2": {"num_heads": 8, "head_dim": 32},
    "ministral": _HEAD,
    "mobilevit": {"hidden_sizes": [32, 64, 96], "neck_hidden_sizes": [8, 16, 32, 32, 64, 64, 64]},
    "nemotron": _HEAD,
    "poolformer": _CONV,
    "pvt": _PYRAMID | {"sequence_reduction_ratios": [2, 2, 2, 1]},
    "pvt_v2": _PYRAMID,
    "reformer": {
        "is_decoder": True,
        "axial_pos_shape": [8, 16],
        "axial_pos_embds_dim": [32, 96],
        "attn_layers": ["local", "lsh"],
    },
    "regnet": {"hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 1, 1], "groups_width": 32},
    "resnet": {"hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 1, 1]},
    "segformer": _PYRAMID,
    "squeezebert": {"embedding_size": 128},
    "swin": _SWIN,
    "swinv2": _SWIN,
    "wav2vec2-bert": {"vocab_size": 352},
    "wav2vec2-conformer": {"vocab_size": 352},
    "xlnet": {"d_head": 32},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "num_hidden_layers": 4,
        "attention_head_dim": 64,
        "attention_hidden_size": 256,
        "mamba_dt_rank": 32,
    },
}
"""By type; a key with dots reaches into a section, and a value of None drops the field."""


def overridden(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with the fields that this table has for a type."""
    for path, value in OVERRIDES.get(name, {}).items():
        *sections, key = path.split(".")
        section = config
        for each in sections:
            section = section[each]
        section[key] = value
    return config


__all__ = ["OVERRIDES", "overridden"]
