"""A pipeline of diffusers that draws handwritten digits with a small diffusion transformer, and what judges its images.

The transformer is diffusers' own ``DiTTransformer2DModel`` on 8 x 8 pixels, trained by ``demo/train_digits.py`` to
give the velocity from noise to an image. The judge is a classifier of digits: the distance between the Gaussians of its
features, as FID takes it with features of Inception, says how far images are from the written ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file
from torch import Tensor, nn

SIZE = 8
CLASSES = 10
NOBODY = CLASSES
"""The label of no digit, for guidance."""


class DigitsPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Draws digits.

    Args:
        transformer: gives the velocity of ``[batch, 1, 8, 8]`` at a time in [0, 1000], for a label, 10 being none.
        scheduler: integrates it.
    """

    def __init__(
        self, transformer: DiTTransformer2DModel, scheduler: FlowMatchEulerDiscreteScheduler
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self, labels: Sequence[int], *, steps: int = 25, guidance: float = 1.5, seed: int = 0
    ) -> Tensor:
        """Draw one image for each label.

        Args:
            labels: digits.
            steps: of the scheduler.
            guidance: how far to go beyond the velocity without a label; 1 for not at all.
            seed: of the noise.

        Returns:
            ``[len(labels), 8, 8]`` in [0, 1], float32.
        """
        model, generator = self.transformer, torch.Generator().manual_seed(seed)
        x = torch.randn(len(labels), 1, SIZE, SIZE, generator=generator).to(model.device)
        wanted = torch.tensor(list(labels), device=model.device)
        both = torch.cat([wanted, torch.full_like(wanted, NOBODY)])
        self.scheduler.set_timesteps(steps, device=model.device)
        for t in self.scheduler.timesteps:
            given = torch.cat([x, x]).to(model.dtype)
            v = model(given, t.expand(len(both)), both, return_dict=False)[0].float()
            told, free = v.chunk(2)
            x = self.scheduler.step(free + guidance * (told - free), t, x, return_dict=False)[0]
        return (x[:, 0].clamp(-1, 1).cpu() + 1) / 2


class Judge(nn.Module):
    """A classifier of digits, with 48 features before its last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.SiLU()
        )
        self.hidden = nn.Linear(512, 48)
        self.head = nn.Linear(48, CLASSES)

    def features(self, images: Tensor) -> Tensor:
        """Return ``[n, 48]`` of images ``[n, 8, 8]`` in [0, 1]."""
        return nn.functional.silu(self.hidden(self.convolutions(images[:, None]).flatten(1)))

    def forward(self, images: Tensor) -> Tensor:
        """Return ``[n, 10]``."""
        found: Tensor = self.head(self.features(images))
        return found


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance of features, float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Gaussian:
        """Return those of ``[n, d]``."""
        rows = features.detach().double()
        return cls(rows.mean(0), torch.cov(rows.T))

    def distance(self, other: Gaussian) -> float:
        """Return the squared Fréchet distance to another one."""
        values, vectors = torch.linalg.eigh(self.covariance)
        root = vectors * values.clamp(min=0).sqrt() @ vectors.T
        between = torch.linalg.eigvalsh(root @ other.covariance @ root).clamp(min=0).sqrt().sum()
        spread = self.covariance.trace() + other.covariance.trace() - 2 * between
        return float((self.mean - other.mean).square().sum() + spread)


def load_judge(path: Path) -> tuple[Judge, Gaussian]:
    """Read the classifier, and the Gaussian of its features of the written digits."""
    stored = load_file(path)
    written = Gaussian(stored.pop("written.mean").double(), stored.pop("written.covariance").double())
    judge = Judge()
    judge.load_state_dict(stored)
    return judge.eval(), written
