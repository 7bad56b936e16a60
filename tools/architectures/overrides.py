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
_ROPE: Final = {"rope_type": "default", "rope_theta": 10000.0}
_EACH_ROPE: Final = {
    kind: {**_ROPE, "mrope_section": [12, 10, 10]} for kind in ("sliding_attention", "full_attention")
}
_INDEXER: Final = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 64,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
}
_SHARED_CACHE: Final = {
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "intermediate_size": [192, 192, 192, 192],
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0],
}

OVERRIDES: Final[Mapping[str, Mapping[str, Any]]] = {
    "apertus1p5": {"text_config.vocab_size": 1024, "image_token_offset": 352, "audio_token_offset": 608},
    "bit": {
        "hidden_sizes": [64, 96, 128, 160],
        "depths": [1, 1, 1, 1],
        "embedding_size": 32,
        "num_groups": 8,
    },
    "blip-2": {"image_token_index": 340},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "chameleon": _VOCABULARY,
    "cohere_compass": {
        "text_config.layer_types": ["sliding_attention", "full_attention"],
        "text_config.rope_parameters": _EACH_ROPE,
    },
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": _EACH_ROPE,
    },
    "convnext": _CONV,
    "convnextv2": _CONV,
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 192, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_ocr2": {
        "text_config.mlp_layer_types": ["dense", "sparse"],
        "text_config.num_experts_per_tok": 2,
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "deit": {"architectures": ["DeiTForImageClassification"]},
    "dia": {
        "decoder_config.cross_num_attention_heads": 4,
        "decoder_config.cross_num_key_value_heads": 4,
        "encoder_config.num_key_value_heads": 4,
    },
    "diffusion_gemma": {
        "text_config.num_experts": 4,
        "text_config.moe_intermediate_size": 64,
        "text_config.top_k_experts": 2,
    },
    "donut-swin": _SWIN,
    "dory": {
        **_DORY,
        "layer_types": ["sliding_attention", "mlp", "full_attention", "mlp", "sliding_attention", "mlp"],
    },
    "dots1": {
        "n_routed_experts": 4,
        "num_local_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
    },
    "emu3": _VOCABULARY,
    "ernie4_5_vl_moe": {"text_config.rope_parameters.mrope_section": [6, 6, 4]},
    "esm": {"vocab_size": 352, "pad_token_id": 1, "mask_token_id": 2},
    "falcon_h1": {"mamba_d_ssm": 256},
    "focalnet": {
        "embed_dim": 32,
        "depths": [1, 1],
        "focal_levels": [1, 1],
        "focal_windows": [3, 3],
        "hidden_sizes": [32, 64],
        "image_size": 32,
    },
    "fun_asr_nano": {"adaptor_config.intermediate_size": 32},
    "gemma3n_text": _SHARED_CACHE,
    "gemma4_assistant": {"text_config.hidden_size_per_layer_input": 0},
    "gemma4_unified_assistant": {"text_config.num_kv_shared_layers": 0},
    "glm46v": {"text_config.rope_parameters.mrope_section": [4, 6, 6]},
    "glm4v": {"text_config.rope_parameters.mrope_section": [4, 6, 6]},
    "glm4v_moe": {"text_config.rope_parameters.mrope_section": [2, 3, 3]},
    "glm5_next": {"text_config.index_topk": 16},
    "glm_ocr": {"text_config.rope_parameters.mrope_section": [4, 6, 6]},
    "glmga": {"text_config.rope_parameters.mrope_section": [4, 6, 6]},
    "granite4_vision": {"deepstack_layer_map": [[-1, 0]], "spatial_target_layers": [1]},
    "helium": _HEAD,
    "hiera": {
        "embed_dim": 32,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 2, 4, 4],
        "image_size": [64, 64],
        "masked_unit_size": [8, 8],
    },
    "hunyuan_v1_dense": _HEAD,
    "hunyuan_v1_moe": _HEAD,
    "hunyuan_vl": {"text_config.head_dim": 32},
    "hy_v4_vl": {"text_config.rope_parameters.mrope_section": [6, 5, 5]},
    "instructblip": {"image_token_index": 340},
    "instructblipvideo": {"video_token_index": 340},
    "kyutai_speech_to_text": {"codec_config.upsample_groups": 32},
    "levit": {"architectures": ["LevitForImageClassification"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"zero_expert_num": 2},
    "mamba2": {"num_heads": 8, "head_dim": 32},
    "ministral": _HEAD,
    "mobilevit": {"hidden_sizes": [32, 64, 96], "neck_hidden_sizes": [8, 16, 32, 32, 64, 64, 64]},
    "molmo2": {"adapter_config.vision_feature_layer": [1, 0]},
    "moonshine": {"encoder_num_key_value_heads": 4, "decoder_num_key_value_heads": 4},
    "muse_spark": {"audio_config.num_hidden_layers": 4},
    "nemotron": {"head_dim": 32, "num_key_value_heads": 2},
    "paddleocr_vl": {"text_config.rope_parameters.mrope_section": [8, 12, 12]},
    "poolformer": _CONV,
    "pvt": _PYRAMID | {"sequence_reduction_ratios": [2, 2, 2, 1]},
    "pvt_v2": _PYRAMID,
    "qwen2_5_omni_thinker": {"text_config.rope_parameters.mrope_section": [4, 6, 6]},
    "qwen2_5_vl": {"text_config.rope_parameters.mrope_section": [4, 6, 6]},
    "qwen2_vl": {"text_config.rope_parameters.mrope_section": [4, 6, 6]},
    "qwen4_exp": {f"text_config.{key}": value for key, value in _INDEXER.items()},
    "qwen4_exp_text": _INDEXER,
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
    "xmod": {"default_language": "en_XX"},
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
            section = section[each] or {}  # another release of transformers may have no such section
        section[key] = value
    return config


__all__ = ["OVERRIDES", "overridden"]
