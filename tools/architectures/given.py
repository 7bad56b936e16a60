"""What single types are run with, where the guesses of `inputs` are not enough: tensors that fit one another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

_TOKENS = 12


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _ids(count: int = _TOKENS) -> torch.Tensor:
    return torch.arange(5, 5 + count)[None]


def _image(config: Any) -> torch.Tensor:
    size = config.image_size
    return _noise(1, getattr(config, "num_channels", 3) or 3, *([size, size] if type(size) is int else size))


def _queries(model: Any) -> dict[str, Any]:
    """BLIP-2 and its kin: a place for each query among the tokens."""
    config = model.config
    places = torch.full((1, config.num_query_tokens), config.image_token_index)
    return {"pixel_values": _image(config.vision_config), "input_ids": torch.cat([places, _ids()], 1)}


def _instructed(model: Any) -> dict[str, Any]:
    return {**_queries(model), "qformer_input_ids": _ids()}


def _frames(model: Any) -> dict[str, Any]:
    config, count = model.config, 2
    places = torch.full((1, config.num_query_tokens * count), config.video_token_index)
    pixels = _image(config.vision_config)[:, None].expand(1, count, -1, -1, -1)
    ids = torch.cat([places, _ids()], 1)
    return {"pixel_values": pixels, "input_ids": ids, "qformer_input_ids": _ids()}


def _idefics(model: Any) -> dict[str, Any]:
    ids = _ids()
    mask = torch.ones(1, ids.shape[1], 1, dtype=torch.long)
    pixels = _image(model.config.vision_config)[:, None]
    return {"input_ids": ids, "pixel_values": pixels, "image_attention_mask": mask}


def _kosmos(model: Any) -> dict[str, Any]:
    count = model.config.latent_query_num
    ids = _ids(count + 4)
    mask = torch.zeros_like(ids)
    mask[:, 1 : 1 + count] = 1
    pixels = _image(model.config.vision_config)
    return {"input_ids": ids % 300, "pixel_values": pixels, "image_embeds_position_mask": mask}


def _flat_patches(model: Any) -> dict[str, Any]:
    config = model.config.vision_config
    width = config.num_channels * config.patch_size**2 if hasattr(config, "num_channels") else 0
    width = width or config.patch_embed_hidden_size
    places = torch.tensor([[row, column] for row in (1, 2) for column in (1, 2, 3)]).float()
    given = torch.cat([places[None], _noise(1, 6, width)], -1)
    return {"flattened_patches": given, "decoder_input_ids": _ids(6)}


def _patches(model: Any) -> dict[str, Any]:
    config = model.config.vision_config
    rows = 4
    width = config.num_channels * config.patch_size**2
    return {
        "pixel_values": _noise(1, rows * rows, width),
        "pixel_attention_mask": torch.ones(1, rows * rows, dtype=torch.long),
        "spatial_shapes": torch.tensor([[rows, rows]]),
    }


def _boxes(model: Any) -> dict[str, Any]:
    box = torch.tensor([0.1, 0.2, 0.5, 0.6]).expand(1, _TOKENS, 4)
    return {"input_ids": _ids(), "bbox": box, "decoder_input_ids": _ids(6)}


def _channels(model: Any) -> dict[str, Any]:
    count = model.config.decoder_config.num_channels
    return {"input_ids": _ids(), "decoder_input_ids": _ids(6)[..., None].expand(1, 6, count)}


def _codebooks(model: Any) -> dict[str, Any]:
    count = model.config.num_codebooks
    return {"input_ids": _ids()[..., None].expand(1, _TOKENS, count + 1).contiguous()}


def _speech(model: Any) -> dict[str, Any]:
    return {"input_values": _noise(1, 4000), "decoder_input_ids": _ids(6)}


GIVEN: Final[Mapping[str, Callable[[Any], dict[str, Any]]]] = {
    "blip-2": _queries,
    "dia": _channels,
    "idefics": _idefics,
    "instructblip": _instructed,
    "instructblipvideo": _frames,
    "kosmos-2": _kosmos,
    "kyutai_speech_to_text": _codebooks,
    "moonshine": _speech,
    "pix2struct": _flat_patches,
    "siglip2": _patches,
    "udop": _boxes,
}
"""By type of the model."""

__all__ = ["GIVEN"]
