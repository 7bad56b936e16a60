"""The backend that runs everywhere and is never fast: it widens the weights in every call.

It is the judge of other backends, the way to run a model without an accelerator, and the fallback that a
person can name. It reaches the core through the entry point that any other package would use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from mxfp4_core.arithmetic.formats.registry import formats, get
from mxfp4_core.arithmetic.profiles import profiles
from mxfp4_core.arithmetic.shapes import Alignment
from mxfp4_core.arithmetic.tensor import MxTensor
from mxfp4_core.backend.answers import Numerics, Verdict, Yes
from mxfp4_core.backend.problem import PLAIN, Matrix, Problem, input_format
from mxfp4_core.backend.protocol import Backend, Layout, Packed
from mxfp4_core.backend.reference import ops
from mxfp4_core.backend.routes import Routes

_OTHERS = [name for name in formats() if name != PLAIN and not name.endswith("+input_scale")]


class CanonicalLayout:
    """The layout of the format itself: nothing moves, and ``pack`` shares memory with the weight."""

    id = "canonical"
    alignment = Alignment()
    format = PLAIN

    def pack(self, weight: MxTensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        """Return the parts and the bias as they are."""
        return dict(weight.parts) if bias is None else {**weight.parts, "bias": bias}

    def unpack(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> MxTensor:
        """Return the parts as they are."""
        kind = get(self.format)
        return MxTensor.from_parts(kind, {part.name: tensors[part.name] for part in kind.parts}, shape)


class OtherLayout(CanonicalLayout):
    """The same of a format that is not plain ``mxfp4``."""

    def __init__(self, format: str) -> None:
        self.format, self.id = format, f"canonical-{format}"


class ReferenceBackend(Backend):
    """Widens a slice of rows to float32, multiplies, and goes on to the next slice."""

    name = "reference"
    description = "any torch device, slow: widens the weights to float32 in every call"
    features = frozenset(
        {
            *("linear", "moe", "quantize", "bias", "expert-map"),
            *("activation:mxfp4", "activation:mxfp8", "activation:fp8"),
            *("gate:silu", "gate:clamped", "rows:interleaved"),
            *("dtype:bfloat16", "dtype:float16", "dtype:float32"),
            *("moe:shared-experts", "moe:tokens:batched", "moe:tokens:masked"),
            # Not of quantize: formats quantise themselves.
            *("linear:input-scale", "moe:input-scale"),
            *(f"{op}:format:{name}" for op in ("linear", "moe") for name in _OTHERS),
        }
    )
    numerics = Numerics(emulated=True, profiles=frozenset(profiles()), activation_profile="even/even")
    # Elsewhere a person would wonder why an accelerator is slow, so there it has to be named.
    automatic_on = frozenset({"cpu"})

    def supports(self, problem: Problem) -> Verdict:
        """Accept whatever is asked, and say what it costs."""
        kind = get(problem.format)
        moe = problem.op == "moe"
        rows, k = (2 * problem.n if moe else problem.n), kind.physical_k(problem.k)
        down = ops.widened_bytes(problem.k, kind.physical_k(problem.n)) if moe else 0
        used = None
        made = self._input(problem)
        if made not in ("none", PLAIN):
            profile = "" if made == "fp8" else get(made).resolve().name
            used = replace(self.numerics, activation_profile=profile)
        return Yes("widens the weights in every call", max(ops.widened_bytes(rows, k), down), used)

    def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
        """Return the canonical layout of the format."""
        return CanonicalLayout() if problem.format == PLAIN else OtherLayout(problem.format)

    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        """Compute ``x @ weight.T + bias``; see ``Backend.linear``."""
        bias = weight.tensors.get("bias")
        return ops.linear(x, parts_of(weight), bias, problem.format, *self._inputs(problem))

    def moe(self, x: Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem) -> Tensor:
        """Compute the weighted sum over the chosen experts; see ``Backend.moe``."""
        gate = problem.gate
        return ops.moe(
            x,
            *(parts_of(gate_up), gate_up.tensors.get("bias")),
            *(parts_of(down), down.tensors.get("bias"), problem.format),
            *(*routes, problem.shared_experts),
            *(gate.alpha, gate.limit, gate.up_offset, gate.interleaved, *self._inputs(problem)),
        )

    def _inputs(self, problem: Problem) -> tuple[str, str, str]:
        made = self._input(problem)
        profile = self.numerics.activation_profile if made == PLAIN else ""
        return made, profile, self.numerics.hidden

    def _input(self, problem: Problem) -> str:
        return input_format(problem.format, "none" if problem.activation == "auto" else problem.activation)

    def quantize(self, weight: Tensor, *, profile: str) -> MxTensor:
        """Quantise with the core's own quantizer, on the device of the weight."""
        codes, scales = ops.quantize(weight, profile)
        return MxTensor(codes, scales, weight.shape, profile)


def parts_of(weight: Packed) -> list[Tensor]:
    """Return the parts of a weight that is packed as it is, in the order of its format."""
    return [tensor for name, tensor in weight.tensors.items() if name != "bias"]


backend = ReferenceBackend()
