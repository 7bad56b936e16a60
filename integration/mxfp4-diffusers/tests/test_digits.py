"""The trained diffusion transformer of the repository: quantised, it still draws digits."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from mxfp4_core.errors import ConfigError
from mxfp4_core.jobs import plan_checkpoint
from mxfp4_core.report.budget import keep_within
from mxfp4_diffusers import Mxfp4Config, precise_steps, sensitivities
from mxfp4_diffusers.steps import _steps

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "demo" / "digits-dit"
sys.path.insert(0, str(ROOT / "demo"))

from digits import DigitsPipeline, load_judge  # noqa: E402

LABELS = tuple(range(10)) * 2


def load(config: Mxfp4Config | None = None) -> Any:
    given = {} if config is None else {"quantization_config": config}
    transformer = diffusers.AutoModel.from_pretrained(
        str(FOLDER), subfolder="transformer", dtype=torch.bfloat16, **given
    )
    return DigitsPipeline(transformer, diffusers.FlowMatchEulerDiscreteScheduler())


@pytest.fixture(scope="module")
def plain() -> Tensor:
    images: Tensor = load()(LABELS, steps=10)
    return images


def psnr(images: Tensor, plain: Tensor) -> float:
    return float(-10 * (images - plain).square().mean().log10())


def recognised(images: Tensor) -> float:
    judge, _ = load_judge(FOLDER / "judge.safetensors")
    return float((judge(images).argmax(-1) == torch.tensor(LABELS)).float().mean())


def test_it_is_small_and_draws_digits(plain: Tensor) -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 1_000_000
    assert recognised(plain) >= 0.95


# docs/diffusers.md has the figures of many images; here 20, which move a few dB.
@pytest.mark.parametrize(
    ("settings", "least"),
    [({}, 25), ({"format": "mxfp8"}, 33), ({"rule": "floor"}, 24)],
    ids=["even", "mxfp8", "floor"],
)
def test_quantised_it_draws_the_same_digits(settings: dict[str, str], least: float, plain: Tensor) -> None:
    images = load(Mxfp4Config(**settings))(LABELS, steps=10)
    assert psnr(images, plain) > least
    assert recognised(images) >= 0.95


def test_a_pipeline_is_saved_and_draws_the_same_bits(tmp_path: Path) -> None:
    pipe = load(Mxfp4Config())
    images = pipe(LABELS[:4], steps=3)
    pipe.save_pretrained(tmp_path)
    again = DigitsPipeline.from_pretrained(str(tmp_path), dtype=torch.bfloat16)
    assert torch.equal(again(LABELS[:4], steps=3), images)


def test_the_first_and_the_last_steps_in_high_precision(plain: Tensor) -> None:
    pipe, precise = load(Mxfp4Config()), load().transformer
    calls: list[int] = []
    precise.register_forward_pre_hook(lambda module, given: calls.append(pipe.scheduler.step_index or 0))
    before = pipe(LABELS, steps=10)
    precise_steps(pipe, precise, first=0.15, last=1)
    images = pipe(LABELS, steps=10)
    assert calls == [0, 1, 9]
    assert not torch.equal(images, before)
    precise_steps(pipe, precise, first=10, last=0)
    assert torch.equal(pipe(LABELS, steps=10), plain)
    precise_steps(pipe, precise, first=0, last=0)
    assert torch.equal(pipe(LABELS, steps=10), before)


@pytest.mark.parametrize(
    ("asked", "total", "steps"), [(0.08, 25, 2), (0.08, 26, 3), (0.07, 100, 7), (3, 10, 3)]
)
def test_a_share_of_the_steps_is_rounded_up(asked: float, total: int, steps: int) -> None:
    assert _steps(asked, total) == steps


def test_steps_that_cannot_be_arranged() -> None:
    pipe = load(Mxfp4Config())
    with pytest.raises(ConfigError, match="cannot be computed by another model"):
        precise_steps(pipe, torch.nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="cannot be negative"):
        precise_steps(pipe, load().transformer, first=-1)
    pipe.scheduler = torch.nn.Identity()
    with pytest.raises(ConfigError, match="cannot be counted"):
        precise_steps(pipe, load().transformer)


def test_what_hurts_most_is_kept_within_a_budget_and_the_images_move_less(plain: Tensor) -> None:
    model, generator = load().transformer, torch.Generator().manual_seed(0)
    x, t = torch.randn(20, 1, 8, 8, generator=generator).bfloat16(), torch.linspace(50, 950, 20)
    hurts = sensitivities(model, lambda: model(x, t, torch.tensor(LABELS), return_dict=False)[0].float())
    plan = plan_checkpoint(FOLDER / "transformer")
    assert hurts.keys() == {row.name for row in plan.quantized}
    kept = keep_within(plan, plan.bytes_after + 100_000, hurts)
    assert 0 < kept.added <= 100_000 and kept.share_left < 0.6
    images = load(Mxfp4Config(ignore=kept.config.ignore))(LABELS, steps=10)
    assert psnr(images, plain) > psnr(load(Mxfp4Config())(LABELS, steps=10), plain) + 1
