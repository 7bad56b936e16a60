"""A checkpoint that is quantised in any way is noticed, and one in high precision is not taken for one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mxfp4_core import dialects
from mxfp4_core.checkpoint.reader import open_checkpoint
from mxfp4_core.dialects.unread import unread_format
from mxfp4_core.errors import DialectError
from mxfp4_core.jobs.quantize import quantize_checkpoint

Save = Callable[..., Path]


def u8(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


QUANTIZED: dict[str, tuple[dict[str, torch.Tensor], dict[str, Any], str]] = {
    "gpt-oss": ({"a": torch.ones(1)}, {"quantization_config": {"quant_method": "mxfp4"}}, "gpt-oss MXFP4"),
    "gpt-oss by names": (
        {"x.gate_up_proj_blocks": u8(1, 2, 1, 16), "x.gate_up_proj_scales": u8(1, 2, 1)},
        {},
        "gpt-oss",
    ),
    "gpt-oss original": ({"block.0.mlp.mlp1_weight.blocks": u8(1, 2, 1, 16)}, {}, "original layout"),
    "quark int8": ({"a": torch.ones(1)}, {"quantization_config": {"quant_method": "quark"}}, "AMD Quark"),
    "compressed-tensors int4": (
        {"a": torch.ones(1)},
        {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {}}},
        "compressed-tensors",
    ),
    "modelopt": ({"a": torch.ones(1)}, {"quantization_config": {"quant_method": "modelopt"}}, "ModelOpt"),
    "deepseek": ({"a": torch.ones(1)}, {"quantization_config": {"quant_method": "fp8"}}, "DeepSeek"),
    "deepseek experts": ({"a": torch.ones(1)}, {"expert_dtype": "fp4"}, "DeepSeek"),
    "deepseek by names": (
        {
            "w1.weight": torch.zeros(2, 16, dtype=torch.int8),
            "w1.scale": torch.ones(2, 1).to(torch.float8_e8m0fnu),
        },
        {},
        "DeepSeek",
    ),
    "auto-round": (
        {"a": torch.ones(1)},
        {"quantization_config": {"quant_method": "auto-round"}},
        "auto-round",
    ),
    "torchao": ({"a": torch.ones(1)}, {"quantization_config": {"quant_method": "torchao"}}, "torchao"),
    "torchao by names": ({"a._weight_qdata": u8(2, 16)}, {}, "torchao"),
    "fp_quant": ({"a": torch.ones(1)}, {"quantization_config": {"quant_method": "fp_quant"}}, "FP-Quant"),
    "gptq": ({"a": torch.ones(1)}, {"quantization_config": {"quant_method": "gptq"}}, "GPTQ"),
    "gptq by names": ({"a.qweight": torch.zeros(2, 2, dtype=torch.int32)}, {}, "GPTQ"),
    "awq": ({"a": torch.ones(1)}, {"quantization_config": {"quant_method": "awq"}}, "AWQ"),
    "bitsandbytes": (
        {"a": torch.ones(1)},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        "bitsandbytes",
    ),
    "something new": (
        {"a": torch.ones(1)},
        {"quantization_config": {"quant_method": "xyz"}},
        "unknown method 'xyz'",
    ),
    "a list": ({"a": torch.ones(1)}, {"quantization_config": ["fp4"]}, "unknown"),
    "a number": ({"a": torch.ones(1)}, {"quantization_config": {"quant_method": 4}}, "unknown"),
    "old compressed-tensors": ({"a": torch.ones(1)}, {"compression_config": {"format": "x"}}, "unknown"),
    "a part of the model": (
        {"a": torch.ones(1)},
        {"text_config": {"quantization_config": {"quant_method": "modelopt"}}},
        "text_config.quantization_config",
    ),
    "packed weights without a word": ({"a.weight": u8(4, 32)}, {}, "'a.weight' of dtype U8"),
    "bytes with scales": (
        {"a.weight": u8(4, 32), "a.weight_scale": u8(4, 2)},
        {},
        "packed weights with scales",
    ),
    "FP8 weights": ({"a.weight": torch.ones(4, 32).to(torch.float8_e4m3fn)}, {}, "F8_E4M3"),
}


@pytest.mark.parametrize(("tensors", "config", "message"), QUANTIZED.values(), ids=QUANTIZED.keys())
def test_every_quantised_checkpoint_is_noticed(
    save: Save, tensors: dict[str, torch.Tensor], config: dict[str, Any], message: str
) -> None:
    source = save(tensors, config=config)
    with pytest.raises(DialectError, match="is quantised already") as caught:
        quantize_checkpoint(source, source.parent / "target")
    assert message in caught.value.seen
    with pytest.raises(DialectError) as caught:
        dialects.read(open_checkpoint(source))
    assert message in caught.value.seen
    assert not (source.parent / "target").exists()


@pytest.mark.parametrize(
    "name", ["quant_model_description.json", "hf_quant_config.json", "quantize_config.json"]
)
def test_a_description_in_a_file_of_its_own(save: Save, dense: dict[str, torch.Tensor], name: str) -> None:
    source = save(dense)
    (source / name).write_text("{}")
    with pytest.raises(DialectError, match=name):
        quantize_checkpoint(source, source.parent / "target")


def test_high_precision_is_not_taken_for_quantised(save: Save, dense: dict[str, torch.Tensor]) -> None:
    extra = {
        "position_ids": torch.arange(4),
        "mask": torch.ones(4, dtype=torch.bool),
        "logit_scale": torch.ones(1),
        "attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8),
    }
    checkpoint = open_checkpoint(
        save({**dense, **extra}, config={"text_config": {}, "quantization_config": None})
    )
    assert dialects.detect(checkpoint) is None
    assert dialects.read(checkpoint) is None
    assert unread_format({}, {}, set()) is None
