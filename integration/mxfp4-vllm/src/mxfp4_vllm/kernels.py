"""Our backends under vLLM's own MXFP4 formats: a kernel that its linear layers may choose.

vLLM asks the kernels of a platform in order, and ours comes last: it runs where none of vLLM's own does, as on a CPU,
or where those before it are named in ``VLLM_DISABLED_KERNELS``. Its table of kernels for experts is closed; a
checkpoint of another tool runs there with ``--quantization mxfp4-core``, which takes all layers.
"""

from __future__ import annotations

from typing import Any, cast

import torch

from mxfp4_core.arithmetic import MXFP4, MxTensor
from mxfp4_core.backend import Device, Problem, explain, select_backend
from mxfp4_core.config import config_of_environment
from mxfp4_core.modules import Mxfp4Linear
from mxfp4_vllm import compat


class Mxfp4CoreLinearKernel(compat.MxFp4LinearKernel):
    """One linear layer of vLLM's, computed by the backend that fits the machine.

    Args:
        config: what vLLM says of the layer.
    """

    module: Mxfp4Linear | None = None

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        compat.compiled_for(config_of_environment())

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:
        """Say whether some backend computes an ordinary layer on this machine, and else what each one said."""
        found = explain(_ordinary(), **_choice())
        if found.choice is not None:
            return True, None
        return False, "; ".join([found.reason, *map(str, found.trace)])

    @classmethod
    def can_implement(cls, config: Any) -> tuple[bool, str | None]:
        """Say yes: every layer with such weights."""
        return True, None

    def process_weights_after_loading(self, layer: Any) -> None:
        """Take the codes and scales of a layer; again, into the same memory.

        Raises:
            BackendError: no backend takes the layer; the message has what each one said.
        """
        codes, scales = layer.weight.data, layer.weight_scale.data.view(torch.uint8)
        n, k = codes.shape[0], codes.shape[1] * 2
        weight = MxTensor.from_parts(MXFP4, {"codes": codes, "scales": scales}, (n, k))
        if self.module is None:
            self._make(weight, layer.params_dtype)
        else:
            with self.module.unprepared(fresh={"weight"}):
                self.module.fill("weight", weight)
        for name in ("weight", "weight_scale"):
            empty = torch.empty_like(getattr(layer, name), device="meta")
            setattr(layer, name, torch.nn.Parameter(empty, requires_grad=False))

    def apply_weights(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Return ``x @ weight.T + bias``."""
        y = cast(torch.Tensor, cast(Mxfp4Linear, self.module)(x))
        return y if bias is None else y + bias

    def _make(self, weight: MxTensor, dtype: torch.dtype) -> None:
        # vLLM asks for rounded activations whatever the checkpoint says of them; as its own weight-only kernels do,
        # this one leaves them in high precision.
        module = Mxfp4Linear.from_weight(weight)
        selection = select_backend(module.question(dtype), **_choice())
        self.module = module.prepare(
            selection.backend, dtype=dtype, consume=True, options=selection.problem.options
        )


def offer() -> None:
    """Give the kernel to vLLM on the platform of this machine; again it changes nothing."""
    compat.offer_linear_kernel(Mxfp4CoreLinearKernel)


def _ordinary() -> Problem:
    return Problem(op="linear", n=4096, k=4096, device=Device.current())


def _choice() -> dict[str, Any]:
    config = config_of_environment()
    return {
        "backend": config.backend,
        "fallback": config.fallback,
        "backend_options": config.backend_options,
    }


__all__ = ["Mxfp4CoreLinearKernel", "offer"]
