from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mxfp4_core import Mxfp4Config, dialects
from mxfp4_core.arithmetic import Part
from mxfp4_core.checkpoint.hashing import tensor_sha256
from mxfp4_core.checkpoint.reader import open_checkpoint
from mxfp4_core.dialects.base import Entry
from mxfp4_core.dialects.pairs import accepted
from mxfp4_core.dialects.recipes import Read
from mxfp4_core.dialects.source import Source
from mxfp4_core.errors import ConfigError, DialectError
from mxfp4_core.jobs.quantize import quantize_checkpoint

Save = Callable[..., Path]


CODES, SCALES = torch.zeros(4, 32, dtype=torch.uint8), torch.full((4, 2), 127, dtype=torch.uint8)


NATIVE = {"quant_method": "mxfp4-core"}


CT_GROUP = {"weights": {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}}


CT = {"quant_method": "compressed-tensors", "config_groups": {"group_0": CT_GROUP}}


QUARK = {
    "quant_method": "quark",
    "global_quant_config": {"weight": {"dtype": "fp4", "group_size": 32, "scale_format": "e8m0"}},
}


@pytest.mark.parametrize(
    ("evidence", "dialect", "activation"),
    [
        ("quark_mxfp4_weight_only", "quark", "none"),
        ("quark_mxfp4", "quark", "mxfp4"),
        ("ct_mxfp4a16", "compressed-tensors", "none"),
        ("ct_mxfp4", "compressed-tensors", "mxfp4"),
    ],
)
def test_writes_what_the_vendor_writes(
    vendor_llama: Path, tmp_path: Path, evidence: str, dialect: str, activation: str
) -> None:
    expected = json.loads((vendor_llama / f"{evidence}.json").read_text())
    config = Mxfp4Config.from_dict({"profile": dialect, "dialect": dialect, "activation": activation})
    quantize_checkpoint(vendor_llama, tmp_path / "target", config)
    written = open_checkpoint(tmp_path / "target")
    assert written.config["quantization_config"] == expected["quantization_config"]
    assert {
        name: {"dtype": info.dtype, "shape": list(info.shape), "sha256": tensor_sha256(written, name)}
        for name, info in written.tensors.items()
    } == expected["tensors"]
    assert list(written.tensors) == list(expected["tensors"])  # also in the same order


@pytest.mark.parametrize("evidence", ["quark_mxfp4_weight_only", "quark_mxfp4", "ct_mxfp4a16", "ct_mxfp4"])
def test_reads_what_the_vendor_wrote(vendor_llama: Path, evidence: str) -> None:
    vendor = json.loads((vendor_llama / f"{evidence}.json").read_text())
    tensors = {name: (row["dtype"], tuple(row["shape"])) for name, row in vendor["tensors"].items()}
    source = Source({"quantization_config": vendor["quantization_config"]}, tensors)
    found = [name for name in dialects.names() if dialects.get(name).recognise(source)]
    assert found == ["quark" if "quark" in evidence else "compressed-tensors"]
    contents = dialects.get(found[0]).read(source)
    assert len(contents.entries) == 7
    entry = contents.entries["model.layers.0.mlp.down_proj.weight"]
    assert entry.shape == (128, 192)
    assert contents.kept == ("lm_head",)
    assert contents.activation == ("mxfp4" if evidence in ("quark_mxfp4", "ct_mxfp4") else "none")
    assert contents.profile == ("quark" if "quark" in evidence else "")


# Static FP8 activations in Quark are refused, see the bad input of the pipeline.


LINEAR = ("mxfp4-core", "compressed-tensors", "quark")  # dialects for linears of any model


MODES = [(name, mode) for name in LINEAR for mode in ("none", "mxfp4", "fp8")]


@pytest.mark.parametrize(("dialect", "activation"), [mode for mode in MODES if mode != ("quark", "fp8")])
def test_what_is_written_is_recognised_and_read_back(
    save: Save, dense: dict[str, torch.Tensor], dialect: str, activation: str
) -> None:
    source = save(dense)
    config = Mxfp4Config.from_dict({"dialect": dialect, "activation": activation, "backend": "reference"})
    quantize_checkpoint(source, source.parent / "target", config)
    written = open_checkpoint(source.parent / "target")
    found = dialects.read(written)
    assert found is not None
    assert found[0].name == dialect
    assert found[1].activation == activation
    assert {name: entry.shape for name, entry in found[1].entries.items()} == {
        name: tuple(weight.shape) for name, weight in dense.items() if "proj.weight" in name
    }
    assert "backend" not in json.dumps(written.config)


