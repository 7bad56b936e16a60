"""The operator ``mxfp4_petit::vendor_linear``: petit-kernel's dense matmul."""

from __future__ import annotations

import functools
from typing import Any, Final

from torch import Tensor

from mxfp4_core.backend import Operators
from mxfp4_core.errors import BackendError
from mxfp4_petit.vendor.limits import SOLUTION

_OPERATORS: Final = Operators("mxfp4_petit")
_LINEAR = "(Tensor x, Tensor codes, Tensor scales, Tensor global_scale, Tensor? bias) -> Tensor"


def _linear_fake(x: Tensor, codes: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((x.shape[0], 16 * codes.shape[0]))


@_OPERATORS.define("vendor_linear", _LINEAR, _linear_fake)
def linear(x: Tensor, codes: Tensor, scales: Tensor, global_scale: Tensor, bias: Tensor | None) -> Tensor:
    """Compute ``x @ weight.T + bias``; the product is rounded to bfloat16 before the bias is added.

    Args:
        x: bfloat16 [m, k], contiguous, m >= 1, k a multiple of 256.
        codes: int32 [n/16, 2k] in ``PetitLayout``, like the next two.
        scales: uint8 [n/32, k].
        global_scale: float32 [1], on the device of x.
        bias: float [n] or None.

    Returns:
        bfloat16 [m, n].

    Raises:
        BackendError: petit-kernel does not load, or has no kernel for these sizes.
    """
    (m, k), n = x.shape, 16 * codes.shape[0]
    try:
        out: Tensor = library().mul_mxfp4_a16(x, codes, scales, global_scale, m, n, k, SOLUTION)
    except RuntimeError as error:
        raise BackendError(
            "petit-kernel's mul_mxfp4_a16",
            seen=f"m = {m}, n = {n}, k = {k}: {error}",
            rule="it has kernels for bfloat16, n a multiple of 32 and k of 256, on gfx90a and gfx942",
            fix='report it, and use our own kernels: backend_options = {"petit": {"provider": "triton"}}',
        ) from error
    return out if bias is None else out.add_(bias)


@functools.cache
def library() -> Any:
    """Import petit-kernel, once.

    Raises:
        BackendError: it does not load.
    """
    try:
        import petit_kernel
    except ImportError as error:
        raise BackendError(
            "petit-kernel",
            seen=f"importing petit_kernel failed: {error}",
            rule="it needs a ROCm build of torch, with HIP 7",
            fix='use our own kernels: backend_options = {"petit": {"provider": "triton"}}',
        ) from error
    return petit_kernel


__all__ = ["library", "linear"]
