"""What is a tower beside a language model, by the words of its name and by config.json."""

import json
import time
from typing import Any

import pytest

from mxfp4_core.naming.towers import has_towers, tower_of

LANGUAGE = {"model_type": "llama", "num_hidden_layers": 2, "vocab_size": 96}


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("model.visual.blocks.0.attn.qkv", "a vision tower"),  # Qwen
        ("visual.merger.mlp.0", "a vision tower"),
        ("vision_tower.vision_model.encoder.layers.0.mlp.fc1", "a vision tower"),  # Llava, Gemma 3, Mistral 3
        ("model.high_res_vision_model.vision_encoder.layers.0.mlp.lin1", "a vision tower"),
        ("model.image_tower.encoder.layers.3.self_attn.q_proj", "a vision tower"),  # Video-Llava
        ("model.embed_tokens_extend.image_embed.img_processor.encoder.layers.0.mlp.fc1", "a vision tower"),
        ("vpm.encoder.layers.0.mlp.fc1", "a vision tower"),  # MiniCPM-V
        ("model.sam_model.blocks.0.attn.qkv", "a vision tower"),  # DeepSeek-OCR
        ("vit_large_projector", "a vision tower"),  # Step 3
        ("thinker.audio_tower.layers.0.fc1", "an audio tower"),  # Qwen-Omni
        ("apm.layers.0.self_attn.q_proj", "an audio tower"),
        ("multi_modal_projector.linear_1", "the projector of a tower"),
        ("mm_projector.proj.0", "the projector of a tower"),  # Kimi
        ("model.aligner.fc1", "the projector of a tower"),  # Janus
        ("model.connector.modality_projection.proj", "the projector of a tower"),  # Idefics
        ("mlp1.1", "the projector of a tower"),  # InternVL
        ("qformer.encoder.layer.0.attention.attention.query", "the projector of a tower"),
    ],
)
def test_words_of_towers(name: str, what: str) -> None:
    found = tower_of(name)
    assert found is not None and found[1] == what and found[0] in name.split(".")


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj",
        "model.language_model.layers.1.mlp.gate_up_proj",
        "model.layers.0.mlp.vision_experts.0.gate_proj",  # ERNIE: experts of the language model
        "model.layers.3.self_attn.vision_expert_query_key_value",  # CogVLM
        "model.layers.0.cross_attn.image_norm",
        "model.revision.weight",  # a word is a whole one
        "lm_head",
        "text_model.encoder.layers.0.mlp.fc1",
        "",
    ],
)
def test_what_is_no_tower(name: str) -> None:
    assert tower_of(name) is None


@pytest.mark.parametrize(
    "config",
    [
        {"vision_config": {}, "text_config": LANGUAGE},
        {"vision_config": {}, "llm_config": LANGUAGE},
        {"vision_config": {}, "language_config": LANGUAGE},
        {"vision_config": {}, **LANGUAGE},  # Qwen2-VL
        {"visual": {}, **LANGUAGE},  # Qwen-VL
        {"vision_config": {}, "num_layers": 40, "padded_vocab_size": 151552},  # GLM-4V
        {"vision_tower_cfg": {}, "llm_cfg": LANGUAGE},  # NVILA
        {"audio_config": {}, "text_config": LANGUAGE},
        {"mm_vision_tower": "openai/clip-vit-large-patch14-336", **LANGUAGE},  # Llava's own code
        {"thinker_config": {"vision_config": {}, "text_config": LANGUAGE}},  # Qwen-Omni
        {"vlm_config": {"vision_config": {}, "text_config": LANGUAGE}},  # ColPali
        {"vq_config": {}, **LANGUAGE},  # Chameleon
    ],
)
def test_models_with_towers(config: dict[str, Any]) -> None:
    assert has_towers(config)


@pytest.mark.parametrize(
    "config",
    [
        {},
        LANGUAGE,
        {"text_config": LANGUAGE},
        {"vision_config": {}},  # a model that only sees
        {"vision_config": {}, "prompt_encoder_config": {}, "mask_decoder_config": {}},  # SAM
        {"model_type": "vit", "image_size": 224, "num_hidden_layers": 12},
        {"vision_config": {}, "text_config": LANGUAGE, "logit_scale_init_value": 2.6592},  # CLIP
        {"vision_config": {}, "text_config": {"model_type": "siglip_text_model"}},
        {"vision_config": None, "text_config": LANGUAGE},
        {"audio_config": {}, "vocab_size": 96},  # CTC: letters, and no layers of a language model
        {"vision_config": "none", "text_config": LANGUAGE},
        {"encoder": {"model_type": "vit"}, "decoder": LANGUAGE},  # the encoder is half of the model
    ],
)
def test_models_without_towers(config: dict[str, Any]) -> None:
    assert not has_towers(config)


def test_a_hostile_config_is_looked_at_in_bounded_time() -> None:
    deep: dict[str, Any] = {}
    for _ in range(500):
        deep = {"a": deep, "b": {}}
    wide = {f"k{number}": {} for number in range(20_000)}
    began = time.process_time()
    assert not has_towers(deep) and not has_towers(json.loads(json.dumps(wide)))
    assert time.process_time() - began < 1
    assert tower_of(".".join(["a"] * 100_000)) is None
