from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mxfp4_core import dialects, quantize
from mxfp4_core.checkpoint.reader import open_checkpoint
from mxfp4_core.errors import DialectError
from mxfp4_core.jobs import convert_checkpoint, dequantize_checkpoint

Save = Callable[..., Path]
DESCRIBED: dict[str, Any] = {
    "quant_method": "fp_quant", "forward_dtype": "mxfp4", "forward_method": "abs_max", "hadamard_group_size": 32,
    "modules_to_not_convert": ["lm_head"], "pseudoquantization": False, "store_master_weights": False,
}  # fmt: skip
CONFIG = {"model_type": "llama", "quantization_config": DESCRIBED}
MODULE = "model.layers.0.mlp.up_proj"
WEIGHT = torch.randn(48, 64, generator=torch.Generator().manual_seed(2)).bfloat16().float()


def hadamard(size: int) -> torch.Tensor:
    signs = torch.ones(1, 1)
    while len(signs) < size:
        signs = torch.cat([torch.cat([signs, signs], 1), torch.cat([signs, -signs], 1)])
    return signs * size**-0.5


def stored(matrix: torch.Tensor) -> dict[str, torch.Tensor]:
    """What FP-Quant stores: codes of the rotated weight times 3, and what divides by it again."""
    made = quantize((WEIGHT.reshape(-1, len(matrix)) @ matrix).reshape(WEIGHT.shape) * 3)
    return {
        f"{MODULE}.qweight": made.codes,
        f"{MODULE}.scales": made.scales,
        f"{MODULE}.weight_global_scale": torch.tensor([3.0]),
        f"{MODULE}.act_global_scale": torch.tensor([3.0]),
        f"{MODULE}.forward_hadamard_matrix": matrix.bfloat16(),
        f"{MODULE}.backward_hadamard_matrix": matrix.bfloat16(),
        "lm_head.weight": torch.ones(8, 64).bfloat16(),
    }


def snr(made: torch.Tensor) -> float:
    return float(10 * torch.log10(WEIGHT.square().sum() / (WEIGHT - made.float()).square().sum()))


@pytest.mark.parametrize("size", [32, 64])
def test_it_is_read_and_dequantised(save: Save, size: int) -> None:
    source = save(stored(hadamard(size)), config=CONFIG)
    found = dialects.read(open_checkpoint(source))
    assert found is not None
    dialect, contents = found
    assert (dialect.name, contents.entries, contents.kept) == ("fp-quant", {}, ("lm_head",))
    result = dequantize_checkpoint(source, source.parent / "plain")
    assert "rotated" in result.notes[0]
    written = open_checkpoint(source.parent / "plain")
    assert set(written.tensors) == {f"{MODULE}.weight", "lm_head.weight"}
    assert "quantization_config" not in written.config
    assert snr(written.load(f"{MODULE}.weight")) > 17


def test_the_matrix_counts_as_exact_where_it_is_a_hadamard_matrix(save: Save) -> None:
    """32**-0.5 is no number of BF16: by the stored matrix the weight would be too small by one part in a thousand."""
    tensors = stored(hadamard(32))
    found = dialects.read(open_checkpoint(save(tensors, config=CONFIG)))
    assert found is not None
    made = (
        found[1].beside[f"{MODULE}.weight"].rounded("F32").load(open_checkpoint(save(tensors, config=CONFIG)))
    )
    rotated = quantize((WEIGHT.reshape(-1, 32) @ hadamard(32)).reshape(WEIGHT.shape) * 3).dequantize(
        torch.float32
    )
    exact = (rotated.double().reshape(-1, 32) / 3) @ hadamard(32).double().T
    assert torch.allclose(made.double().reshape(-1, 32), exact, rtol=1e-6, atol=1e-7)


def test_its_weights_are_quantised_anew_and_the_error_is_said(save: Save) -> None:
    source = save(stored(hadamard(32)), config=CONFIG)
    result = convert_checkpoint(source, source.parent / "plain", "compressed-tensors")
    assert result.quantized == 1 and "lossy: 1 weight(s)" in result.notes[0]
    assert 15 < result.errors[f"{MODULE}.weight"] < 25


@pytest.mark.parametrize("to", ["fp-quant"])
def test_it_is_no_target_and_says_why(save: Save, dense: dict[str, torch.Tensor], to: str) -> None:
    native = save(
        {"a.weight": torch.zeros(4, 32, dtype=torch.uint8), "a.weight_scale": torch.full((4, 2), 127).byte()},
        config={"quantization_config": {"quant_method": "mxfp4-core"}},
    )
    with pytest.raises(DialectError, match="rotated and divided by 3"):
        convert_checkpoint(native, native.parent / "no", to)
    assert not (native.parent / "no").exists()


BAD: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], dict[str, Any], str]] = {
    "no codes at all": (lambda t: [t.pop(n) for n in list(t) if MODULE in n], {}, "no tensor X.qweight"),
    "no scales": (lambda t: t.pop(f"{MODULE}.scales"), {}, "without 'model.layers.0.mlp.up_proj.scales'"),
    "no codes": (lambda t: t.update({"b.scales": torch.ones(2, 2).byte()}), {}, "'b.scales' without codes"),
    "a matrix that is none": (
        lambda t: t.update({f"{MODULE}.forward_hadamard_matrix": torch.ones(32, 16)}), {}, "(32, 16)"
    ),
    "a matrix that does not divide K": (
        lambda t: t.update({f"{MODULE}.forward_hadamard_matrix": torch.ones(48, 48)}), {}, "(48, 48)"
    ),
    "scales of another shape": (lambda t: t.update({f"{MODULE}.scales": torch.ones(48, 3).byte()}), {}, "(48, 3)"),
    "pseudo-quantised": (lambda t: None, {"pseudoquantization": True}, "not stored as codes"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "described", "seen"), BAD.values(), ids=BAD.keys())
def test_what_contradicts_itself(
    save: Save, change: Callable[[dict[str, torch.Tensor]], Any], described: dict[str, Any], seen: str
) -> None:
    tensors = stored(hadamard(32))
    change(tensors)
    config = {**CONFIG, "quantization_config": {**DESCRIBED, **described}}
    with pytest.raises(DialectError) as caught:
        dialects.read(open_checkpoint(save(tensors, config=config)))
    assert seen in caught.value.seen
