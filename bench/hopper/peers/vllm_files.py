"""What is taken out of a vLLM wheel without importing vLLM: two libraries, and a few sources."""

from __future__ import annotations

import ast
import importlib.util
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor

DENSE = "vllm/_C_stable_libtorch.abi3.so"
MOE = "vllm/_moe_C_stable_libtorch.abi3.so"
LAYERS = "vllm/model_executor/layers"
MUL_SUM = f"{LAYERS}/fused_moe/moe_fused_mul_sum.py"
TRITON_EXPERTS = f"{LAYERS}/fused_moe/experts/gpt_oss_triton_kernels_moe.py"
TRITON_KERNELS = "vllm/third_party/triton_kernels/__init__.py"


def missing(folder: Path | None, *files: str) -> str | None:
    """Say which of these files the folder lacks, or return None."""
    if folder is None:
        return "no folder of peers given (--peer-path or MXFP4_PEERS)"
    lacking = [file for file in files if not (folder / file).exists()]
    return f"{', '.join(lacking)} not in {folder}" if lacking else None


def wheels(folder: Path | None) -> list[str]:
    """Name the wheels of peers in the folder, with their versions."""
    found = sorted(path.stem for path in folder.glob("*.dist-info")) if folder else []
    return [name for name in found if name.split("-")[0] in ("vllm", "humming_kernels")]


@cache
def load_library(path: Path) -> str | None:
    """Load a library of operators; return why it does not load, or None."""
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{path.name} does not load: {error}"
    return None


def load_source(path: Path, name: str) -> ModuleType:
    """Import one source file of vLLM, with stubs for the parts of vLLM that it imports."""
    import triton
    import triton.language as tl

    platform = SimpleNamespace(
        is_cuda=lambda: True, get_device_capability=lambda _=0: torch.cuda.get_device_capability()
    )
    stubs = {
        "vllm": {},
        "vllm.platforms": {"current_platform": platform},
        "vllm.triton_utils": {"tl": tl, "triton": triton},
    }
    kept = {key: sys.modules.get(key) for key in stubs}
    for key, values in stubs.items():
        sys.modules[key] = ModuleType(key)
        sys.modules[key].__dict__.update(values)
    try:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} is no Python source")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        for key, value in kept.items():
            if value is None:
                del sys.modules[key]
            else:
                sys.modules[key] = value
    return module


def load_functions(path: Path, names: set[str], name: str) -> ModuleType:
    """Import only some functions of a source file that imports too much; Triton needs them in a file of their own."""
    text = path.read_text(encoding="utf-8")
    lines, parts = text.splitlines(keepends=True), []
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name in names:
            start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            parts.append("".join(lines[start - 1 : node.end_lineno]))
    if len(parts) != len(names):
        raise ImportError(f"{path} does not define all of {sorted(names)}")
    source = Path(tempfile.mkdtemp(prefix="mxfp4-peers-")) / f"{name}.py"
    source.write_text("import torch\nimport triton\nimport triton.language as tl\n\n\n" + "\n\n".join(parts))
    return load_source(source, name)


def align(ids: Tensor, block: int, experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sort slots by expert, each expert padded to whole blocks, as vLLM's ``moe_align_block_size`` does.

    Returns:
        Slots by expert, the expert of each block, and how many slots there are with padding; int32.
    """
    longest = ids.numel() + experts * (block - 1)
    if ids.numel() < experts:
        longest = min(ids.numel() * block, longest)
    slots = ids.new_empty(longest)
    blocks = ids.new_empty(-(-longest // block))
    padded = ids.new_empty(1)
    torch.ops._moe_C.moe_align_block_size(ids, experts, block, slots, blocks, padded, None, None)
    return slots, blocks, padded
