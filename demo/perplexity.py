"""Perplexity of a causal language model on a text, with its standard error, and paired differences.

The text is cut into windows that do not overlap; each gives one mean loss, and the standard error is that of
the mean of these. Two models are compared window by window: the paired difference is far more precise than
either of the two perplexities.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.error:.3f}"


@dataclass(frozen=True)
class Perplexity:
    """The losses of one model on the windows of one text.

    Args:
        losses: float64 ``[windows]``, mean negative log-likelihood of a token, in nats.
    """

    losses: Tensor

    @property
    def loss(self) -> Estimate:
        """Give the mean loss in nats a token."""
        return _mean(self.losses)

    @property
    def perplexity(self) -> Estimate:
        """Give exp(loss); its error follows from that of the loss to first order."""
        loss = self.loss
        return Estimate(math.exp(loss.value), math.exp(loss.value) * loss.error)

    def minus(self, base: Perplexity) -> Estimate:
        """Give the loss less that of `base` on the same windows, with the error of the paired difference."""
        if self.losses.shape != base.losses.shape:
            raise ValueError(
                f"paired windows differ: {len(self.losses)} here, {len(base.losses)} in the base"
            )
        return _mean(self.losses - base.losses)


def cut(tokens: list[int] | Tensor, *, length: int = 256, count: int | None = None) -> Tensor:
    """Cut a text into windows that do not overlap, spread evenly over it.

    Args:
        tokens: the token ids of the text.
        length: tokens in a window.
        count: how many windows; ``None`` takes all that are whole.

    Returns:
        int64 ``[count, length]``.

    Raises:
        ValueError: if the text holds fewer than two windows, or fewer than `count`.
    """
    stream = torch.as_tensor(tokens, dtype=torch.long)
    whole = len(stream) // length
    wanted = whole if count is None else count
    if not 2 <= wanted <= whole:
        raise ValueError(
            f"{wanted} windows of {length} tokens: the text of {len(stream)} tokens holds {whole}"
        )
    every = stream[: whole * length].view(whole, length)
    return every[torch.arange(wanted) * whole // wanted]


@torch.inference_mode()
def measure(
    model: nn.Module, windows: Tensor, *, batch: int = 8, step: Callable[[int], object] = lambda done: None
) -> Perplexity:
    """Measure the loss of every window; the first token of each is given, the others are predicted.

    Args:
        model: called as ``model(input_ids).logits``, ``[batch, length, vocabulary]``.
        windows: int64 ``[windows, length]`` on any device.
        batch: windows in one forward pass.
        step: called with the number of windows just done, for a progress bar.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    losses = []
    for ids in windows.split(batch):
        here = ids.to(device)
        logits = model(input_ids=here).logits[:, :-1].float()
        each = nn.functional.cross_entropy(logits.flatten(0, 1), here[:, 1:].flatten(), reduction="none")
        losses.append(each.view(len(here), -1).double().mean(1).cpu())
        step(len(here))
    model.train(was_training)
    return Perplexity(torch.cat(losses))


def _mean(values: Tensor) -> Estimate:
    return Estimate(values.mean().item(), values.std().item() / math.sqrt(len(values)))
