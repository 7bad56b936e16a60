"""Gates: each form reaches its limits, with rows in either order, with and without biases."""

from __future__ import annotations

import pytest
import torch

from mxfp4_core.backend import GPT_OSS_SWIGLU, SILU, Backend, Device, Gate, Problem, numerics_for
from mxfp4_core.testing import functions
from mxfp4_core.testing.crafted import ORDINARY_SCALE, close, gate_up_columns, one_hot
from mxfp4_core.testing.fixtures import Fixtures, posed, takes
from mxfp4_core.testing.layer import Layer
from mxfp4_core.testing.samples import random_biases, random_routes, random_x

GATES = {
    "silu": SILU,
    "silu-interleaved": Gate(interleaved=True),
    "limit-10": Gate(limit=10.0),
    "limit-10-interleaved": Gate(limit=10.0, interleaved=True),
    "gpt-oss": GPT_OSS_SWIGLU,
    "gpt-oss-halves": Gate(alpha=1.702, limit=7.0, up_offset=1.0),
    "gelu": Gate(function="gelu"),
    "gelu-tanh": Gate(function="gelu_tanh"),
    "relu": Gate(function="relu"),
    "relu2": Gate(function="relu2"),
    "gelu-tanh-limit-7-interleaved": Gate(limit=7.0, interleaved=True, function="gelu_tanh"),
    "ungated-silu": Gate(gated=False),
    "ungated-quick-gelu": Gate(alpha=1.702, gated=False),
    "ungated-gelu": Gate(function="gelu", gated=False),
    "ungated-gelu-tanh": Gate(function="gelu_tanh", gated=False),
    "ungated-relu": Gate(function="relu", gated=False),
    "ungated-relu2": Gate(function="relu2", gated=False),
}
"""The forms that models have, in both orders of rows, with a gate and without."""

# Both signs, both sides of the limits 7 and 10, and far beyond them. Each is a bfloat16 number.
_BOTH = (-20.0, -12.0, -10.5, -9.5, -7.5, -6.5, -1.0, 0.0, 0.5, 3.0, 6.5, 7.5, 9.5, 10.5, 12.0, 20.0)
GATE_VALUES = (*_BOTH, -3.0, -2.0)  # the last two tell GELU from what is like it
UP_VALUES = (
    *_BOTH,
    -40.0,
    -10.0,
    -8.0,
    -7.0,
    -3.0,
    -0.5,
    1.0,
    2.0,
    5.0,
    7.0,
    8.0,
    10.0,
    11.0,
    13.0,
    30.0,
    60.0,
)
HALF = len(UP_VALUES)


def gated(gate: torch.Tensor, up: torch.Tensor, form: Gate) -> torch.Tensor:
    """Return the activation in float64; of up alone where there is no gate."""
    if not form.gated:
        return functions.value(up, form)
    if form.limit is not None:
        gate, up = gate.clamp(max=form.limit), up.clamp(-form.limit, form.limit)
    return (up + form.up_offset) * functions.value(gate, form)


