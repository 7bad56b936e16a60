"""Functions on a device, and their launch on the current stream."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import torch
from torch import Tensor

from mxfp4_core.errors import BackendError
from mxfp4_cuda_marlin.kernels import build, source
from mxfp4_cuda_marlin.kernels.tiles import Tile

LINEAR, GATE_UP, DOWN = 0, 1, 2
"""Modes of the GEMM, as ``gemm.cu`` numbers them."""

Argument = Tensor | int | float | None

_functions: dict[tuple[Any, ...], Any] = {}
_lock = threading.RLock()


def gemm(device: torch.device, tile: Tile, mode: int, small_scales: bool) -> Any:
    """Return the GEMM of one variant, compiled and loaded on ``device``."""
    key = (device.index, tile, mode, small_scales)
    found = _functions.get(key)
    if found is None:
        with _lock:
            module = _module(
                device, source.gemm(tile.nt), tile.defines(mode, small_scales), f"gemm {tile} {mode=}"
            )
            found = _function(module, "gemm")
            driver = build.bindings("driver")
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            build.check(
                (*driver.cuFuncSetAttribute(found, attribute, tile.shared_bytes), None), "preparing the GEMM"
            )
            _functions[key] = found
    return found


def helper(device: torch.device, name: str) -> Any:
    """Return ``route``, ``combine`` or ``reduce_splits``, compiled and loaded on ``device``."""
    key = (device.index, name)
    found = _functions.get(key)
    if found is None:
        with _lock:
            module = _module(device, source.helpers(), {}, "helpers")
            for each in ("route", "combine", "reduce_splits"):
                _functions[(device.index, each)] = _function(module, each)
            found = _functions[key]
    return found


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


def _function(module: Any, name: str) -> Any:
    driver = build.bindings("driver")
    return build.check(driver.cuModuleGetFunction(module, name.encode()), f"finding the kernel {name}")


def launch(
    function: Any, grid: tuple[int, int, int], threads: int, shared: int, *arguments: Argument
) -> None:
    """Launch on torch's current stream of the current device.

    Args:
        function: from ``gemm`` or ``helper``.
        grid: blocks in x, y and z.
        threads: of a block.
        shared: bytes of dynamic shared memory.
        *arguments: tensors and None become pointers, int a C int, float a C float.

    Raises:
        BackendError: the driver refuses the launch.
    """
    values: list[int | float] = []
    kinds: list[Any] = []
    for argument in arguments:
        if argument is None or isinstance(argument, Tensor):
            values.append(0 if argument is None else argument.data_ptr())
            kinds.append(ctypes.c_void_p)
        else:
            values.append(argument)
            kinds.append(ctypes.c_float if isinstance(argument, float) else ctypes.c_int)
    driver = build.bindings("driver")
    stream = torch.cuda.current_stream().cuda_stream
    answer = driver.cuLaunchKernel(
        function, *grid, threads, 1, 1, shared, stream, (tuple(values), tuple(kinds)), 0
    )
    build.check((*answer, None), "launching a kernel")


__all__ = ["DOWN", "GATE_UP", "LINEAR", "gemm", "helper", "launch"]
