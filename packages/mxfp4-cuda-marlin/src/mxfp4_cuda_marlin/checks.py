"""What the operators refuse before a kernel sees it, so that no input can make one read outside of its tensors.

Values are not looked at, since that would wait for the device. The kernels are safe for any: ids that are no expert are
empty slots, and every byte is a code or a scale.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from mxfp4_core.errors import BackendError, ConfigError, FormatError, ShapeError
from mxfp4_cuda_marlin.limits import MAX_EXPERTS, MAX_TOP_K, SIZE_MAX, TILE

Weight = tuple[Tensor, Tensor, Tensor | None]
"""Codes, scales and bias in ``Sm90Layout``."""

_LINEAR, _MOE = "mxfp4_cuda_marlin::linear", "mxfp4_cuda_marlin::moe"


def sizes(codes: Tensor) -> tuple[int, int]:
    """Return n and k of a packed weight: codes uint8 [..., n/64, k/64, 2048].

    Raises:
        FormatError: these are no codes of the layout.
    """
    if codes.dim() < 3:
        raise FormatError(
            "a weight of the backend 'cuda-marlin'",
            seen=f"codes {tuple(codes.shape)}",
            rule="codes are [..., n/64, k/64, 2048], as Sm90Layout.pack returns them",
            fix="pack the weight with mxfp4_core.backend.calls.pack",
        )
    return codes.shape[-3] * TILE, codes.shape[-2] * TILE


def has_small_scales(scales: Tensor) -> bool:
    """Say whether all scale bytes are at most 128; the shape carries it (see ``layout``)."""
    return scales.shape[-1] == 128


def check_linear(x: Tensor, weight: Weight) -> None:
    """Refuse what ``ops.linear`` does not take.

    Raises:
        BackendError: x is not on an SM90 device.
        FormatError: dtypes, devices, strides or alignments other than those of ``ops.linear``.
        ShapeError: sizes that do not belong together, or that 32 bits do not hold.
    """
    _check_device(_LINEAR, x.device)
    _check_x(_LINEAR, x, sizes(weight[0])[1])
    check_linear_weight(weight, x.device)


def check_linear_weight(weight: Weight, device: torch.device | None = None) -> None:
    """Refuse a weight of a linear; raises as ``check_linear``.

    Args:
        weight: codes, scales and bias.
        device: where it belongs; that of the codes if None.
    """
    device = device or weight[0].device
    _check_device(_LINEAR, device)
    _check_weight(_LINEAR, device, weight, ())
    _check_sizes(_LINEAR, *sizes(weight[0]), 1)


def check_moe(
    x: Tensor, gate_up: Weight, down: Weight, ids: Tensor, factors: Tensor, expert_map: Tensor | None
) -> None:
    """Refuse what ``ops.moe`` does not take; raises as ``check_linear``."""
    _check_device(_MOE, x.device)
    _check_x(_MOE, x, sizes(gate_up[0])[1])
    check_moe_weights(gate_up, down, ids.shape[1] if ids.dim() == 2 else 1, x.device)
    _check_routes(x, ids, factors, expert_map)


def check_moe_weights(gate_up: Weight, down: Weight, top_k: int, device: torch.device | None = None) -> None:
    """Refuse the weights of a MoE layer; raises as ``check_linear``.

    Args:
        gate_up: codes, scales and bias.
        down: codes, scales and bias.
        top_k: experts of a token.
        device: where they belong; that of the codes of ``gate_up`` if None.
    """
    device = device or gate_up[0].device
    _check_device(_MOE, device)
    (rows, k), (back, n), experts = sizes(gate_up[0]), sizes(down[0]), gate_up[0].shape[0]
    for weight in (gate_up, down):
        _check_weight(_MOE, device, weight, (experts,))
    if rows != 2 * n or back != k:
        raise ShapeError(
            _MOE,
            seen=f"gate_up has {rows} rows and k = {k}, down has {back} rows and k = {n}",
            rule="down takes half of gate_up's rows back to its k",
            fix="give both weights of one layer",
        )
    _check_sizes(_MOE, rows, k, experts)
    if not (1 <= experts <= MAX_EXPERTS and 1 <= top_k <= MAX_TOP_K):
        raise ShapeError(
            _MOE,
            seen=f"{experts} experts, top_k = {top_k}",
            rule=f"1 to {MAX_EXPERTS} experts, 1 to {MAX_TOP_K} of them for a token",
            fix="use expert parallelism, or leave the layer out where it has no experts",
        )


def check_limit(limit: float | None) -> None:
    """Refuse a clamp that has no meaning.

    Raises:
        ConfigError: it is negative or NaN.
    """
    if limit is not None and not limit >= 0:
        raise ConfigError(
            _MOE, seen=f"limit = {limit}", rule="a clamp has limit >= 0", fix="check swiglu_limit"
        )


@cache
def _is_sm90(device: torch.device) -> bool:
    # ROCm's torch calls its devices cuda as well, and gfx90a has the numbers 9 and 0.
    cuda = device.type == "cuda" and torch.version.hip is None
    return cuda and torch.cuda.get_device_capability(device) == (9, 0)


def _check_device(op: str, device: torch.device) -> None:
    if not _is_sm90(device):
        raise BackendError(
            op,
            seen=f"tensors on {device}",
            rule="the kernels run on NVIDIA GPUs of compute capability 9.0",
            fix="ask mxfp4_core.select_backend for a backend of this device",
        )


def _check_x(op: str, x: Tensor, k: int) -> None:
    if x.dtype is not torch.bfloat16:
        raise FormatError(op, seen=f"x is {x.dtype}", rule="x is bfloat16", fix="convert x")
    if x.dim() != 2 or x.shape[1] != k or x.shape[0] < 1 or not x.is_contiguous():
        raise ShapeError(
            op,
            seen=f"x {tuple(x.shape)}, contiguous: {x.is_contiguous()}",
            rule=f"x is contiguous [m, {k}] with m >= 1",
            fix="call it through mxfp4_core.backend.calls, which pads and checks",
        )


def _check_weight(op: str, device: torch.device, weight: Weight, lead: tuple[int, ...]) -> None:
    codes, scales, bias = weight
    tiles = (*lead, *codes.shape[-3:-1])
    fits = codes.shape == (*tiles, 2048) and scales.shape in ((*tiles, 128), (*tiles, 64, 2))
    fits &= bias is None or bias.shape == (*lead, tiles[-2] * TILE)
    parts = {"codes": codes, "scales": scales} | ({} if bias is None else {"bias": bias})
    dtypes = {"codes": torch.uint8, "scales": torch.uint8, "bias": torch.bfloat16}
    # Bulk copies read 16 bytes at a time.
    sound = all(
        part.dtype == dtypes[name]
        and part.device == device
        and part.is_contiguous()
        and part.data_ptr() % 16 == 0
        for name, part in parts.items()
    )
    if not fits or not sound:
        raise FormatError(
            op,
            seen="; ".join(_describe(name, part) for name, part in parts.items()),
            rule=f"codes, scales and bias are what Sm90Layout.pack returned, of the leading sizes {lead}, contiguous, "
            f"at addresses that 16 divides, on {device}",
            fix="pack the weight with mxfp4_core.backend.calls.pack",
        )


def _check_sizes(op: str, n: int, k: int, experts: int) -> None:
    if not (1 <= n <= SIZE_MAX and 1 <= k <= SIZE_MAX) or n // TILE * experts > SIZE_MAX:
        raise ShapeError(
            op,
            seen=f"{n} rows, k = {k}, {experts} experts",
            rule=f"at least one row and one column; sizes, and tiles of 64 rows over all experts, up to {SIZE_MAX}",
            fix="cut the layer into shards",
        )


def _check_routes(x: Tensor, ids: Tensor, factors: Tensor, expert_map: Tensor | None) -> None:
    parts = {"topk_ids": ids, "topk_weights": factors}
    if expert_map is not None:
        parts["expert_map"] = expert_map
    sound = all(
        part.dtype == (torch.float32 if name == "topk_weights" else torch.int32)
        and part.device == x.device
        and part.is_contiguous()
        for name, part in parts.items()
    )
    fits = ids.dim() == 2 and ids.shape == factors.shape and ids.shape[0] == x.shape[0]
    fits &= expert_map is None or (expert_map.dim() == 1 and expert_map.shape[0] <= SIZE_MAX)
    if not fits or not sound:
        raise FormatError(
            _MOE,
            seen="; ".join([_describe("x", x), *(_describe(name, part) for name, part in parts.items())]),
            rule="ids int32 and weights float32 [m, top_k], map int32 [total], contiguous, on the device of x",
            fix="call it through mxfp4_core.backend.calls, which converts and checks",
        )


def _describe(name: str, tensor: Tensor) -> str:
    loose = "" if tensor.is_contiguous() else ", not contiguous"
    odd = f", address {tensor.data_ptr() % 16} mod 16" if tensor.data_ptr() % 16 else ""
    return f"{name} {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}{loose}{odd}"


__all__ = [
    "MAX_EXPERTS",
    "MAX_TOP_K",
    "SIZE_MAX",
    "Weight",
    "check_limit",
    "check_linear",
    "check_linear_weight",
    "check_moe",
    "check_moe_weights",
    "has_small_scales",
    "sizes",
]
