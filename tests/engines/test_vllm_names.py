"""The names that the plug-in takes from vLLM are in a release, with the arguments that are passed."""

from __future__ import annotations

from pathlib import Path

import pytest
from released import INTEGRATION, arguments_of, check_name, source_of, taken, version_of

from mxfp4_vllm.words import DISTRIBUTIONS, check_version

COMPAT = INTEGRATION / "mxfp4-vllm" / "src" / "mxfp4_vllm" / "compat.py"
CALLS = {  # class: method: the arguments that our methods take by name, as vLLM passes them
    "model_executor/layers/linear.py:LinearMethodBase.create_weights": (
        "layer input_size_per_partition output_partition_sizes input_size output_size params_dtype"
    ),
    "model_executor/layers/linear.py:LinearMethodBase.apply": "layer x bias",
    "model_executor/layers/fused_moe/fused_moe_method_base.py:FusedMoEMethodBase.create_weights": (
        "layer num_experts hidden_size intermediate_size_per_partition params_dtype"
    ),
    "model_executor/layers/fused_moe/fused_moe_method_base.py:FusedMoEMethodBase.apply": (
        "layer x topk_weights topk_ids shared_experts shared_experts_input"
    ),
    "model_executor/layers/quantization/base_config.py:QuantizationConfig.get_quant_method": "layer prefix",
    "model_executor/layers/quantization/base_config.py:QuantizationConfig.override_quantization_method": (
        "cls hf_quant_cfg user_quant hf_config"
    ),
    "model_executor/kernels/linear/mxfp4/base.py:MxFp4LinearKernel.apply_weights": "layer x bias",
    "model_executor/kernels/linear/mxfp4/base.py:MxFp4LinearKernel.can_implement": "cls config",
}


@pytest.fixture(scope="module")
def source() -> Path:
    return source_of("vllm")


def test_the_plug_in_takes_the_release(source: Path) -> None:
    check_version(version_of(source, DISTRIBUTIONS))


@pytest.mark.parametrize(("module", "name"), taken([COMPAT], "vllm"))
def test_the_names_are_there(source: Path, module: str, name: str) -> None:
    check_name(source, module, name)


@pytest.mark.parametrize(("place", "arguments"), CALLS.items())
def test_methods_get_the_arguments_that_ours_take(source: Path, place: str, arguments: str) -> None:
    assert arguments_of(source, place) == arguments.split()


def test_a_reload_says_whether_it_is_under_way(source: Path) -> None:
    text = (source / "model_executor/model_loader/reload/types.py").read_text(encoding="utf-8")
    assert "def can_load(self) -> bool" in text
    text = (source / "model_executor/kernels/linear/__init__.py").read_text(encoding="utf-8")
    assert "_POSSIBLE_MXFP4_KERNELS" in text and 'kernel_type == "mxfp4"' in text


def test_compiled_graphs_are_found_by_what_plug_ins_add(source: Path) -> None:
    text = (source / "config/vllm.py").read_text(encoding="utf-8")
    hashed = text.partition("def compute_hash(")[2].partition("\n    @")[0]
    assert "additional_config: dict" in text and "json.dumps(additional_config" in hashed
