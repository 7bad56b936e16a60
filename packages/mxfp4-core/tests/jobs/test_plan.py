"""The plan: from headers alone, with every finding listed, for people and for programs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_models import H200, Shapes, moe, row, write

from mxfp4_core.arithmetic.shapes import mx_bytes
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.errors import CheckpointError, ConfigError, DialectError, PatternError
from mxfp4_core.jobs.plan import plan_checkpoint


def test_sizes_are_those_of_the_bytes(model: Path) -> None:
    found = plan_checkpoint(model)
    shapes, _ = moe()
    quantized = {each.name for each in found.quantized}
    assert quantized == {name for name in shapes if "_proj" in name}
    assert found.bytes_before == sum(each.bytes_before for each in found.rows) == _bytes(shapes, shapes)
    codes_and_scales = sum(mx_bytes(shapes[name]) for name in quantized)
    assert found.bytes_after == codes_and_scales + _bytes(shapes, set(shapes) - quantized)
    assert found.rank_bytes == found.bytes_after and found.padding_bytes == 0


def _bytes(shapes: Shapes, names: Any) -> int:
    total = 0
    for name in names:
        count = 2
        for size in shapes[name]:
            count *= size
        total += count
    return total


@given(st.integers(1, 40), st.integers(1, 200))
def test_the_size_of_a_weight_is_that_of_its_codes_and_scales(n: int, k: int) -> None:
    import torch

    from mxfp4_core import quantize

    packed = quantize(torch.zeros(n, k, dtype=torch.bfloat16), tail="pad")
    assert mx_bytes((n, k)) == packed.codes.numel() + packed.scales.numel()


def test_the_peak_is_everything_quantised_and_the_largest_unit(model: Path) -> None:
    found = plan_checkpoint(model)
    assert found.largest_unit is not None
    assert found.largest_unit.unit_bytes == 192 * 128 * 2
    assert found.peak_bytes() == found.bytes_after + 192 * 128 * 2
    assert found.peak_bytes(device_copy=True) == found.bytes_after + 2 * 192 * 128 * 2


def test_ranks_share_what_engines_cut(model: Path) -> None:
    whole, halves = plan_checkpoint(model), plan_checkpoint(model, tp=2)
    assert halves.findings == []
    for each in whole.quantized:
        assert row(halves, each.name).rank_bytes * 2 == each.rank_bytes, each.name
        assert row(halves, each.name).unit_bytes * 2 == each.unit_bytes
    assert row(halves, "model.embed_tokens.weight").rank_bytes == 512 * 128 * 2
    experts = plan_checkpoint(model, tp=4, ep=4)
    assert row(experts, "model.layers.0.mlp.experts.3.up_proj.weight").rank_bytes == mx_bytes((192, 128)) // 4


def test_kept_weights_are_shared_among_ranks_too(model: Path) -> None:
    found = plan_checkpoint(model, Mxfp4Config(ignore=["self_attn"]), tp=2)
    kept = row(found, "model.layers.0.self_attn.o_proj.weight")
    assert kept.rank_bytes * 2 == kept.bytes_before == kept.bytes_after


def test_every_finding_is_listed_once_with_its_advice(model: Path) -> None:
    found = plan_checkpoint(model, tp=4)
    (finding,) = found.findings
    assert "model.layers.{0-1}.mlp.experts.{0-3}.down_proj.weight" in finding
    assert "k = 192 over 4 ranks" in finding and "here it would be 48" in finding and "2, 3 or 6" in finding
    assert "tail='pad' lets each rank pad" in finding
    assert plan_checkpoint(model, Mxfp4Config(tail="pad"), tp=4).findings == []
    assert len(plan_checkpoint(model, tp=8).findings) == 3
    assert "4 over 3 ranks" in "".join(plan_checkpoint(model, ep=3).findings)


def test_blocks_dtypes_and_dialects_are_checked(tmp_path: Path) -> None:
    odd = write(tmp_path / "odd", {"a.q_proj.weight": (64, 48)}, {})
    assert "K is a multiple of 32" in plan_checkpoint(odd).findings[0]
    assert plan_checkpoint(odd, Mxfp4Config(tail="pad")).findings == []
    assert plan_checkpoint(odd, Mxfp4Config(tail="pad")).bytes_after == 64 * (32 + 2)
    assert (
        "cannot be written in the dialect quark"
        in plan_checkpoint(odd, Mxfp4Config(tail="pad", dialect="quark")).findings[0]
    )
    integers = write(tmp_path / "integers", {"a.q_proj.weight": (64, 64)}, {}, dtype="I32")
    assert "dtype I32" in plan_checkpoint(integers).findings[0]


def test_nothing_to_quantise_is_a_finding(tmp_path: Path) -> None:
    path = write(tmp_path / "norms", {"model.norm.weight": (64,)}, {})
    assert plan_checkpoint(path).findings == ["nothing to quantise: every tensor is kept; see the reasons"]


def test_k_first_tensors_are_shown_with_k_last(tmp_path: Path) -> None:
    shapes = {
        "model.layers.0.mlp.experts.gate_up_proj": (4, 64, 192),
        "model.layers.0.mlp.experts.down_proj": (4, 96, 64),
        "model.layers.0.mlp.experts.gate_up_proj_bias": (4, 192),
    }
    config = {"model_type": "gpt_oss", "num_local_experts": 4, "experts_per_token": 2}
    found = plan_checkpoint(write(tmp_path / "gpt", shapes, config), backend="reference", device=H200)
    assert row(found, "model.layers.0.mlp.experts.gate_up_proj").shape == (4, 192, 64)
    assert row(found, "model.layers.0.mlp.experts.down_proj").shape == (4, 64, 96)
    (fit,) = found.fits
    assert (
        "moe m=any n=96 k=64 experts=4/4 top_k=2" in fit.question
        and "bias gate:clamped rows:interleaved" in fit.question
    )
    assert found.findings == []


class TestRefusals:
    def test_a_pattern_that_matches_nothing(self, model: Path) -> None:
        with pytest.raises(PatternError, match=r"mlp\.experts"):
            plan_checkpoint(model, Mxfp4Config(ignore=["mlp.expert"]))

    def test_a_checkpoint_that_is_quantised_already(self, model: Path) -> None:
        config = json.loads((model / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
        (model / "config.json").write_text(json.dumps(config))
        with pytest.raises(DialectError, match="gptq"):
            plan_checkpoint(model)

    def test_a_damaged_checkpoint(self, model: Path) -> None:
        with open(model / "model.safetensors", "r+b") as file:
            file.truncate(100)
        with pytest.raises(CheckpointError):
            plan_checkpoint(model)

    @pytest.mark.parametrize(("tp", "ep"), [(0, 1), (1, 0), (2, 3), (-2, 1)])
    def test_parallel_sizes_that_do_not_go_together(self, model: Path, tp: int, ep: int) -> None:
        with pytest.raises(ConfigError, match="do not go together"):
            plan_checkpoint(model, tp=tp, ep=ep)


def test_a_large_model_is_planned_in_seconds(tmp_path: Path) -> None:
    path = write(tmp_path / "large", *moe(layers=24, experts=128, hidden=2048, inner=768))
    start = time.perf_counter()
    found = plan_checkpoint(path, tp=2)
    assert len(found.rows) > 9000 and found.bytes_before > 25e9 and found.findings == []
    assert time.perf_counter() - start < 20
