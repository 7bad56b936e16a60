"""The names that the plug-in takes from vLLM are in a release, with the arguments that are passed: read, not imported.

``MXFP4_ENGINE_SOURCE`` is a folder that holds an unpacked wheel (``nox -s engine_names`` makes one of the newest
release); without it the installed engine is read, and without that there is nothing to read.
"""

from __future__ import annotations

import ast
import importlib.util
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPAT = ROOT / "integration" / "mxfp4-vllm" / "src" / "mxfp4_vllm" / "compat.py"
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
    if folder := os.environ.get("MXFP4_ENGINE_SOURCE"):
        return Path(folder) / "vllm"
    found = importlib.util.find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        pytest.skip("no vLLM to read: nox -s engine_names")
    return Path(next(iter(found.submodule_search_locations)))


def taken() -> list[tuple[str, str]]:
    """Return (module, name) of all that `compat` imports from vLLM."""
    tree = ast.parse(COMPAT.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return [
        (each.module, alias.name)
        for each in imports
        if each.module and each.module.startswith("vllm.")
        for alias in each.names
    ]


def defined(path: Path) -> set[str]:
    """Return the names that a module binds at its top."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {each.id for each in targets if isinstance(each, ast.Name)}
            strings = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
            found |= {each for each in strings if isinstance(each, str) and each.isidentifier()}
    return found


@pytest.mark.parametrize(("module", "name"), taken())
def test_the_names_are_there(source: Path, module: str, name: str) -> None:
    path = source.joinpath(*module.split(".")[1:])
    if (path / name).is_dir() or (path / f"{name}.py").exists():
        return
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    assert name in defined(file), f"{module} has no {name}"


@pytest.mark.parametrize(("place", "arguments"), CALLS.items())
def test_methods_get_the_arguments_that_ours_take(source: Path, place: str, arguments: str) -> None:
    file, _, name = place.partition(":")
    owner, _, method = name.partition(".")
    tree = ast.parse((source / file).read_text(encoding="utf-8"))
    (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == owner)
    (function,) = (node for node in found.body if isinstance(node, ast.FunctionDef) and node.name == method)
    names = [each.arg for each in function.args.args if each.arg != "self"]
    assert names == arguments.split()


def test_a_reload_says_whether_it_is_under_way(source: Path) -> None:
    text = (source / "model_executor/model_loader/reload/types.py").read_text(encoding="utf-8")
    assert "def can_load(self) -> bool" in text
    text = (source / "model_executor/kernels/linear/__init__.py").read_text(encoding="utf-8")
    assert "_POSSIBLE_MXFP4_KERNELS" in text and 'kernel_type == "mxfp4"' in text
