"""What this package calls of AITER, and how it finds out what is installed: from the files, without an import.

Importing ``aiter`` asks the driver for a device and may start a compiler, so no verdict does it. The functions are
found by where they stand and what their arguments are called, not by a version: the wheel 0.1.7 and the head of the
repository differ, and people build both. The same reading is the contract test of the wheel.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Final


@dataclass(frozen=True)
class Call:
    """One function of AITER that is called.

    Attributes:
        name: of the function; of a class or a table, whose members are used, too.
        homes: modules in which it may stand, the newest place last.
        arguments: the names that are passed, ``a|b`` where they differ between versions and the place counts; empty for
            what is no function.
        either: of these, whichever the function has is passed.
        instead: another name that does the same.
    """

    name: str
    homes: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    either: tuple[str, ...] = ()
    instead: tuple[str, ...] = ()


_TRITON = "aiter.ops.triton"

CALLS: Final = {
    call.name: call
    for call in (
        Call(
            "gemm_a4w4",
            ("aiter.ops.gemm_op_a4w4",),
            ("A", "B", "A_scale", "B_scale", "bpreshuffle"),
            either=("out", "dtype"),
        ),
        Call(
            "gemm_afp4wfp4",
            (f"{_TRITON}.gemm_afp4wfp4", f"{_TRITON}.gemm.basic.gemm_afp4wfp4"),
            ("x", "w", "x_scales", "w_scales", "dtype"),
        ),
        Call(
            "gemm_afp4wfp4_preshuffle",
            (f"{_TRITON}.gemm_afp4wfp4", f"{_TRITON}.gemm.basic.gemm_afp4wfp4"),
            ("x|x_fp4", "w|w_preshuf", "x_scales", "w_scales", "dtype"),
            instead=("gemm_afp4wfp4_preshuffled_weight_scales",),
        ),
        Call(
            "fused_moe_mxfp4",
            (f"{_TRITON}.moe_op_mxfp4", f"{_TRITON}.moe.moe_op_mxfp4"),
            (
                *(
                    "A",
                    "B",
                    "C",
                    "A_scale",
                    "B_scale",
                    "A_mx_scale",
                    "B_mx_scale",
                    "topk_weights",
                    "topk_ids",
                ),
                *("sorted_token_ids", "expert_ids", "num_tokens_post_padded", "mul_routed_weight", "top_k"),
                *("swizzle_mx_a", "swizzle_mx_b", "config", "compute_type"),
            ),
        ),
        Call(
            "fused_moe",
            ("aiter.fused_moe",),
            (
                *("hidden_states", "w1", "w2", "topk_weight", "topk_ids", "expert_mask", "activation"),
                *("quant_type", "w1_scale", "w2_scale"),
            ),
        ),
        Call(
            "dynamic_mxfp4_quant",
            (f"{_TRITON}.quant", f"{_TRITON}.quant.quant"),
            ("x",),
        ),
        Call("torch_to_triton_dtype", (f"{_TRITON}.utils.types",)),
        Call("QuantType", ("aiter.ops.enum",)),
        Call("ActivationType", ("aiter.ops.enum",)),
    )
}
"""By name."""

MODES: Final = "aiter.utility.mx_types"
"""The module with the scale rules of AITER's HIP quantizer, since its default rounds maxima over 6 up (v0.1.16)."""

TIES_EVEN: Final = "_mxfp4_quant_op"
"""The Triton quantizer that rounds ties away in the wheel, and to even since v0.1.12."""


