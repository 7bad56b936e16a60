"""The activations of experts: the formulas, and that SiLU keeps its bits."""

from __future__ import annotations

import pytest
import torch

from mxfp4_core.arithmetic import apply_gate
from mxfp4_core.backend import Gate
from mxfp4_core.testing.suite_gates import GATES, gated

BOTH = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)) * 6


@pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
def test_each_form_by_its_formula(gate: Gate) -> None:
    wide = BOTH.double()
    rows = wide.unflatten(-1, (-1, 2)).unbind(-1) if gate.interleaved else wide.chunk(2, -1)
    first, up = rows if gate.gated else (wide, wide)
    torch.testing.assert_close(apply_gate(wide, gate), gated(first, up, gate), rtol=1e-12, atol=1e-14)
    made = apply_gate(BOTH, gate)
    assert made.shape == (64, 48 if gate.gated else 96) and made.dtype is torch.float32
    nan = BOTH.clone()
    nan[3, 40:] = torch.nan
    seen = apply_gate(nan, gate).isnan().any(1)
    assert bool(seen[3]) and int(seen.sum()) == 1


@pytest.mark.parametrize("gate", [gate for gate in GATES.values() if gate.function == "silu" and gate.gated])
def test_silu_keeps_its_bits(gate: Gate) -> None:
    first, up = (BOTH[:, 0::2], BOTH[:, 1::2]) if gate.interleaved else (BOTH[:, :48], BOTH[:, 48:])
    if gate.limit is not None:
        first, up = first.clamp(max=gate.limit), up.clamp(-gate.limit, gate.limit)
    expected = (up + gate.up_offset) * first * torch.sigmoid(gate.alpha * first)
    assert torch.equal(apply_gate(BOTH, gate), expected)
