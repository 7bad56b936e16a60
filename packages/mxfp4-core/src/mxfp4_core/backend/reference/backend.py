"""The backend that runs everywhere and is never fast: it widens the weights in every call.

It is the judge of other backends, the way to run a model without an accelerator, and the fallback that a
person can name. It reaches the core through the entry point that any other package would use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mxfp4_core.arithmetic.shapes import Alignment
from mxfp4_core.backend.answers import Numerics, Verdict, Yes
from mxfp4_core.backend.build import torch_build
from mxfp4_core.backend.problem import Matrix, Problem
from mxfp4_core.backend.protocol import Backend, Layout, Packed
from mxfp4_core.backend.reference.slices import widened_bytes
from mxfp4_core.backend.routes import Routes
from mxfp4_core.config.checks import PROFILE_NAMES

if TYPE_CHECKING:
    from torch import Tensor

    from mxfp4_core.arithmetic.tensor import MxTensor

if torch_build() is None:
    import torch  # noqa: F401  # raises what is wrong with it, and that is this backend's answer

ops: Any = None
"""The module of the operators once one is called: verdicts are given without torch."""


def _load() -> Any:
    global ops
    from mxfp4_core.backend.reference import ops as loaded

    ops = loaded
    return ops


class CanonicalLayout:
    """The layout of the format itself: nothing moves, and ``pack`` shares memory with the weight."""

    id = "canonical"
    alignment = Alignment()

    def pack(self, weight: MxTensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        """Return codes, scales and bias as they are."""
        tensors = {"codes": weight.codes, "scales": weight.scales}
        return tensors if bias is None else {**tensors, "bias": bias}

    def unpack(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> MxTensor:
        """Return codes and scales as they are."""
        import torch

        from mxfp4_core.arithmetic.tensor import MxTensor

        return MxTensor(tensors["codes"], tensors["scales"], torch.Size(shape))


class ReferenceBackend(Backend):
    """Widens a slice of rows to float32, multiplies, and goes on to the next slice."""

    name = "reference"
    description = "any torch device, slow: widens the weights to float32 in every call"
    features = frozenset(
        {
            *("linear", "moe", "quantize", "bias", "expert-map"),
            *("activation:mxfp4", "gate:silu", "gate:clamped", "rows:interleaved"),
            *("dtype:bfloat16", "dtype:float16", "dtype:float32"),
        }
    )
    numerics = Numerics(emulated=True, profiles=frozenset(PROFILE_NAMES), activation_profile="even/even")
    # Elsewhere a person would wonder why an accelerator is slow, so there it has to be named.
    automatic_on = frozenset({"cpu"})

    def supports(self, problem: Problem) -> Verdict:
        """Accept whatever is asked, and say what it costs."""
        rows, k = (2 * problem.n, problem.k) if problem.op == "moe" else (problem.n, problem.k)
        down = widened_bytes(problem.k, problem.n) if problem.op == "moe" else 0
        return Yes("widens the weights in every call", max(widened_bytes(rows, k), down))

    def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
        """Return the canonical layout, for every problem."""
        return CanonicalLayout()

    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        """Compute ``x @ weight.T + bias``; see ``Backend.linear``."""
        t = weight.tensors
        return (ops or _load()).linear(x, t["codes"], t["scales"], t.get("bias"), self._activation(problem))

    def moe(self, x: Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem) -> Tensor:
        """Compute the weighted sum over the chosen experts; see ``Backend.moe``."""
        up, gate = gate_up.tensors, problem.gate
        return (ops or _load()).moe(
            x,
            *(up["codes"], up["scales"], up.get("bias")),
            *(down.tensors["codes"], down.tensors["scales"], down.tensors.get("bias")),
            *(routes.topk_ids, routes.topk_weights, routes.expert_map),
            *(gate.alpha, gate.limit, gate.up_offset, gate.interleaved, self._activation(problem)),
        )

    def _activation(self, problem: Problem) -> str:
        return self.numerics.activation_profile if problem.activation == "mxfp4" else ""

    def quantize(self, weight: Tensor, *, profile: str) -> MxTensor:
        """Quantise with the core's own quantizer, on the device of the weight."""
        from mxfp4_core.arithmetic.tensor import MxTensor

        codes, scales = (ops or _load()).quantize(weight, profile)
        return MxTensor(codes, scales, weight.shape, profile)


backend = ReferenceBackend()