class GateSuite(Fixtures):
    """``h = (up + offset) * f(gate)`` after the clamps, or ``h = f(up)``, on the device."""

    @pytest.mark.parametrize("form", GATES.values(), ids=GATES)
    def test_moe_gate_values(self, backend: Backend, here: Device, device: torch.device, form: Gate) -> None:
        """Every pair of a gate value and an up value: weights copy x, so that the result is the activation's alone."""
        problem = posed(
            backend, Problem(op="moe", n=HALF, k=2 * HALF, experts=2, top_k=1, gate=form, device=here)
        )
        if not takes(backend, problem) or numerics_for(backend, problem).activation != "none":
            return  # a quantised hidden state hides the values; `test_moe_gates_and_biases` goes beyond the limits
        places: list[int] = list(range(HALF, 2 * HALF))
        if form.gated:
            places = gate_up_columns(range(HALF), range(HALF, 2 * HALF), form.interleaved)
        weights = (one_hot(places, 2 * HALF, 2), one_hot([i % HALF for i in range(2 * HALF)], HALF, 2))
        layer, count = Layer.of(backend, device, problem, weights), len(GATE_VALUES)
        gate, up = (
            torch.tensor(GATE_VALUES)[:, None].expand(-1, HALF),
            torch.tensor(UP_VALUES).expand(count, -1),
        )
        ids = torch.arange(count, dtype=torch.int32)[:, None] % 2
        got = layer.call(backend, torch.cat([gate, up], 1).bfloat16(), ids, torch.ones(count, 1))
        gate, up = gate.double(), up.double()
        want = gated(gate, up, form)
        beside = functions.cancelled(gate, form) * up.abs() if form.gated else functions.cancelled(up, form)
        close(
            got,
            torch.cat([want, want], 1),
            f"gates {GATE_VALUES} by ups {UP_VALUES}",
            torch.cat([beside, beside], 1),
        )

    @pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
    @pytest.mark.parametrize("form", GATES.values(), ids=GATES)
    def test_moe_gates_and_biases(
        self, backend: Backend, here: Device, device: torch.device, form: Gate, bias: bool
    ) -> None:
        """Every gate with and without biases, for eight experts that all have work, beyond the limits too."""
        problem = posed(
            backend, Problem(op="moe", n=80, k=96, experts=8, top_k=2, gate=form, bias=bias, device=here)
        )
        if not takes(backend, problem):
            return
        layer, (ids, weights) = Layer.build(backend, device, problem), random_routes(40, 8, 2)
        for factor in (1.0, 8.0):
            x = random_x(40, 96) * factor
            layer.answer(backend, x, ids, weights).check(
                layer.call(backend, x, ids, weights), f"x * {factor}"
            )

    @pytest.mark.parametrize("form", [SILU, GPT_OSS_SWIGLU], ids=["silu", "gpt-oss"])
    def test_moe_each_bias_of_each_expert(
        self, backend: Backend, here: Device, device: torch.device, form: Gate
    ) -> None:
        """For x = 0 only biases are left, so that each of one expert shows, beside the others and alone."""
        problem = posed(
            backend, Problem(op="moe", n=80, k=96, experts=8, top_k=1, gate=form, bias=True, device=here)
        )
        if not takes(backend, problem):
            return
        whole = Layer.build(backend, device, problem)
        ids, x = torch.arange(8, dtype=torch.int32)[:, None], torch.zeros(8, 96, dtype=torch.bfloat16)
        weights = torch.full((8, 1), 0.5)
        gate_up, down = random_biases(problem)
        assert gate_up is not None and down is not None
        for biases in ((gate_up, down), (gate_up, torch.zeros_like(down)), (torch.zeros_like(gate_up), down)):
            layer = Layer.of(backend, device, problem, whole.weights, biases)
            layer.answer(backend, x, ids, weights).check(layer.call(backend, x, ids, weights))

    @pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])
    @pytest.mark.parametrize("place", ["gate", "up", "down"])
    @pytest.mark.parametrize("byte", [0, 1, 254, 255])
    def test_moe_ends_of_the_scale(
        self,
        backend: Backend,
        here: Device,
        device: torch.device,
        byte: int,
        place: str,
        interleaved: bool,
    ) -> None:
        """The first and last scale bytes mean in experts what the backend says, in each of the three matrices."""
        form = Gate(interleaved=interleaved)
        problem = posed(backend, Problem(op="moe", n=32, k=64, experts=2, top_k=1, gate=form, device=here))
        if not takes(backend, problem):
            return
        numerics = numerics_for(backend, problem)
        low, high = numerics.scale_bytes
        refused = numerics.scale_byte_255 == "refused" if byte == 255 else not low <= byte <= high
        if (
            refused or numerics.activation != "none"
        ):  # the weights are one-hot, and x would have to come through as it is
            return
        gate_up = one_hot(gate_up_columns(range(32), range(32, 64), interleaved), 64, 2)
        gates, ups = (slice(0, 64, 2), slice(1, 64, 2)) if interleaved else (slice(0, 32), slice(32, 64))
        if place != "down":
            gate_up.scales[:, gates if place == "gate" else ups, 0 if place == "gate" else 1] = byte
        down = one_hot([row % 32 for row in range(64)], 32, 2, byte if place == "down" else ORDINARY_SCALE)
        layer = Layer.of(backend, device, problem, (gate_up, down))

        # The other operand keeps each product near 1, and no value leaves the normal range.
        factor = {0: 2.0**127, 1: 2.0**126, 254: 2.0**-120, 255: 1.0}[byte]
        gate, up = torch.linspace(0.5, 0.9375, 32).bfloat16(), torch.linspace(-0.9375, -0.5, 32).bfloat16()
        x = torch.cat([gate * factor, up] if place == "gate" else [gate, up * factor]).expand(3, -1)
        ids = torch.tensor([[0], [1], [0]], dtype=torch.int32)
        got = layer.call(backend, x, ids, torch.ones(3, 1)).cpu()
        product = factor * 2.0 ** (byte - 127)
        gate, up = (
            gate.double() * (product if place == "gate" else 1),
            up.double() * (1 if place == "gate" else product),
        )
        want = gated(gate, up, form).expand(3, -1).repeat(1, 2)
        if byte == 255:
            assert not bool(got.isfinite().any())
            assert numerics.scale_byte_255 == "inf" or bool(got.isnan().all())
        elif byte == 0 and numerics.scale_byte_0 == "zero":
            assert not bool(got.any())
        else:
            close(got, want, f"scale byte {byte} in {place}")
