"""The provider ``petit_kernel``: what its dense kernels take, and the way from the core's calls to the operator."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mxfp4_core.backend import (
    Backend,
    Layout,
    Matrix,
    No,
    Numerics,
    Packed,
    Problem,
    Rank,
    Verdict,
    Yes,
    torch_build,
)
from mxfp4_petit.devices import MADE_FOR, installed, listed
from mxfp4_petit.vendor.limits import FORMAT, HIGHEST, LAYOUT, LOWEST, PROVEN

if TYPE_CHECKING:
    from torch import Tensor


class VendorProvider(Backend):
    """W4A16 linear by petit-kernel, on gfx90a and gfx942."""

    name = "petit"
    description = "petit-kernel: W4A16 linear, weights widened in registers"
    features = frozenset({"linear", "bias", "dtype:bfloat16"})
    numerics = Numerics(
        scale_byte_255="refused", scale_bytes=(LOWEST, HIGHEST), minus_zero="dropped", emulated=True
    )
    automatic_on = frozenset(f"hip:{arch}" for arch in MADE_FOR)
    layout_id = LAYOUT

    def supports(self, problem: Problem) -> Verdict:
        """Accept CDNA2 and CDNA3, where a proven version is installed; see ``Backend.supports``."""
        device = problem.device
        if device.type != "hip" or device.arch not in MADE_FOR:
            return No(
                f"the device is {device}, petit-kernel is for hip {listed(MADE_FOR)}",
                'use our own kernels: backend_options = {"petit": {"provider": "triton"}}',
            )
        if problem.op != "linear" or problem.dtype != "bfloat16" or problem.format != FORMAT:
            return No(
                f"{problem.op} of {problem.dtype} with {problem.format}, petit-kernel is called for linear of bfloat16 "
                f"with {FORMAT}",
                'use our own kernels: backend_options = {"petit": {"provider": "triton"}}',
            )
        return self.unproven() or self._yes(problem)

    def unproven(self) -> No | None:
        """Refuse where petit-kernel is missing or of another version; None also on a machine without ROCm."""
        found = installed("petit-kernel")
        if found is not None and found not in PROVEN:
            return No(
                f"found petit-kernel {found}, its layouts were compared for {listed(PROVEN)}",
                "pip install 'petit-kernel==0.0.5'",
            )
        build = torch_build()
        if found is None and build is not None and build.hip is not None:
            return No(
                "petit-kernel is not installed",
                "pip install 'petit-kernel==0.0.5', with CPython 3.12 on x86_64",
            )
        return None

    def _yes(self, problem: Problem) -> Yes:
        numerics = self.numerics
        if problem.bias:  # the product is rounded before the bias is added: half a unit of bfloat16 more
            numerics = replace(numerics, product_error=2.0**-8)
        return Yes(
            "petit-kernel, solution_id -1",
            numerics=numerics,
            rank=Rank.PORTABLE,
            provider="petit_kernel",
            layout=self.layout_id,
        )

    def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
        """Return the layout of petit-kernel's dense kernels."""
        from mxfp4_petit.vendor.layout import PetitLayout

        return PetitLayout()

    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        """Compute ``x @ weight.T + bias``; see ``Backend.linear``."""
        t = weight.tensors
        return _ops().linear(x, t["codes"], t["scales"], t["global_scale"], t.get("bias"))


ops: Any = None
"""As in ``portable.provider``."""


def _ops() -> Any:
    global ops
    if ops is None:
        from mxfp4_petit.vendor import ops as loaded

        ops = loaded
    return ops


__all__ = ["VendorProvider"]