def test_stacked_and_padded_weights_are_read_back(save: Save) -> None:
    experts = "model.layers.0.mlp.experts.down_proj"
    source = save(
        {experts: torch.ones(2, 64, 8), "model.layers.0.mlp.shared.up_proj.weight": torch.ones(3, 40)},
        config={"model_type": "gpt_oss"},
    )
    quantize_checkpoint(source, source.parent / "target", Mxfp4Config.from_dict({"tail": "pad"}))
    found = dialects.read(open_checkpoint(source.parent / "target"))
    assert found is not None
    entries = found[1].entries
    parts = {"codes": Read("U8", (2, 8, 32), experts), "scales": Read("U8", (2, 8, 2), f"{experts}_scale")}
    assert entries[experts] == Entry(experts, (2, 8, 64), parts, transposed=True)
    assert entries["model.layers.0.mlp.shared.up_proj.weight"].shape == (3, 40)
    assert found[1].profile == "even/even"


@pytest.mark.parametrize(
    "names", [["hc_head.hc_scale"], ["b", "b_scale"], ["b.weight", "b.weight_scale"]], ids=str
)
def test_tensors_in_high_precision_may_be_called_scales(save: Save, names: list[str]) -> None:
    tensors = {"a.weight": CODES, "a.weight_scale": SCALES, **{name: torch.ones(3) for name in names}}
    found = dialects.read(open_checkpoint(save(tensors, config={"quantization_config": NATIVE})))
    assert found is not None
    assert (list(found[1].entries), sorted(found[1].tensors)) == (["a.weight"], names)


def native(**facts: object) -> dict[str, Any]:
    return {**NATIVE, **facts}


PAIR = {"a.weight": CODES, "a.weight_scale": SCALES}


CONTRADICTIONS: dict[str, tuple[dict[str, torch.Tensor], dict[str, Any], str]] = {
    "high precision": (
        {"a.weight": torch.ones(4, 64)},
        NATIVE,
        "no pair of codes and scales; the tensors are F32",
    ),
    "no scales": ({"a.weight": CODES}, NATIVE, "codes 'a.weight' without 'a.weight_scale'"),
    "no codes": ({**PAIR, "b.weight_scale": SCALES.clone()}, NATIVE, "scales 'b.weight_scale' without codes"),
    "codes of bfloat16": (
        {"a.weight": torch.ones(4, 64).bfloat16(), "a.weight_scale": SCALES},
        NATIVE,
        "BF16",
    ),
    "scales of bfloat16": ({"a.weight": CODES, "a.weight_scale": SCALES.bfloat16()}, NATIVE, "BF16"),
    "too few scales": ({"a.weight": CODES, "a.weight_scale": SCALES[:, :1].contiguous()}, NATIVE, "[4, 1]"),
    "too few rows": ({"a.weight": CODES, "a.weight_scale": SCALES[:3].contiguous()}, NATIVE, "[3, 2]"),
    "half a block": (
        {"a.weight": torch.zeros(4, 8, dtype=torch.uint8), "a.weight_scale": SCALES},
        NATIVE,
        "[4, 8]",
    ),
    "a vector": ({"a.weight": CODES[0].clone(), "a.weight_scale": SCALES[0].clone()}, NATIVE, "[32]"),
    "another logical shape": (PAIR, native(shapes={"a.weight": [4, 20]}), "[4, 20]"),
    "a shape of nothing": (PAIR, native(shapes={"b.weight": [4, 64]}), "'b.weight', which is not quantised"),
    "shapes that are a list": (PAIR, native(shapes=[1]), "shapes"),
    "shapes that are one shape": (PAIR, native(shapes=[4, 64]), "shapes"),
    "shapes of text": (PAIR, native(shapes={"a.weight": ["x"]}), "shapes"),
    "transposed nothing": (PAIR, native(transposed=["b.weight"]), "'b.weight', which is not quantised"),
    "transposed number": (PAIR, native(transposed=3), "transposed"),
    "compressed-tensors without pairs": ({"a.weight": torch.ones(4, 64)}, CT, "no pair"),
    "compressed-tensors with mixed groups": (
        {"a.weight_packed": CODES, "a.weight_scale": SCALES},
        {**CT, "config_groups": {"group_0": CT_GROUP, "group_1": {"weights": {"num_bits": 8}}}},
        "not MXFP4",
    ),
    "compressed-tensors with rotations": (
        {"a.weight_packed": CODES, "a.weight_scale": SCALES},
        {**CT, "transform_config": {"config_groups": {"R1": {}}}},
        "transforms",
    ),
    "quark with layers of its own": (PAIR, {**QUARK, "layer_quant_config": {"*": {}}}, "layer_quant_config"),
    "quark without packed weights": ({"a.weight": torch.ones(4, 64).bfloat16()}, QUARK, "no pair"),
}


