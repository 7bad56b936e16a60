"""Operators of torch, for what a backend computes: seen by compilers, and cheap to call."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mxfp4_core.errors import BackendError


class Operators:
    """The operators of one package, each with a fake and without a gradient.

    `torch.library.custom_op` would wrap each call in checks of aliases and modes, which take 0.1 ms of the host's time.

    Args:
        namespace: of the operators; two packages have two.
    """

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._library = torch.library.Library(namespace, "FRAGMENT")  # operators live as long as it does

    def define(self, name: str, schema: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
        """Return a decorator that makes an operator of what computes it, on any device.

        Args:
            name: without the namespace.
            schema: arguments and results in torch's notation: ``(Tensor x) -> Tensor``. Results share no memory with
                arguments, and arguments are not written.
            fake: gives results of the right dtype, shape and strides without looking at values.
        """

        def made(run: Callable[..., Any]) -> Any:
            full = f"{self._namespace}::{name}"
            self._library.define(name + schema)
            self._library.impl(name, run, "CompositeExplicitAutograd")
            torch.library.register_fake(full, fake, lib=self._library)
            torch.library.register_autograd(full, partial(_refuse, full), lib=self._library)
            return getattr(getattr(torch.ops, self._namespace), name).default

        return made

    @staticmethod
    def like_x(x: Tensor, *rest: Any) -> Tensor:
        """Return an empty tensor like the first argument: the fake of a MoE layer."""
        return torch.empty_like(x)

    @staticmethod
    def pair(weight: Tensor, profile: str) -> tuple[Tensor, Tensor]:
        """Return empty codes and scales of a weight ``[..., k]``: the fake of ``quantize``."""
        *lead, k = weight.shape
        codes = weight.new_empty((*lead, k // 2), dtype=torch.uint8)
        return codes, weight.new_empty((*lead, k // 32), dtype=torch.uint8)


def _refuse(name: str, context: Any, *gradients: Tensor) -> None:
    raise BackendError(
        "a gradient through an MXFP4 weight",
        seen=f"backward() reached the operator {name}",
        rule="weights are frozen, and the modules of mxfp4_core compute the gradient of the input, not an operator",
        fix="call Mxfp4Linear or Mxfp4Experts, or run under torch.no_grad()",
    )


__all__ = ["Operators"]
