"""The names that the plug-in takes from SGLang are in a release, with the arguments that are passed: it is read.

``MXFP4_ENGINE_SOURCE`` is a folder that holds an unpacked wheel (``nox -s engine_names`` makes one); without it the
installed engine is read, and without that there is nothing to read.
"""

from __future__ import annotations

import ast
import importlib.util
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPAT = ROOT / "integration" / "mxfp4-sglang" / "src" / "mxfp4_sglang" / "compat.py"
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
    if folder := os.environ.get("MXFP4_ENGINE_SOURCE"):
        return Path(folder) / "sglang"
    found = importlib.util.find_spec("sglang")
    if found is None or not found.submodule_search_locations:
        pytest.skip("no SGLang to read: nox -s engine_names")
    return Path(next(iter(found.submodule_search_locations)))


@pytest.fixture(scope="module")
def diffusion(source: Path) -> Path:
    """Return the source of a release whose diffusion server loads plug-ins."""
    if not (source / DIFFUSION / "platforms" / "plugins.py").exists():
        pytest.skip("the diffusion server of this release loads no plug-ins: 0.5.21 is the first")
    return source


def taken() -> list[tuple[str, str]]:
    """Return (module, name) of all that `compat` imports from SGLang."""
    tree = ast.parse(COMPAT.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return [
        (each.module, alias.name)
        for each in imports
        if each.module and each.module.startswith("sglang.")
        for alias in each.names
    ]


def bound(path: Path) -> set[str]:
    """Return the names that a module binds."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {each.id for each in targets if isinstance(each, ast.Name)}
    return found


def arguments_of(source: Path, place: str) -> list[str]:
    file, _, name = place.partition(":")
    body = ast.parse((source / file).read_text(encoding="utf-8")).body
    *owners, last = name.split(".")
    for owner in owners:
        (inner,) = (node for node in body if isinstance(node, ast.ClassDef) and node.name == owner)
        body = inner.body
    (function,) = (node for node in body if isinstance(node, ast.FunctionDef) and node.name == last)
    return [each.arg for each in function.args.args if each.arg != "self"]


@pytest.mark.parametrize(("module", "name"), taken())
def test_the_names_are_there(source: Path, module: str, name: str) -> None:
    path = source.joinpath(*module.split(".")[1:])
    if (path / f"{name}.py").exists():
        return
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    assert name in bound(file), f"{module} has no {name}"


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
