"""Which layers of an engine hold MXFP4 weights: by patterns, and by what a folder holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mxfp4_core import Mxfp4Config, quantize
from mxfp4_core.errors import LoadError, Mxfp4Error, PatternError
from mxfp4_core.jobs import quantize_checkpoint
from mxfp4_core.loader import EngineNames

Save = Callable[..., Path]
Tensors = dict[str, torch.Tensor]
LAYER = "model.layers.0."
PACKED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


def names(config: Mxfp4Config, folder: Path | None = None, **options: object) -> EngineNames:
    return EngineNames(config, model_config={}, folder=folder, fused=PACKED, **options)  # type: ignore[arg-type]


def stored(dense: Tensors, without: tuple[str, ...] = ()) -> Tensors:
    """Return a checkpoint of the native dialect."""
    found: Tensors = {}
    for name, tensor in dense.items():
        if name.endswith("_proj.weight") and not any(part in name for part in without):
            packed = quantize(tensor)
            found |= {name: packed.codes, f"{name}_scale": packed.scales}
        else:
            found[name] = tensor
    return found


def test_a_fused_module_is_decided_by_its_projections(save: Save, dense: Tensors) -> None:
    found = names(Mxfp4Config(ignore=["o_proj"], rule="floor"), save(dense))
    decision = found.decide(f"{LAYER}self_attn.qkv_proj")
    assert decision.quantize and decision.profile == "floor/even" and decision.format == "mxfp4"
    assert "o_proj" in found.decide(f"{LAYER}self_attn.o_proj").reason
    assert not found.decide("lm_head").quantize
    found.check()


def test_patterns_are_checked_against_all_names_of_a_folder_at_once(save: Save, dense: Tensors) -> None:
    with pytest.raises(PatternError, match="match nothing"):
        names(Mxfp4Config(ignore=["o_prj"]), save(dense))
    with pytest.raises(PatternError, match="split"):
        names(Mxfp4Config(ignore=["q_proj"]), save(dense))


def test_without_a_folder_patterns_are_checked_when_all_layers_are_decided() -> None:
    found = names(Mxfp4Config(ignore=["o_prj"]))
    found.decide(f"{LAYER}self_attn.o_proj")
    with pytest.raises(PatternError, match=r"for 'o_prj' try"):
        found.check()


def test_what_a_folder_holds_decides(save: Save, dense: Tensors) -> None:
    config = {
        "quantization_config": {
            "quant_method": "mxfp4-core",
            "weights_profile": "even/even",
            "ignore": ["o_proj"],
        }
    }
    folder = save(stored(dense, ("o_proj",)), config=config)
    found = names(Mxfp4Config(ignore=["o_proj"]), folder, stored=True)
    decision = found.decide(f"{LAYER}mlp.gate_up_proj")
    assert (decision.quantize, decision.profile) == (True, "even/even")
    assert decision.suffixes == {"codes": "", "scales": "_scale"}
    assert not found.decide(f"{LAYER}self_attn.o_proj").quantize
    assert not found.decide("lm_head").quantize


def test_a_folder_that_fused_modules_cannot_be_made_of(save: Save, dense: Tensors) -> None:
    config = {"quantization_config": {"quant_method": "mxfp4-core", "ignore": ["q_proj", "k_proj"]}}
    folder = save(stored(dense, ("q_proj", "k_proj")), config=config)
    found = names(Mxfp4Config(ignore=["q_proj", "k_proj"]), folder, stored=True)
    with pytest.raises(LoadError, match=r"q_proj: high precision.*v_proj: mxfp4"):
        found.decide(f"{LAYER}self_attn.qkv_proj")


def test_a_scale_that_is_missing_is_named_before_anything_is_loaded(save: Save, dense: Tensors) -> None:
    tensors = stored(dense)
    del tensors[f"{LAYER}mlp.down_proj.weight_scale"]
    folder = save(tensors, config={"quantization_config": {"quant_method": "mxfp4-core"}})
    with pytest.raises(Mxfp4Error, match="down_proj"):
        names(Mxfp4Config(), folder, stored=True)


def test_experts_are_known_by_any_of_them(save: Save) -> None:
    tensors: Tensors = {}
    for expert in range(2):
        for part in ("gate_proj", "up_proj", "down_proj"):
            packed = quantize(torch.ones(32, 32, dtype=torch.bfloat16))
            name = f"{LAYER}mlp.experts.{expert}.{part}.weight"
            tensors |= {name: packed.codes, f"{name}_scale": packed.scales}
    config = {"quantization_config": {"quant_method": "mxfp4-core"}, "num_experts": 2}
    found = names(Mxfp4Config(), save(tensors, config=config), stored=True)
    assert found.decide(f"{LAYER}mlp.experts").quantize
    assert not found.decide(f"{LAYER}mlp.gate").quantize


def test_a_folder_in_high_precision_is_not_stored(save: Save, dense: Tensors) -> None:
    with pytest.raises(LoadError, match="high precision"):
        names(Mxfp4Config(), save(dense), stored=True)


@pytest.mark.parametrize(("common", "own"), [("none", "mxfp4"), ("fp8", "none"), (None, "mxfp4")])
def test_an_override_says_how_the_input_of_its_layers_is_quantised(
    save: Save, dense: Tensors, tmp_path: Path, common: str | None, own: str
) -> None:
    said = {} if common is None else {"activation": common}
    overrides = [{"pattern": "down_proj", "activation": own}]
    config = Mxfp4Config.from_dict({**said, "overrides": overrides, "dialect": "mxfp4-core"})
    quantize_checkpoint(save(dense), tmp_path / "made", config)
    online, found = names(config), names(config, tmp_path / "made", stored=True)
    for part, mode in (("mlp.down_proj", own), ("self_attn.qkv_proj", common or "none")):
        assert found.decide(f"{LAYER}{part}").quantize
        assert found.decide(f"{LAYER}{part}").activation == mode
        assert online.decide(f"{LAYER}{part}").activation == mode


def test_modes_of_activations_that_a_fused_module_cannot_have(save: Save, dense: Tensors) -> None:
    groups = [{"format": "mxfp8", "activation": "mxfp8", "weights": [f"{LAYER}self_attn.q_proj.weight"]}]
    wide = quantize(dense[f"{LAYER}self_attn.q_proj.weight"], format="mxfp8")
    tensors = stored(dense)
    del tensors[f"{LAYER}self_attn.q_proj.weight_scale"]
    for part in wide.format.parts:
        tensors[f"{LAYER}self_attn.q_proj.weight{part.suffix}"] = wide.parts[part.name]
    described = {"quant_method": "mxfp4-core", "formats": groups}
    found = names(Mxfp4Config(), save(tensors, config={"quantization_config": described}), stored=True)
    with pytest.raises(LoadError, match=r"q_proj: mxfp8 with activation mxfp8, .*v_proj: mxfp4 with activ"):
        found.decide(f"{LAYER}self_attn.qkv_proj")
