"""What an operator says where a gradient is asked for."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mxfp4_core.errors import BackendError


def refuse(context: Any, *gradients: Tensor) -> None:
    """Refuse the gradient of an operator; for ``register_autograd``.

    Raises:
        BackendError: always.
    """
    raise BackendError(
        "a gradient through an MXFP4 weight",
        seen="backward() reached an operator of the backend 'petit'",
        rule="weights are frozen, and the modules of mxfp4_core compute the gradient of the input, not an operator",
        fix="call Mxfp4Linear or Mxfp4Experts, or run under torch.no_grad()",
    )


__all__ = ["refuse"]
