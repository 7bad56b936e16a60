"""What torch_npu is here, and whether its operators can be called. Nothing of it is imported until a device needs it.

An installed torch_npu registers itself with torch, so on a working Ascend machine ``import torch`` has imported it, and
on a machine without CANN it breaks that import. A question about an Ascend device may be asked on any machine: where
there is neither such a device nor torch_npu, the answer is about the other machine, and what is installed here does not
count.

Sources: the schemas in ``torch_npu/csrc/aten/npu_native_functions_by_codegen.yaml`` and the Meta functions in
``torch_npu/op_plugin/meta/_meta_registrations.py`` of the wheels 2.8.0 to 2.14.0.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from mxfp4_core.backend import No
from mxfp4_core.errors import BackendError

FP4: Final = 296
"""The number of float4_e2m1fn_x2 in torch_npu; its operators halve the last axis for it, but not for torch's dtype."""

E8M0: Final = 293
"""The number of float8_e8m0fnu; for scales the Meta functions refuse torch's own dtype."""

ND, NZ = 2, 29
"""The formats of memory: plain rows, and the fractal tiles that the dual matmul wants of a weight."""

OUTPUT: Final = {"float16": 5, "float32": 6, "bfloat16": 15}
"""Numbers of the dtypes of a result, as torch numbers its scalar types."""

INPUTS: Final = ("bfloat16", "float16")
"""What the quantizers take."""

MODES: Final = {"rint": ("ascend-single", "ascend"), "round": ("ascend-single-round", "ascend-round")}
"""For each ``round_mode`` of the quantizers the profile of one level (see `profiles`) and the core's of two."""

VERSIONS: Final = "2.8 to 2.14"
"""Releases of torch_npu whose schemas were compared with the calls here."""

INSTALL: Final = "in a clone of the repository: pip install './packages/mxfp4-npu[kernels]'"

DUAL: Final = ("npu_dynamic_dual_level_mx_quant", "npu_dual_level_quant_matmul", "npu_format_cast")
SINGLE: Final = ("npu_dynamic_mx_quant", "npu_quant_matmul")
GROUPED: Final = ("npu_dynamic_mx_quant", "npu_grouped_matmul")
"""The operators of torch_npu that each way needs."""

_DEVICES = Path("/dev")
_LIBRARY = "libascendcl.so"


def missing(operators: Iterable[str]) -> No | None:
    """Say why these operators cannot be called on this machine, or None.

    None also where the question is about another machine: no torch_npu, and no Ascend device.
    """
    module = sys.modules.get("torch_npu")
    if module is None:
        found = _version()
        if found is None:
            if not any(_DEVICES.glob("davinci[0-9]*")):
                return None
            return No("torch_npu is not installed, and has the kernels", INSTALL)
        if not _has_cann():
            return No(
                f"torch_npu {found} is installed, but CANN is not found: no {_LIBRARY} on LD_LIBRARY_PATH",
                "install CANN for this device, and source its set_env.sh before Python starts",
            )
        if "torch" not in sys.modules:
            return None  # torch imports it; without torch there is nothing to ask yet
        module = _imported()
        if isinstance(module, str):
            return No(
                f"torch_npu {found} is installed, but its import fails: {module}",
                "install the torch_npu of the same release as torch, and the CANN that it names",
            )
    if absent := [name for name in operators if not hasattr(module, name)]:
        return No(
            f"torch_npu {_version() or getattr(module, '__version__', '?')} has no {absent[0]}",
            f"install a torch_npu that has it ({VERSIONS} were compared) for the release of torch: {INSTALL}",
        )
    return None


def loaded() -> Any:
    """Return the module torch_npu.

    Raises:
        BackendError: it is not here.
    """
    module = sys.modules.get("torch_npu") or _imported()
    if isinstance(module, str):
        raise BackendError(
            "a call of the backend 'npu'",
            seen=f"torch_npu cannot be imported: {module}",
            rule="the kernels are operators of torch_npu",
            fix=f"{INSTALL}, on a machine with CANN",
        )
    return module


def computes(kind: str) -> bool:
    """Return whether tensors on a device of this type are torch_npu's."""
    return kind == "npu"


def _imported() -> Any:
    try:
        import torch_npu  # type: ignore[import-not-found]  # only where an Ascend device is
    except (
        Exception
    ) as error:  # isolation: what fails in it is the driver's, the compiler's or another package's
        return f"{type(error).__name__}: {error}"
    return torch_npu


@functools.cache
def _version() -> str | None:
    """Look once: it takes a millisecond, and a model asks for each of its layers."""
    try:
        return version("torch-npu")
    except PackageNotFoundError:
        return "of unknown version" if find_spec("torch_npu") is not None else None


def _has_cann() -> bool:
    folders = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    return any((Path(folder) / _LIBRARY).exists() for folder in folders if folder)


__all__ = [
    "DUAL",
    "E8M0",
    "FP4",
    "GROUPED",
    "INPUTS",
    "INSTALL",
    "MODES",
    "ND",
    "NZ",
    "OUTPUT",
    "SINGLE",
    "VERSIONS",
    "computes",
    "loaded",
    "missing",
]
