"""What a caller passes as routes, checked and brought into the one form that backends get."""

from __future__ import annotations

import torch
from torch import Tensor

from mxfp4_core.backend.problem import Problem
from mxfp4_core.backend.routes import Routes
from mxfp4_core.errors import FormatError, ShapeError


def checked(routes: Routes, x: Tensor, problem: Problem) -> Routes:
    """Return what a backend gets: int32 and float32, contiguous, flat tokens as [m, top_k].

    Args:
        routes: of the caller, in any integer and float dtype.
        x: [..., k], or [experts, rows, k] where the tokens are not flat.
        problem: says which of the two.

    Raises:
        ShapeError: sizes that do not belong together.
        FormatError: a dtype or a device that a router does not give.
    """
    if problem.tokens != "flat":
        return _by_place(routes, x, problem)
    ids, weights, expert_map, counts = routes
    want = (*x.shape[:-1], problem.top_k)
    mapped = None if expert_map is None else tuple(expert_map.shape)
    maps: tuple[tuple[int] | None, ...] = ((problem.total_experts,),)
    if problem.total_experts == problem.experts:
        maps += (None,)
    if tuple(ids.shape) != want or tuple(weights.shape) != want or mapped not in maps or counts is not None:
        raise ShapeError(
            "moe",
            seen=f"topk_ids {tuple(ids.shape)}, topk_weights {tuple(weights.shape)}, expert_map {mapped}"
            + ("" if counts is None else f", counts {tuple(counts.shape)}"),
            rule=f"x {tuple(x.shape)} with top_k {problem.top_k} has ids and weights of {want}; with "
            f"{problem.experts} of {problem.total_experts} experts here the map is one of {maps}; flat tokens have "
            "no counts",
            fix="pass the router's output for these tokens, and a map of total_experts entries",
        )
    given = [ids, weights] if expert_map is None else [ids, weights, expert_map]
    sound = weights.is_floating_point() and all(_integers(one) for one in given if one is not weights)
    if not sound or any(one.device != x.device for one in given):
        raise FormatError(
            "moe",
            seen="ids, weights and map are " + ", ".join(f"{one.dtype} on {one.device}" for one in given),
            rule=f"ids and map are integers, weights are floats, all on {x.device}",
            fix="swap them if they are in the wrong order, else convert them",
        )
    return Routes(
        _narrow(ids, problem.total_experts).reshape(-1, problem.top_k).contiguous(),
        weights.reshape(-1, problem.top_k).to(torch.float32).contiguous(),
        None if expert_map is None else _narrow(expert_map, problem.experts).contiguous(),
    )


def _by_place(routes: Routes, x: Tensor, problem: Problem) -> Routes:
    counts, masked = routes.counts, problem.tokens == "masked"
    right = x.dim() == 3 and x.shape[0] == problem.experts and (counts is not None) == masked
    right &= counts is None or tuple(counts.shape) == (problem.experts,)
    right &= routes.topk_ids.numel() == 0 and routes.topk_weights.numel() == 0 and routes.expert_map is None
    if not right:
        raise ShapeError(
            "moe",
            seen=f"x {tuple(x.shape)}, counts {None if counts is None else tuple(counts.shape)}, "
            f"{routes.topk_ids.numel()} ids, expert_map {routes.expert_map is not None}",
            rule=f"{problem.tokens} tokens are x [{problem.experts}, rows, k] with "
            + (f"counts [{problem.experts}]" if masked else "no counts")
            + ", and neither ids, weights nor a map",
            fix="pass Routes.by_expert(x.device" + (", counts)" if masked else ")"),
        )
    if counts is not None and (not _integers(counts) or counts.device != x.device):
        raise FormatError(
            "moe",
            seen=f"counts are {counts.dtype} on {counts.device}",
            rule=f"counts are integers on {x.device}",
            fix="convert them",
        )
    return routes if counts is None else routes._replace(counts=counts.to(torch.int32).contiguous())


def _integers(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool)


def _narrow(numbers: Tensor, end: int) -> Tensor:
    """Return int32, where a number that does not fit stays out of range instead of wrapping onto an expert."""
    if numbers.dtype in (torch.int64, torch.uint32, torch.uint64):
        numbers = numbers.to(torch.int64).clamp(-2, end)
    return numbers.to(torch.int32)


__all__ = ["checked"]
