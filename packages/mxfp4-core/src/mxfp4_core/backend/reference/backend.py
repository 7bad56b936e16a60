"""The backend that runs everywhere and is never fast: it widens the weights in every call.

It is the judge of other backends, the way to run a model without an accelerator, and the fallback that a
person can name. It reaches the core through the entry point that any other package would use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mxfp4_core.arithmetic.formats.registry import formats, get
from mxfp4_core.arithmetic.shapes import Alignment
from mxfp4_core.backend.answers import Numerics, Verdict, Yes
from mxfp4_core.backend.build import torch_build
from mxfp4_core.backend.problem import PLAIN, Matrix, Problem, input_format
from mxfp4_core.backend.protocol import Backend, Layout, Packed
from mxfp4_core.backend.reference.slices import widened_bytes
from mxfp4_core.backend.routes import Routes
from mxfp4_core.config.checks import PROFILE_NAMES
from mxfp4_core.errors import FormatError

if TYPE_CHECKING:
    from torch import Tensor

    from mxfp4_core.arithmetic.tensor import MxTensor

if torch_build() is None:
    import torch  # noqa: F401  # raises what is wrong with it, and that is this backend's answer

ops: Any = None
"""The module of the operators once one is called: verdicts are given without torch."""

INPUT_PROFILES = {PLAIN: "even/even", "mxfp4-dual": "ascend", "mxfp8": "floor/even"}
"""By which rule inputs are quantised: the default of each format, here without an import of torch."""


def _layouts() -> Iterator[str]:
    """Yield the words for the formats of weights that are installed and work; `get` says what is wrong with others."""
    for name in formats():
        with suppress(FormatError):
            if get(name).of_weight != PLAIN:
                yield f"format:{get(name).of_weight}"


def _load() -> Any:
    global ops
    from mxfp4_core.backend.reference import ops as loaded

    ops = loaded
    return ops


class CanonicalLayout:
    """The layout of the format itself: nothing moves, and ``pack`` shares memory with the weight."""

    id = "canonical"
    alignment = Alignment()
    format = PLAIN

    def pack(self, weight: MxTensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        """Return the parts and the bias as they are; parts of 8 bits as bytes, which torch can copy and check."""
        parts = {name: _bytes(part) for name, part in weight.parts.items()}
        return parts if bias is None else {**parts, "bias": bias}

    def unpack(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> MxTensor:
        """Return the parts as they are."""
        from mxfp4_core.arithmetic.tensor import MxTensor

        kind = get(self.format)
        parts = {part.name: part.of_bytes(tensors[part.name]) for part in kind.parts}
        return MxTensor.from_parts(kind, parts, shape)


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
            *("gate:silu", "gate:clamped", "rows:interleaved", "gate:none"),
            *("gate:gelu", "gate:gelu_tanh", "gate:relu", "gate:relu2"),
            *("dtype:bfloat16", "dtype:float16", "dtype:float32"),
            *("moe:shared-experts", "moe:tokens:batched", "moe:tokens:masked"),
            # Not of quantize: formats quantise themselves.
            *("linear:input-scale", "moe:input-scale"),
            *(f"{op}:{word}" for word in _layouts() for op in ("linear", "moe")),
        }
    )
    numerics = Numerics(
        emulated=True, profiles=frozenset(PROFILE_NAMES), activation_profile=INPUT_PROFILES[PLAIN]
    )
    # Elsewhere a person would wonder why an accelerator is slow, so there it has to be named.
    automatic_on = frozenset({"cpu"})

    def supports(self, problem: Problem) -> Verdict:
        """Accept whatever is asked, and say what it costs."""
        kind = get(problem.format)
        moe = problem.op == "moe"
        rows, k = (problem.gate.rows * problem.n if moe else problem.n), kind.physical_k(problem.k)
        down = widened_bytes(problem.k, kind.physical_k(problem.n)) if moe else 0
        used = None
        made = self._input(problem)
        if made not in ("none", PLAIN):
            used = replace(self.numerics, activation_profile=INPUT_PROFILES.get(made, ""))
        return Yes("widens the weights in every call", max(widened_bytes(rows, k), down), used)

    def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
        """Return the canonical layout of the format."""
        return CanonicalLayout() if problem.format == PLAIN else OtherLayout(problem.format)

    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        """Compute ``x @ weight.T + bias``; see ``Backend.linear``."""
        bias = weight.tensors.get("bias")
        made: Tensor = (ops or _load()).linear(
            x, parts_of(weight), bias, problem.format, *self._inputs(problem)
        )
        return made

    def direct_linear(self, weight: Packed, problem: Problem) -> Callable[[Tensor], Tensor]:
        """Return what the operator computes, for inputs that nobody traces; see ``backend/direct.py``."""
        run, parts, bias = (ops or _load()).compute_linear, parts_of(weight), weight.tensors.get("bias")
        inputs = self._inputs(problem)

        def call(x: Tensor) -> Tensor:
            made: Tensor = run(x.view(-1, problem.k), parts, bias, problem.format, *inputs)
            return made.view(*x.shape[:-1], problem.n)

        return call

    def moe(self, x: Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem) -> Tensor:
        """Compute the weighted sum over the chosen experts; see ``Backend.moe``."""
        return (ops or _load()).moe(
            x,
            *(parts_of(gate_up), gate_up.tensors.get("bias")),
            *(parts_of(down), down.tensors.get("bias"), problem.format),
            *(*routes, problem.shared_experts),
            *(*problem.gate.arguments, *self._inputs(problem)),
        )

    def _inputs(self, problem: Problem) -> tuple[str, str, str]:
        made = self._input(problem)
        profile = self.numerics.activation_profile if made == PLAIN else ""
        return made, profile, self.numerics.hidden

    def _input(self, problem: Problem) -> str:
        return input_format(problem.format, "none" if problem.activation == "auto" else problem.activation)

    def quantize(self, weight: Tensor, *, profile: str) -> MxTensor:
        """Quantise with the core's own quantizer, on the device of the weight."""
        from mxfp4_core.arithmetic.tensor import MxTensor

        codes, scales = (ops or _load()).quantize(weight, profile)
        return MxTensor(codes, scales, weight.shape, profile)


def _bytes(part: Tensor) -> Tensor:
    import torch

    floats = part.is_floating_point() and part.dtype.itemsize == 1
    return part.view(torch.uint8) if floats else part


def parts_of(weight: Packed) -> list[Tensor]:
    """Return the parts of a weight that is packed as it is, in the order of its format."""
    return [tensor for name, tensor in weight.tensors.items() if name != "bias"]


backend = ReferenceBackend()
