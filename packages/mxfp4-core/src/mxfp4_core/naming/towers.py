"""What lies beside a language model and feeds it: towers that see or hear, and the projectors behind them.

Their names are words of each model's own, so they are told by the words in them, not by a list of models. Only what
stands before the first number counts: behind it is a layer's own, such as the ``vision_experts`` of a language model.
A model that sees and has no language model beside (ViT), or two encoders that meet in one space (CLIP), is no tower.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from mxfp4_core._text import is_index

_SEES: Final = frozenset({"vision", "visual", "image", "img", "video", "vit", "vpm", "vqmodel"})
_HEARS: Final = frozenset({"audio", "speech", "sound", "acoustic", "apm"})
_PROJECTS: Final = frozenset({"projector", "aligner", "connector", "resampler", "merger", "qformer"})
# Names whose words alone say too little: DeepSeek-OCR, VibeVoice, BLIP-2, InternVL's own code.
_WHOLE: Final[Mapping[str, str]] = {
    "sam_model": "a vision tower",
    "semantic_tokenizer_encoder": "an audio tower",
    "language_projection": "the projector of a tower",
    "mlp1": "the projector of a tower",
}
_SECTIONS: Final = frozenset({*_SEES, *_HEARS, "vq"})
_LANGUAGE: Final = frozenset({"text", "llm", "language", "lm"})
_OF_A_MODEL: Final = frozenset({"config", "cfg"})
_LANGUAGE_SIZES: Final = (
    ("vocab_size", "padded_vocab_size"),
    ("num_hidden_layers", "num_layers", "n_layer", "n_layers"),
)
"""What a config.json has where its language model has no section of its own: a size from each of these."""
_CONTRASTIVE: Final = ("logit_scale_init_value", "temperature_init_value")
_CONTRASTIVE_TEXT: Final = frozenset({"siglip_text_model", "siglip2_text_model"})
# Both bound what hostile files make us look at.
_MOST_SECTIONS: Final = 64
_MOST_PARTS: Final = 16


def has_towers(config: Mapping[str, Any]) -> bool:
    """Say whether config.json, or a section of it, describes a tower beside a language model.

    Args:
        config: contents of config.json; may be empty.
    """
    return any(map(_beside_language, _with_sections(config)))


def tower_of(module: str) -> tuple[str, str] | None:
    """Return the component of a name that is a tower or its projector, and what it is; None where there is none.

    Args:
        module: name in the checkpoint, the model or an engine, of a model that `has_towers`.
    """
    for part in module.split(".", _MOST_PARTS)[:_MOST_PARTS]:
        if is_index(part):
            return None
        words = {*part.lower().split("_")}
        # The projector last: `vision_projector` is a part of the tower, and `vit_merger` is.
        told = (_SEES, "a vision tower"), (_HEARS, "an audio tower"), (_PROJECTS, "the projector of a tower")
        found = _WHOLE.get(part) or next((what for known, what in told if words & known), None)
        if found is not None:
            return part, found
    return None


def _with_sections(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield config.json and the sections of models in it: ``thinker_config``, ``vlm_config``."""
    waiting, seen = [config], 0
    while waiting and seen < _MOST_SECTIONS:
        section, seen = waiting.pop(0), seen + 1
        yield section
        waiting += [value for value in section.values() if isinstance(value, Mapping)]


def _beside_language(section: Mapping[str, Any]) -> bool:
    parts = [
        ({*str(key).lower().split("_")}, value)
        for key, value in section.items()
        if isinstance(value, Mapping)
    ]
    towers = any(words & _SECTIONS for words, _ in parts) or isinstance(section.get("mm_vision_tower"), str)
    texts = [value for words, value in parts if words & _LANGUAGE and words & _OF_A_MODEL]
    met = any(key in section for key in _CONTRASTIVE)
    if not towers or met or any(text.get("model_type") in _CONTRASTIVE_TEXT for text in texts):
        return False
    return bool(texts) or all(any(key in section for key in keys) for keys in _LANGUAGE_SIZES)


__all__ = ["has_towers", "tower_of"]
