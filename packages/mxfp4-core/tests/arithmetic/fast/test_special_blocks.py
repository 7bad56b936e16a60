"""Blocks of subnormals, at the ends of the range and not finite: the bytes of the judge, mostly without it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from mxfp4_core import quantize
from mxfp4_core.arithmetic import profiles, reference
from mxfp4_core.arithmetic.fast import blocks, dual, mxfp8, single
from mxfp4_core.arithmetic.fast.choose import cpu_kernels
from mxfp4_core.arithmetic.format import BLOCK
from mxfp4_core.errors import NonFiniteError

WAYS = {"mxfp4": single.Single, "mxfp8": mxfp8.Mxfp8Way, "mxfp4-dual": dual.Dual}
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the compiled kernels away: the path that every device has."""
    for module in (single, mxfp8, dual):
        monkeypatch.setattr(module, "cpu_kernels", lambda name="": None)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Count the blocks that a judge is given."""
    seen: list[int] = []
    for kind in WAYS.values():
        judge = kind.judge

        def noted(self: blocks.Way, values: torch.Tensor, *rest: object, judge: object = judge) -> object:
            seen.append(len(values))
            return judge(self, values, *rest)  # type: ignore[operator]

        monkeypatch.setattr(kind, "judge", noted)
    yield seen


def ends(dtype: torch.dtype) -> torch.Tensor:
    """Return 3072 blocks of every size that the dtype has, signs and zeros among them, and blocks of one value."""
    made = torch.Generator().manual_seed(1)
    limits = torch.finfo(dtype)
    low, high = -149.0 if dtype != torch.float16 else -24.0, float(torch.tensor(limits.max).log2())
    sizes = torch.exp2(torch.linspace(low, high, 1024, dtype=torch.float64))
    mixed = torch.rand(1024, BLOCK, generator=made, dtype=torch.float64) * 2 - 1
    wide = mixed * torch.exp2(torch.randint(-40, 1, mixed.shape, generator=made).double())
    wide[:, 3] = 0.0
    wide[:, 4] = -0.0
    same = torch.where(mixed < 0, -1.0, 1.0) * torch.rand(1024, 1, generator=made, dtype=torch.float64)
    every = torch.cat([mixed, wide, same]) * sizes.repeat(3)[:, None]
    return every.clamp(-limits.max, limits.max).to(dtype)


def special() -> torch.Tensor:
    """Return a weight of subnormal, ordinary and empty blocks."""
    weight = torch.randn(48, 256, generator=torch.Generator().manual_seed(0))
    weight[::3] *= 1e-39
    weight[1::7] = 0
    return weight.to(torch.bfloat16)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("format", ["mxfp4", "mxfp8"])
def test_the_judge_takes_a_few_blocks_a_step(
    monkeypatch: pytest.MonkeyPatch, judged: list[int], format: str
) -> None:
    whole = quantize(special(), format=format)
    judged.clear()
    monkeypatch.setattr(blocks, "_JUDGED", 5)
    monkeypatch.setattr(blocks, "_SOUGHT", 64)
    cut = quantize(special(), format=format)
    assert len(judged) > 3 and max(judged) <= 5
    assert all(torch.equal(cut.parts[name], part) for name, part in whole.parts.items())


@pytest.mark.skipif(cpu_kernels() is None, reason="numba is not installed")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compiled_kernels_leave_nothing_to_the_judge(judged: list[int], dtype: torch.dtype) -> None:
    weight = ends(dtype)
    tried = 0
    for profile in profiles.profiles():
        known = profiles.resolve(profile)
        if known.down or (known.dtypes and dtype not in known.dtypes) or known.level0 is not None:
            continue
        made = quantize(weight, profile=profile)
        codes, scales = reference.quantize(weight, known)
        assert torch.equal(made.scales, scales), profile
        assert torch.equal(made.codes, codes), profile
        tried += 1
    assert tried > 10
    for format in ("mxfp8", "mxfp4-dual"):
        quantize(weight.reshape(-1, 512), format=format)
    assert judged == []


@pytest.mark.skipif(cpu_kernels() is None, reason="numba is not installed")
@pytest.mark.parametrize("format", WAYS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compiled_and_plain_paths_agree(
    monkeypatch: pytest.MonkeyPatch, judged: list[int], format: str, dtype: torch.dtype
) -> None:
    weight = ends(dtype).reshape(-1, 512)
    weight[7, 100], weight[9, 3], weight[9, 480] = float("nan"), float("inf"), -float("inf")
    compiled = quantize(weight, format=format, nonfinite="nan")
    assert judged == []
    for module in (single, mxfp8, dual):
        monkeypatch.setattr(module, "cpu_kernels", lambda name="": None)
    plain = quantize(weight, format=format, nonfinite="nan")
    assert judged
    for name, part in plain.parts.items():
        assert torch.equal(compiled.parts[name].view(torch.uint8), part.view(torch.uint8)), name


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
