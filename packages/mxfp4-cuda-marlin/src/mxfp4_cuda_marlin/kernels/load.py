"""Functions on a device: compiled, loaded and kept."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any

import torch

from mxfp4_core.errors import BackendError
from mxfp4_cuda_marlin.kernels import build, source
from mxfp4_cuda_marlin.kernels.few import Few
from mxfp4_cuda_marlin.kernels.launch import Structure
from mxfp4_cuda_marlin.kernels.tiles import Tile

_functions: dict[tuple[Any, ...], Any] = {}
_lock = threading.RLock()


def gemm(device: torch.device, tile: Tile, mode: int, small_scales: bool) -> Any:
    """Return the GEMM of one variant, compiled and loaded on ``device``."""
    key = (device.index, tile, mode, small_scales)
    found = _functions.get(key)
    if found is None:
        defines = tile.defines(mode, small_scales)
        found = load(
            device,
            "gemm",
            source.gemm(tile.nt, tile.narrow),
            defines,
            f"gemm {tile} {mode=}",
            tile.shared_bytes(mode),
        )
        _functions[key] = found
    return found


def decode(device: torch.device, few: Few, mode: int, small_scales: bool) -> Any:
    """Return one variant of the kernel for few tokens, compiled and loaded on ``device``."""
    key = (device.index, few, mode, small_scales)
    found = _functions.get(key)
    if found is None:
        text, defines = source.decode(), few.defines(mode, small_scales)
        found = load(device, "decode", text, defines, f"decode {few} {mode=}", few.shared_bytes)
        _functions[key] = found
    return found


def routing(device: torch.device, name: str, cluster: int = 1) -> Any:
    """Return ``route`` for a cluster of so many blocks, ``gather`` or ``combine``, loaded on ``device``."""
    key = (device.index, name, cluster)
    found = _functions.get(key)
    if found is None:
        found = load(device, name, source.routing(), {"CLUSTER": cluster}, "routing")
        _functions[key] = found
    return found


def load(
    device: torch.device, name: str, text: str, defines: Mapping[str, int], what: str, shared: int = 0
) -> Any:
    """Compile and load one function.

    Args:
        device: where it will run.
        name: of the function.
        text: CUDA C++.
        defines: macros.
        what: what is compiled, for messages.
        shared: bytes of dynamic shared memory that it will ask for.

    Raises:
        BackendError: it cannot be compiled or loaded, or a CUDA graph is being captured.
    """
    with _lock:
        module = _module(device, text, dict(defines), what)
        driver = build.bindings("driver")
        function = build.check(
            driver.cuModuleGetFunction(module, name.encode()), f"finding the kernel {name}"
        )
        if shared:
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            build.check((*driver.cuFuncSetAttribute(function, attribute, shared), None), f"preparing {what}")
        return function


def _module(device: torch.device, text: str, defines: dict[str, int], what: str) -> Any:
    if torch.cuda.is_current_stream_capturing():
        raise BackendError(
            f"loading {what} on {device}",
            seen="a CUDA graph is being captured, and this kernel has not run before",
            rule="CUDA cannot load a kernel during a capture",
            fix="run the layer once with the same number of tokens before the capture, as torch's guide asks for",
        )
    code = build.machine_code(text, defines, what)
    driver = build.bindings("driver")
    torch.cuda.current_stream(device).synchronize()  # makes the device's context current in this thread
    answer = driver.cuModuleLoadData(code)
    if int(answer[0]) != 0:  # a damaged file of the cache: compile again, once
        build.forget(text, defines)
        answer = driver.cuModuleLoadData(build.machine_code(text, defines, what))
    return build.check(answer, f"loading {what} on {device}")


@lru_cache(maxsize=1024)
def tensor_map(address: int, m: int, k: int, nt: int) -> Structure:
    """Describe activations to the copy engine: boxes of 64 columns and ``nt`` rows, swizzled; rows after m are zero.

    Args:
        address: of bfloat16 [m, k], contiguous, a multiple of 16.
        m: rows.
        k: columns.
        nt: rows of a box.
    """
    driver = build.bindings("driver")
    answer = driver.cuTensorMapEncodeTiled(
        driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        2,
        address,
        [driver.cuuint64_t(k), driver.cuuint64_t(m)],
        [driver.cuuint64_t(2 * k)],
        [driver.cuuint32_t(64), driver.cuuint32_t(nt)],
        [driver.cuuint32_t(1), driver.cuuint32_t(1)],
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
        driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )
    found: Structure = build.check(answer, "describing activations to the copy engine")
    return found


@cache
def multiprocessors(device: torch.device) -> int:
    """Return how many blocks of the GEMM a device holds."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@cache
def no_map() -> Structure:
    """Return an empty map, for kernels that do not read one."""
    found: Structure = build.bindings("driver").CUtensorMap()
    return found


__all__ = [
    "decode",
    "gemm",
    "load",
    "multiprocessors",
    "no_map",
    "routing",
    "tensor_map",
]
