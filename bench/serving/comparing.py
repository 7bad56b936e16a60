"""What variants of an engine say, compared: log-probabilities and tokens, and two GPUs with one."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serving.pieces import Answer

COMPARED = 8
"""Tokens of each prompt that are compared."""

TWO_WAYS = ("tp2", "ep2")
PAIRS = (
    ("ours", "theirs"),
    ("ours", "ours-stored"),
    ("ours", "bf16"),
    ("ours-mxfp8", "bf16"),
    *((name, f"{name}-{how}") for how in TWO_WAYS for name in ("bf16", "ours")),
)
# NVLink's multicast may put GPUs that others share out of service.
NO_MULTICAST = {
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "VLLM_ALLREDUCE_USE_SYMM_MEM": "0",
}
Variants = Mapping[str, tuple[dict[str, Any], dict[str, str]]]
"""By name: what the engine is started with, and variables of its environment."""


def on_two(variants: Variants, two: Mapping[str, Any], whole_experts: Mapping[str, Any]) -> Variants:
    """Return BF16 and ours on two GPUs: ``-tp2`` cuts all weights, ``-ep2`` has whole experts on each.

    Args:
        variants: on one GPU.
        two: what the engine is started with on two.
        whole_experts: what is added for ``-ep2``.
    """
    more: dict[str, Mapping[str, Any]] = {"tp2": {}, "ep2": whole_experts}
    return {
        f"{name}-{how}": ({**variants[name][0], **two, **more[how]}, {**variants[name][1], **NO_MULTICAST})
        for name in ("bf16", "ours")
        for how in TWO_WAYS
    }


def applies(model: str, variant: str) -> bool:
    """Say whether a variant is one of this model: without experts, none can be whole."""
    return not (model == "dense" and variant.endswith("-ep2"))


@dataclass(frozen=True)
class Difference:
    """How far the first tokens after some prompts are from others.

    Attributes:
        mean: of the differences of log-probabilities, of tokens that both name.
        most: the largest of them.
        largest: the largest log-probability, without its sign.
        choices: of how many prompts the most likely first tokens are the same.
        tokens: how many of `COMPARED` generated tokens are the same before the first that is not, over all prompts.
        prompts: how many there are.
    """

    mean: float
    most: float
    largest: float
    choices: int
    tokens: int
    prompts: int

    def __str__(self) -> str:
        return (
            f"log-probabilities differ by {self.mean:.4f} in the mean and {self.most:.4f} at most, {self.choices} of "
            f"{self.prompts} first choices and {self.tokens} of {COMPARED * self.prompts} tokens alike"
        )


def difference(one: Answer, other: Answer) -> Difference:
    """Compare two answers.

    Args:
        one: with ``first_tokens``, for each prompt log-probabilities by token, and ``tokens``, what it generated.
        other: likewise.
    """
    first = [*zip(one["first_tokens"], other["first_tokens"], strict=True)]
    pairs = [(a[token], b[token]) for a, b in first for token in a.keys() & b.keys()]
    far = [abs(x - y) for x, y in pairs] or [float("nan")]
    same = sum(max(a, key=a.__getitem__) == max(b, key=b.__getitem__) for a, b in first)
    tokens = 0
    for a, b in zip(one["tokens"], other["tokens"], strict=True):
        tokens += len([*itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=True))])
    largest = max((abs(x) for x, _ in pairs), default=float("nan"))
    return Difference(statistics.fmean(far), max(far), largest, same, tokens, len(first))


def compare(found: Mapping[str, Answer]) -> None:
    """Print how far what variants say is from what others say, and whether two GPUs say what one says.

    The bound is derived: on two GPUs the same products are added in another order and rounded to BF16. What that does
    to a model in BF16 is measured beside it; ours may do twice as much, and is rounded to BF16 at the end, where one
    step of the largest is ``2**-8`` of it. Where two experts are as likely, a router may choose otherwise on two GPUs:
    one prompt is far from the other then, with BF16 as with ours, and the mean tells more.

    Args:
        found: answers by variant; without ``tokens`` where it failed.
    """
    said: dict[str, Difference] = {}
    for name, other in PAIRS:
        if "tokens" in (one := found.get(name, {})) and "tokens" in (another := found.get(other, {})):
            said[other if name in ("bf16", "ours") and other.startswith(f"{name}-") else name] = far = (
                difference(one, another)
            )
            print(f"    {name} and {other}: {far}", flush=True)
    for how in TWO_WAYS:
        if (plain := said.get(f"bf16-{how}")) and (ours := said.get(f"ours-{how}")):
            bound = 2 * plain.most + ours.largest * 2.0**-8
            verdict = "within" if ours.most <= bound else "NOT within"
            print(f"    ours-{how}: {ours.most:.4f} at most, {verdict} the bound {bound:.4f}", flush=True)
