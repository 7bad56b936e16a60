"""One kit for every engine: what it must say of a prompt, and which bytes each of its ranks must hold.

An engine brings its answers, and the modules behind its layers. What they must be is computed here, from the
checkpoint in high precision and from a reference that computes with the values of the codes; so two engines that pass
agree with each other. ``tests/engines`` of the repository uses it on vLLM and SGLang, the adapters of transformers and
diffusers in their own tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from mxfp4_core import quantize
from mxfp4_core.modules.base import Mxfp4Module
from mxfp4_core.naming.vocabulary import module_of, parse_expert

PROMPTS = ((5, 17, 99, 3, 250, 7), tuple(range(40, 90)))
"""Prompts as ids of tokens, for any vocabulary of at least 256: a short one, and one of more than a block."""

LIKELY = 20
"""So many tokens an engine is asked for; vLLM gives no more by default."""

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""What serving engines fuse."""


@dataclass(frozen=True)
class ExpectedTokens:
    """What an engine must say of the first token after each prompt.

    Attributes:
        log_probabilities: of each prompt, ``[vocabulary]`` in float32.
        far: how far an engine may be from them.
    """

    log_probabilities: tuple[torch.Tensor, ...]
    far: float

    @classmethod
    def of(cls, exact: Sequence[torch.Tensor], rounded: Sequence[torch.Tensor]) -> ExpectedTokens:
        """Derive it from two runs of a reference, whose weights have the values of the codes.

        An engine computes in BF16: the same sums in another order, each of them rounded. So it may be twice as far
        from float32 as the reference's own run in BF16 is, and its logits are rounded to BF16 at the end, where one
        step of the largest is ``eps * |logit|``.

        Args:
            exact: logits of the first token after each prompt, ``[vocabulary]``, computed in float32.
            rounded: the same computed in BF16.
        """
        wanted, lost = [each.float().log_softmax(-1) for each in exact], 0.0
        for one, other in zip(wanted, rounded, strict=True):
            likely = one.topk(LIKELY).indices
            lost = max(lost, float((one - other.float().log_softmax(-1))[likely].abs().max()))
        step = max(float(each.abs().max()) for each in exact) * torch.finfo(torch.bfloat16).eps
        return cls(tuple(wanted), 2 * lost + step)

    def check(self, number: int, token: int, said: Mapping[int, float]) -> None:
        """Check what an engine says after one prompt.

        Args:
            number: which prompt.
            token: the one that it chose.
            said: its log-probabilities of the most likely tokens, by id.

        Raises:
            AssertionError: one is too far, or it chose another token than the most likely one, where that is clear.
        """
        wanted = self.log_probabilities[number]
        assert said, f"prompt {number}: the engine says no log-probabilities"
        for each, found in said.items():
            assert abs(found - float(wanted[each])) <= self.far, (
                f"prompt {number}, token {each}: log-probability {found:.4f}, wanted {float(wanted[each]):.4f} "
                f"within {self.far:.4f}"
            )
        best = wanted.topk(2)
        if float(best.values[0] - best.values[1]) > 2 * self.far:
            assert token == int(best.indices[0]), (
                f"prompt {number}: token {token}, not {int(best.indices[0])}"
            )


def held_by(modules: Iterable[tuple[str, Mxfp4Module]]) -> dict[str, torch.Tensor]:
    """Return copies on the CPU of the canonical parts of modules, by ``name.matrix.part``.

    Args:
        modules: pairs of a name, as the engine has it, and the module behind the layer.
    """
    return {
        f"{name}.{matrix}.{part}": tensor.detach().cpu().contiguous().clone()
        for name, module in modules
        for matrix in module.shapes
        for part, tensor in module.canonical(matrix).parts.items()
    }


def expected_parts(
    weights: Mapping[str, torch.Tensor],
    rank: int = 0,
    ranks: int = 1,
    *,
    whole_experts: bool = False,
    fused: Mapping[str, Sequence[str]] = FUSED,
    rule: str | None = None,
) -> dict[str, torch.Tensor]:
    """Return the bytes that a rank must hold, by the names of `held_by`.

    The core quantises every weight as a whole; what a rank holds is cut out of the bytes.

    Args:
        weights: the weights in high precision that are quantised, by name; each expert has its own.
        rank: number of the rank.
        ranks: over how many the weights are cut.
        whole_experts: ranks share whole experts (EP), instead of cutting each of them.
        fused: modules that the engine fuses, and the projections in each, in stacking order.
        rule: that the weights are quantised with; that of the default if None.
    """
    modules: dict[str, list[str]] = {}
    experts: dict[str, dict[int, dict[str, str]]] = {}
    for name in weights:
        found = parse_expert(module_of(name))
        if found is not None:
            (part,) = found.parts
            experts.setdefault(found.prefix, {}).setdefault(found.index or 0, {})[part] = name
            continue
        stem, _, leaf = module_of(name).rpartition(".")
        into = next((each for each, inner in fused.items() if leaf in inner), leaf)
        inner = [f"{stem}.{each}".lstrip(".") for each in fused.get(into, [leaf])]
        modules[f"{stem}.{into}".lstrip(".")] = [f"{each}.weight" for each in inner]

    def cut(name: str) -> dict[str, torch.Tensor]:
        columns = module_of(name).endswith(("o_proj", "down_proj"))
        whole = whole_experts and parse_expert(module_of(name)) is not None
        parts = quantize(weights[name], rule=rule).parts
        return {
            part: each if whole else each.chunk(ranks, int(columns))[rank] for part, each in parts.items()
        }

    result = {f"{name}.weight": _joined([cut(each) for each in inner]) for name, inner in modules.items()}
    for prefix, numbered in experts.items():
        mine = sorted(numbered)
        if whole_experts:
            mine = mine[rank * len(mine) // ranks : (rank + 1) * len(mine) // ranks]
        for matrix, projections in (("gate_up", ["gate_proj", "up_proj"]), ("down", ["down_proj"])):
            each = [_joined([cut(numbered[number][part]) for part in projections]) for number in mine]
            result[f"{prefix}.{matrix}"] = {
                part: torch.stack([one[part] for one in each]) for part in each[0]
            }
    return {f"{name}.{part}": each for name, parts in result.items() for part, each in parts.items()}


def check_parts(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    """Check that an engine holds these bytes, all of them, and no others.

    Raises:
        AssertionError: it does not.
    """
    assert found.keys() == wanted.keys(), f"not both: {sorted(found.keys() ^ wanted.keys())[:6]}"
    for name, tensor in found.items():
        assert torch.equal(tensor, wanted[name]), f"{name} has other bytes"


def _joined(parts: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {part: torch.cat([each[part] for each in parts]) for part in parts[0]}


__all__ = ["FUSED", "LIKELY", "PROMPTS", "ExpectedTokens", "check_parts", "expected_parts", "held_by"]
