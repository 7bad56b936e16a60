"""The names that the plug-in takes from SGLang are in a release, with the arguments that are passed."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from released import INTEGRATION, arguments_of, check_name, source_of, taken, version_of

from mxfp4_sglang.words import check_version

COMPAT = INTEGRATION / "mxfp4-sglang" / "src" / "mxfp4_sglang" / "compat.py"
QUANTIZATION = "srt/layers/quantization/base_config.py"
LOADER = "srt/model_loader/loader.py"
DIFFUSION = "multimodal_gen/runtime"

CALLS = {  # file: class and method: the arguments by name, as SGLang passes them
    f"{QUANTIZATION}:LinearMethodBase.create_weights": (
        "layer input_size_per_partition output_partition_sizes input_size output_size params_dtype"
    ),
    f"{QUANTIZATION}:LinearMethodBase.apply": "layer x bias",
    f"{QUANTIZATION}:FusedMoEMethodBase.create_weights": (
        "layer num_experts hidden_size intermediate_size_per_partition params_dtype"
    ),
    f"{QUANTIZATION}:FusedMoEMethodBase.create_moe_runner": "layer moe_runner_config",
    f"{QUANTIZATION}:FusedMoEMethodBase.apply": "layer dispatch_output",
    f"{QUANTIZATION}:QuantizeMethodBase.process_weights_after_loading": "layer",
    f"{QUANTIZATION}:QuantizationConfig.get_quant_method": "layer prefix",
    f"{QUANTIZATION}:QuantizationConfig.override_quantization_method": "cls hf_quant_cfg user_quant",
    f"{QUANTIZATION}:QuantizationConfig.apply_weight_name_mapper": "hf_to_sglang_mapper",
    f"{LOADER}:_get_quantization_config": "model_config load_config",
    f"{LOADER}:DefaultModelLoader._get_weights_iterator": "source",
    "srt/configs/model_config.py:ModelConfig._verify_quantization": "",
    "srt/plugins/hook_registry.py:HookRegistry.register": "cls target hook hook_type",
}
DIFFUSION_CALLS = {
    f"{DIFFUSION}/layers/quantization/__init__.py:get_quantization_config": "quantization",
    f"{DIFFUSION}/loader/utils.py:get_param_names_mapping": "mapping_dict valid_target_names",
    f"{DIFFUSION}/platforms/plugins.py:apply_plugin_hooks": "",
}
SAID = {  # file: what it says there, word for word
    "srt/configs/model_config.py": ['supported in ROCm."'],
    "srt/plugins/__init__.py": ['"sglang.srt.plugins"', "SGLANG_PLUGINS"],
    "srt/layers/linear.py": ["WEIGHT_LOADER_V2_SUPPORTED", "self.quant_method.__class__.__name__ in"],
    "srt/layers/moe/fused_moe_triton/layer.py": ['"_sglang_require_global_experts"', "with_bias=with_bias"],
    "srt/layers/moe/token_dispatcher/standard.py": ["local_expert_mapping"],
}


@pytest.fixture(scope="module")
def source() -> Path:
    return source_of("sglang")


@pytest.fixture(scope="module")
def diffusion(source: Path) -> Path:
    """Return the source of a release whose diffusion server loads plug-ins."""
    if not (source / DIFFUSION / "platforms" / "plugins.py").exists():
        pytest.skip("the diffusion server of this release loads no plug-ins: 0.5.21 is the first")
    return source


def test_the_plug_in_takes_the_release(source: Path) -> None:
    check_version(version_of(source, ["sglang"]))


@pytest.mark.parametrize(("module", "name"), taken([COMPAT], "sglang"))
def test_the_names_are_there(source: Path, module: str, name: str) -> None:
    check_name(source, module, name)


@pytest.mark.parametrize(("place", "arguments"), CALLS.items())
def test_methods_get_the_arguments_that_ours_take(source: Path, place: str, arguments: str) -> None:
    assert arguments_of(source, place) == arguments.split()


@pytest.mark.parametrize(("place", "arguments"), DIFFUSION_CALLS.items())
def test_the_diffusion_server_has_the_wrapped_functions(diffusion: Path, place: str, arguments: str) -> None:
    assert arguments_of(diffusion, place) == arguments.split()


def test_the_diffusion_server_tells_a_config_which_component_it_is_for(diffusion: Path) -> None:
    text = (diffusion / DIFFUSION / "loader" / "transformer_load_utils.py").read_text(encoding="utf-8")
    (found,) = (
        node
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef) and node.name == "_resolve_quant_config"
    )
    assert {"hf_config", "server_args", "component_model_path"} <= {
        each.arg for each in found.args.kwonlyargs
    }


@pytest.mark.parametrize(("file", "words"), SAID.items())
def test_sglang_says_what_we_look_for(source: Path, file: str, words: list[str]) -> None:
    text = (source / file).read_text(encoding="utf-8")
    assert not [each for each in words if each not in text]
