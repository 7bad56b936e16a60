"""The operators ``mxfp4_petit::linear`` and ``::moe``: our own kernels."""

from __future__ import annotations

from typing import Any, Final

from torch import Tensor

from mxfp4_core.backend import Gate, Operators
from mxfp4_core.errors import BackendError
from mxfp4_petit.portable import interpreter

_OPERATORS: Final = Operators("mxfp4_petit")
_LINEAR = (
    "(Tensor x, Tensor codes, Tensor scales, Tensor? bias, bool folded, bool pairs, bool wide) -> Tensor"
)


def _linear_fake(x: Tensor, codes: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((x.shape[0], codes.shape[0]))


@_OPERATORS.define("linear", _LINEAR, _linear_fake)
def linear(
    x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, folded: bool, pairs: bool, wide: bool
) -> Tensor:
    """Compute ``x @ weight.T + bias``.

    Args:
        x: bfloat16 or float16 [m, k], contiguous, m >= 1, k in whole tiles.
        codes: int32 [n, k/8], or k/4 if wide, in ``PortableLayout``, like the next.
        scales: int32 [n, k/128].
        bias: float [n] or None.
        folded: whether scales may be multiplied into operands of bfloat16.
        pairs: variant of the layout.
        wide: whether a code has 8 bits.

    Returns:
        [m, n] of the dtype of x.

    Raises:
        BackendError: x is on no GPU, and kernels are not interpreted.
    """
    _check(x)
    from mxfp4_petit.portable import compute

    return compute.linear(x, compute.Weight(codes, scales, bias, pairs, folded, wide))


_MOE = (
    "(Tensor x, Tensor gate_up, Tensor gate_up_scales, Tensor? gate_up_bias, bool gate_up_folded, Tensor down, "
    "Tensor down_scales, Tensor? down_bias, bool down_folded, Tensor topk_ids, Tensor topk_weights, "
    "Tensor? expert_map, Tensor? counts, int shared, float alpha, float? limit, float up_offset, bool interleaved, "
    "str function, bool gated, bool pairs, bool wide) -> Tensor"
)


@_OPERATORS.define("moe", _MOE, Operators.like_x)
def moe(
    x: Tensor,
    gate_up: Tensor,
    gate_up_scales: Tensor,
    gate_up_bias: Tensor | None,
    gate_up_folded: bool,
    down: Tensor,
    down_scales: Tensor,
    down_bias: Tensor | None,
    down_folded: bool,
    topk_ids: Tensor,
    topk_weights: Tensor,
    expert_map: Tensor | None,
    counts: Tensor | None,
    shared: int,
    alpha: float,
    limit: float | None,
    up_offset: float,
    interleaved: bool,
    function: str,
    gated: bool,
    pairs: bool,
    wide: bool,
) -> Tensor:
    """Compute the sum over the chosen experts of ``topk_weight * expert(x)``.

    Args:
        x: bfloat16 or float16 [m, k], contiguous, m >= 1, k in whole tiles; [experts, rows, k] where an engine has
            sorted the rows.
        gate_up: int32 [experts + shared, 2n, k/8], or k/4 if wide, in ``PortableLayout``, like the next;
            without a gate [..., n, ...], as the next two.
        gate_up_scales: int32 [experts + shared, 2n, k/128].
        gate_up_bias: float [experts + shared, 2n] or None.
        gate_up_folded: as ``linear``.
        down: int32 [experts + shared, k, n/8], or n/4 if wide.
        down_scales: int32 [experts + shared, k, n/128].
        down_bias: float [experts + shared, k] or None.
        down_folded: likewise.
        topk_ids: int32 [m, top_k]; what is no expert is an empty slot. Not read where rows are sorted.
        topk_weights: float32 [m, top_k], applied to the output of the experts; likewise.
        expert_map: int32 [total_experts] from ids to indices here, or None.
        counts: int32 [experts], how many rows of each expert are read, or None for all; where rows are sorted.
        shared: how many of the last experts every token goes to, with weight 1.
        alpha: see ``mxfp4_core.backend.Gate``, as the next five.
        limit: clamp or None.
        up_offset: added to up.
        interleaved: order of the gate-up rows.
        function: of the activation.
        gated: whether there are gate rows.
        pairs: variant of the layout.
        wide: whether a code has 8 bits.

    Returns:
        The shape and the dtype of x. Of sorted rows the output of their expert, zero where a row is not read.

    Raises:
        BackendError: as ``linear``.
    """
    _check(x)
    from mxfp4_petit.portable import compute

    rows = x.view(-1, x.shape[-1])
    if x.dim() == 3:
        chosen = compute.by_place(x, counts)
    else:
        chosen = compute.with_shared(
            compute.Chosen(topk_ids, expert_map, topk_weights), down.shape[0] - shared, shared
        )
    up = compute.Weight(gate_up, gate_up_scales, gate_up_bias, pairs, gate_up_folded, wide)
    last = compute.Weight(down, down_scales, down_bias, pairs, down_folded, wide)
    gate = Gate.of(alpha, limit, up_offset, interleaved, function, gated)
    return compute.moe(rows, up, last, chosen, gate).view(x.shape)


def _check(x: Tensor) -> None:
    if x.device.type != "cuda" and not interpreter.active():
        raise BackendError(
            "an operator of mxfp4_petit",
            seen=f"x on {x.device}",
            rule="its kernels run on GPUs, AMD's or others, which torch calls cuda",
            fix="move the model to a GPU; to try it on a CPU set TRITON_INTERPRET=1 before Python starts",
        )


__all__ = ["linear", "moe"]
