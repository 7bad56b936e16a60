"""The backend that a device gets unnamed, against ``reference`` on the same device; for ``MXFP4_TEST_DEVICE``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import DEVICE, PROMPT, load, logits, settings

from mxfp4_core.backend import Device, Problem, explain
from mxfp4_core.modules import Mxfp4Experts, Mxfp4Linear
from mxfp4_transformers import Mxfp4Config


@pytest.fixture
def chosen() -> str:
    """The name of the backend that a bfloat16 layer gets there."""
    if DEVICE == "cpu":
        pytest.skip("MXFP4_TEST_DEVICE names no accelerator")
    choice = explain(Problem(op="linear", n=64, k=64, device=Device.of(DEVICE))).choice
    if choice is None:
        pytest.skip(f"no backend is automatic on {DEVICE}")
    return choice.name


def backends(model: Any) -> set[str]:
    layers = [module for module in model.modules() if isinstance(module, Mxfp4Linear | Mxfp4Experts)]
    return {layer.backend.name if layer.backend else "none" for layer in layers}


def test_it_is_chosen_and_computes_what_the_reference_does(checkpoint: Path, chosen: str) -> None:
    named = load(checkpoint, settings(), dtype=torch.bfloat16)
    model = load(checkpoint, Mxfp4Config(), dtype=torch.bfloat16)
    assert backends(named) == {"reference"} and backends(model) == {chosen}
    want, got = logits(named).float(), logits(model).float()
    # Both round every activation to bfloat16, at a sum in another order: a few units in the last place.
    assert (got - want).norm() < 0.03 * want.norm()


def test_it_generates(checkpoint: Path, chosen: str) -> None:
    model = load(checkpoint, Mxfp4Config(), dtype=torch.bfloat16)
    prompt = PROMPT.to(model.device)
    mask = torch.ones_like(prompt)
    written = [
        model.generate(prompt, attention_mask=mask, max_new_tokens=8, do_sample=False).cpu() for _ in range(2)
    ]
    assert torch.equal(*written) and written[0].shape == (1, PROMPT.shape[1] + 8)


def test_saving_gives_the_bytes_of_the_reference(checkpoint: Path, chosen: str, tmp_path: Path) -> None:
    model, named = load(checkpoint, Mxfp4Config()), load(checkpoint, settings())
    state, want = model.state_dict(), named.state_dict()
    assert state.keys() == want.keys()
    assert all(torch.equal(state[name], want[name]) for name in want)
