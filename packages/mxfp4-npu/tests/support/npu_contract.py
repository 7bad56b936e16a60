"""What a torch_npu wheel promises, read out of its files: schemas, and Meta functions that run against a stub."""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

SCHEMAS = "torch_npu/csrc/aten/npu_native_functions_by_codegen.yaml"
META = "torch_npu/op_plugin/meta/_meta_registrations.py"
NUMBERS = {
    "int4": 285,
    "hifloat8": 290,
    "float8_e8m0fnu": 293,
    "float4_e2m1fn_x2": 296,
    "float4_e1m2fn_x2": 297,
}


@functools.cache
def schemas(wheel: Path) -> dict[str, torch._C.FunctionSchema]:
    """Return the schemas of all operators that torch can parse, by name; overloads have theirs behind a dot."""
    text = (wheel / SCHEMAS).read_text(encoding="utf-8")
    found = {}
    for line in re.findall(r"func: (npu_[^\n]+)", text):
        try:
            schema = torch._C.parse_schema(f"npu::{line.strip()}")
        except RuntimeError:  # a default that this torch cannot read; the operators here have none
            continue
        found[line.partition("(")[0]] = schema
    return found


def binds(schema: torch._C.FunctionSchema, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Return what does not fit when the operator is called so; empty where all does."""
    arguments = {argument.name: argument for argument in schema.arguments}
    positional = [argument for argument in schema.arguments if not argument.kwarg_only]
    if len(args) > len(positional):
        return f"{len(args)} positional arguments, it has {len(positional)}"
    if unknown := sorted(set(kwargs) - set(arguments)):
        return f"no argument {unknown[0]!r}"
    given = {**{a.name: v for a, v in zip(positional, args, strict=False)}, **kwargs}
    for name, argument in arguments.items():
        if name not in given:
            if not argument.has_default_value():
                return f"argument {name!r} is not given"
            continue
        kind, value = str(argument.type), given[name]
        right = {
            "Tensor": isinstance(value, torch.Tensor),
            "Optional[Tensor]": value is None or isinstance(value, torch.Tensor),
            "List[Tensor]": isinstance(value, list),
            "Optional[List[Tensor]]": value is None or isinstance(value, list),
            "int": type(value) is int,
            "Optional[int]": value is None or type(value) is int or isinstance(value, torch.dtype),
            "Optional[List[int]]": value is None or isinstance(value, list),
            "str": isinstance(value, str),
        }
        if not right[kind]:
            return f"{name} is {type(value).__name__}, it takes {kind}"
    return ""


@contextmanager
def _stub() -> Iterator[None]:
    """Let ``import torch_npu`` find what the Meta functions ask of it."""
    made = {}
    for name in ("", ".utils", ".utils._error_code", ".npu", ".npu.utils", ".npu._backends"):
        made[f"torch_npu{name}"] = ModuleType(f"torch_npu{name}")
    root = made["torch_npu"]
    for name, number in NUMBERS.items():
        setattr(root, name, number)
    error = made["torch_npu.utils._error_code"]
    error.ErrCode = type("ErrCode", (), dict.fromkeys(("PARAM", "VALUE", "TYPE", "NOT_SUPPORT"), ""))
    error.ops_error = str
    made["torch_npu.npu.utils"].get_cann_version = str
    made["torch_npu.npu._backends"].get_soc_version = int
    with pytest.MonkeyPatch.context() as patch:
        for name, module in made.items():
            patch.setitem(sys.modules, name, module)
        yield


@functools.cache
def meta_functions(wheel: Path) -> dict[str, Callable[..., Any]]:
    """Return the vendor's Meta functions by the name of their operator. Nothing is registered with torch."""
    found: dict[str, Callable[..., Any]] = {}

    def impl(library: object, name: str, *rest: object) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def keep(function: Callable[..., Any]) -> Callable[..., Any]:
            found[name] = function
            return function

        return keep

    tree = ast.parse((wheel / META).read_text(encoding="utf-8"))
    # Definitions alone: bare expressions register with torch, and so does what torch.library would give.
    tree.body = [
        node
        for node in tree.body
        if not isinstance(node, ast.Expr) and getattr(node, "module", "") != "torch.library"
    ]
    scope = {"Library": lambda *names: None, "impl": impl, "__name__": "vendor_meta"}
    with _stub():
        exec(compile(tree, META, "exec"), scope)
    return found


def shaped(value: Any) -> Any:
    """Return the same argument on the meta device, with its strides."""
    if isinstance(value, torch.Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return [shaped(each) for each in value] if isinstance(value, list) else value