@pytest.mark.parametrize(
    ("tensors", "described", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys()
)
def test_a_description_that_contradicts_the_tensors(
    save: Save, tensors: dict[str, torch.Tensor], described: dict[str, Any], message: str
) -> None:
    checkpoint = open_checkpoint(save(tensors, config={"quantization_config": described}))
    with pytest.raises(DialectError) as caught:
        dialects.read(checkpoint)
    assert message in caught.value.seen


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_description_is_read_or_refused(data: st.DataObject) -> None:
    fp8 = {"quant_method": "fp8", "expert_dtype": "fp4", "weight_block_size": [4, 64]}
    ours = native(shapes={"a.weight": [4, 64]}, transposed=[])
    base = data.draw(st.sampled_from([ours, CT, QUARK, {"quant_method": "mxfp4"}, fp8]))
    described = json.loads(json.dumps(base))
    junk = st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-3, 70)
        | st.text(max_size=3)
        | st.sampled_from(["a.weight", "fp4"]),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["weights", "weight", "x"]), inner)
        ),
        max_leaves=4,
    )
    keys = [
        "shapes",
        "transposed",
        "activation",
        "weights_profile",
        "config_groups",
        "ignore",
        "transform_config",
    ]
    keys += [
        "global_quant_config",
        "layer_quant_config",
        "exclude",
        "provider",
        "weights_format",
        "interleaved",
    ]
    keys += ["modules_to_not_convert", "weight_block_size", "expert_dtype"]
    for key in data.draw(st.lists(st.sampled_from(keys), max_size=2)):
        described[key] = data.draw(junk)
    tensors = {"a.weight": ("U8", (4, 32)), "a.weight_scale": ("U8", (4, 2))}
    tensors |= {"b.weight_packed": ("U8", (4, 32)), "b.weight_scale": ("U8", (4, 2))}
    tensors |= {"c.down_proj_blocks": ("U8", (2, 4, 2, 16)), "c.down_proj_scales": ("U8", (2, 4, 2))}
    tensors |= {"d.weight": ("I8", (4, 32)), "d.scale": ("F8_E8M0", (4, 2))}
    tensors |= {"e.weight": ("F8_E4M3", (4, 64)), "e.scale": ("F8_E8M0", (1, 1))}
    strange = st.tuples(
        st.sampled_from(["U8", "I8", "F4", "BF16"]), st.lists(st.integers(0, 70), max_size=4).map(tuple)
    )
    for name in data.draw(st.lists(st.sampled_from(sorted(tensors)), max_size=2)):
        tensors[name] = data.draw(strange)
    for name in dialects.names():
        dialect, source = dialects.get(name), Source({"quantization_config": described}, tensors)
        if dialect.recognise(source):
            with suppress(DialectError):
                dialect.read(source)


def test_an_unknown_dialect() -> None:
    with pytest.raises(ConfigError, match="did you mean 'compressed-tensors'"):
        dialects.get("compressed-tensor")
    with pytest.raises(ConfigError, match="did you mean 'quark'"):
        dialects.get("Quark")
    with pytest.raises(
        ConfigError,
        match="mxfp4-core, auto-round, compressed-tensors, deepseek-v4, fp-quant, gguf, gpt-oss, ",
    ):
        dialects.get("zzz")


def test_tied_heads_and_routers_are_named(save: Save, dense: dict[str, torch.Tensor]) -> None:
    del dense["lm_head.weight"]
    dense["model.layers.0.mlp.gate.weight"] = torch.ones(4, 64)
    source = save(dense, config={"tie_word_embeddings": True})
    quantize_checkpoint(
        source, source.parent / "target", Mxfp4Config.from_dict({"dialect": "compressed-tensors"})
    )
    described = open_checkpoint(source.parent / "target").config["quantization_config"]
    assert described["ignore"] == ["model.layers.0.mlp.gate", "lm_head"]


@pytest.mark.parametrize(
    ("dtype", "words"),
    [("uint8", ("U8", "F8_E8M0")), ("float16", ("F16",)), ("bfloat16", ("BF16",)), ("int8", ("I8",))],
)
def test_a_part_of_any_dtype_of_safetensors_has_a_word(dtype: str, words: tuple[str, ...]) -> None:
    part = Part("scales", "_scale", dtype, getattr(torch, dtype).itemsize, 32)
    assert accepted(part) == words
