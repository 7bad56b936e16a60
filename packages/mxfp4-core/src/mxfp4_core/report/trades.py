"""What keeping layers in high precision would buy: squared error removed for bytes added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mxfp4_core.jobs.metrics import merge
from mxfp4_core.report.model import Layer


@dataclass(frozen=True)
class Trade:
    """One step of the trade between size and error: keep this layer in the source's precision as well.

    Args:
        layer: the layer that is kept.
        added: bytes that keeping it adds.
        removed: squared error that keeping it removes.
        total_added: bytes added up to and with this step.
        share_left: share of the model's squared error that is left after this step.
    """

    layer: Layer
    added: int
    removed: float
    total_added: int
    share_left: float


def trades(layers: Sequence[Layer], variant: str) -> list[Trade]:
    """Order the layers by squared error removed per byte added, best first.

    Every prefix of the list is the best choice for the bytes it adds: no other set of layers that adds as
    many bytes or fewer removes more error, because the steps are taken by falling ratio and a prefix uses
    its bytes up exactly.
    """
    candidates = [layer for layer in layers if layer.decision == "quantised" and variant in layer.results]
    grows = [layer for layer in candidates if layer.bytes_before > layer.bytes_after]

    def ratio(layer: Layer) -> float:
        return layer.results[variant].noise / (layer.bytes_before - layer.bytes_after)

    total = merge(layer.results[variant] for layer in candidates).noise
    steps: list[Trade] = []
    added, left = 0, total
    for layer in sorted(grows, key=ratio, reverse=True):
        removed, growth = layer.results[variant].noise, layer.bytes_before - layer.bytes_after
        added += growth
        left = max(0.0, left - removed)
        steps.append(Trade(layer, growth, removed, added, left / total if total else 0.0))
    return steps


__all__ = ["Trade", "trades"]
