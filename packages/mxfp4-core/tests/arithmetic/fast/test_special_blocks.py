"""Blocks that the judge quantises, in bounded memory: the same bytes, the same error, whatever a step takes."""

from __future__ import annotations

import pytest
import torch

from mxfp4_core import quantize
from mxfp4_core.arithmetic.fast import blocks
from mxfp4_core.errors import NonFiniteError


def special() -> torch.Tensor:
    """Return a weight of subnormal, ordinary and empty blocks."""
    weight = torch.randn(48, 256, generator=torch.Generator().manual_seed(0))
    weight[::3] *= 1e-39
    weight[1::7] = 0
    return weight.to(torch.bfloat16)


@pytest.mark.parametrize("format", ["mxfp4", "mxfp8"])
def test_steps_change_nothing(monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    seen: list[int] = []
    whole = quantize(special(), format=format)
    finish = blocks._finish

    def count(chosen: blocks.Way, weight: torch.Tensor, outputs: blocks.Outputs, *rest: object) -> None:
        judge = chosen.judge

        def noted(values: torch.Tensor, *others: object) -> object:
            seen.append(len(values))
            return judge(values, *others)  # type: ignore[arg-type]

        monkeypatch.setattr(chosen, "judge", noted, raising=False)
        finish(chosen, weight, outputs, *rest)  # type: ignore[arg-type]
        monkeypatch.delattr(chosen, "judge")

    monkeypatch.setattr(blocks, "_JUDGED", 5)
    monkeypatch.setattr(blocks, "_finish", count)
    cut = quantize(special(), format=format)
    assert len(seen) > 3 and max(seen) <= 5
    assert all(torch.equal(cut.parts[name], part) for name, part in whole.parts.items())


def test_what_is_not_finite_is_counted_over_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_JUDGED", 2)
    weight = special()
    weight[5, 40], weight[5, 41], weight[30, 255], weight[47, 0] = (
        float("inf"),
        float("nan"),
        float("nan"),
        1e39,
    )
    with pytest.raises(NonFiniteError, match=r"inf at index \[5, 40\], in 3 block\(s\)"):
        quantize(weight)
    done = quantize(weight, nonfinite="nan")
    assert int((done.scales == 255).sum()) == 3