@dataclass(frozen=True)
class Found:
    """One function as it stands somewhere: its module, its own name, and its arguments."""

    module: str
    name: str
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contract:
    """What an AITER can be called with.

    Attributes:
        calls: by the names of ``CALLS``; what is absent has no entry.
        findings: what is absent or has moved, in words, by the same names.
        fused_profile: by which profile ``fused_moe`` quantises.
        quantizer_profile: by which profile ``dynamic_mxfp4_quant`` does.
    """

    calls: Mapping[str, Found] = field(default_factory=dict)
    findings: Mapping[str, str] = field(default_factory=dict)
    fused_profile: str = "aiter-hip-0.1.7"
    quantizer_profile: str = "aiter-triton-0.1.7"

    def has(self, *names: str) -> bool:
        """Say whether all of these can be called as this package calls them."""
        return all(name in self.calls for name in names)

    def missing(self, *names: str) -> str:
        """Return in words which of these cannot be called, and why."""
        return "; ".join(self.findings[name] for name in names if name in self.findings)


def read(package: Path) -> Contract:
    """Read the contract of an AITER from its files.

    Args:
        package: the folder ``aiter``.
    """
    calls: dict[str, Found] = {}
    findings: dict[str, str] = {}
    for name, call in CALLS.items():
        found = _find(package, call)
        if isinstance(found, Found):
            calls[name] = found
        else:
            findings[name] = found
    return Contract(
        calls,
        findings,
        "aiter-hip" if _file(package, MODES).is_file() else "aiter-hip-0.1.7",
        "aiter-triton" if _rounds_to_even(package) else "aiter-triton-0.1.7",
    )


@functools.cache
def installed() -> Contract | None:
    """Return the contract of the AITER that is installed; None if there is none, or another package of that name."""
    spec = find_spec("aiter")
    folders = spec.submodule_search_locations if spec is not None else None
    for folder in folders or ():
        if (Path(folder) / "ops").is_dir() and (Path(folder) / "utility").is_dir():
            return read(Path(folder))
    return None


def stranger() -> str | None:
    """Return where another package named ``aiter`` stands; None if there is none."""
    spec = find_spec("aiter")
    if spec is None or installed() is not None:
        return None
    return str(spec.origin or next(iter(spec.submodule_search_locations or ()), "aiter"))


def _file(package: Path, module: str) -> Path:
    return package.parent / (module.replace(".", "/") + ".py")


def _find(package: Path, call: Call) -> Found | str:
    seen = []
    for module in call.homes:
        path = _file(package, module)
        if not path.is_file():
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            known = [name for name in _names(node) if name in (call.name, *call.instead)]
            if not known:
                continue
            if not isinstance(node, ast.FunctionDef):
                if not call.arguments:
                    return Found(module, known[0])
                seen.append(f"{module} has {known[0]} from elsewhere, so that its arguments are not seen")
                continue
            names = _arguments(node)
            absent = [each for each in call.arguments if not set(each.split("|")) & set(names)]
            if call.either and not any(each in names for each in call.either):
                absent.append(" or ".join(call.either))
            if not absent:
                return Found(module, node.name, names)
            seen.append(f"{module}.{node.name}({', '.join(names)}) has no argument {', '.join(absent)}")
    return "; ".join(seen) or f"no {call.name} in {' or '.join(call.homes)}"


def _names(node: ast.stmt) -> list[str]:
    """Return the names that a statement of a module gives something."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    targets: Iterable[ast.expr] = node.targets if isinstance(node, ast.Assign) else ()
    return [each.id for each in targets if isinstance(each, ast.Name)]


def _arguments(node: ast.FunctionDef) -> tuple[str, ...]:
    given = node.args
    return tuple(each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs))


def _rounds_to_even(package: Path) -> bool:
    """Say whether the Triton quantizer rounds ties to even: the old one adds 1 behind the last bit, and shifts."""
    for module in (f"{_TRITON}._triton_kernels.quant", f"{_TRITON}._triton_kernels.quant.quant"):
        path = _file(package, module)
        if not path.is_file():
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name == TIES_EVEN:
                return "+ 1 >> 1, 7)" not in ast.unparse(node)
    return False


__all__ = ["CALLS", "Call", "Contract", "Found", "installed", "read", "stranger"]
