"""AITER's Triton kernel for experts with bfloat16 tokens, ``fused_moe_mxfp4``, the one of its kernels that is W4A16.

It is made for AMD's GPUs; the source out of the wheel is compiled for this one. A linear is one expert that every token
goes to. Of experts, routes are sorted before the clock starts and gate and sum are torch's, so that what is measured is
less than a layer: launches of the kernel, at several tiles of which the fastest counts.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hopper.cases import DenseCase, MoeCase, Routed
from hopper.peers import Linear, Moe, OtherSizeError, vllm_files

SUPPORT = Path(__file__).resolve().parents[3] / "packages" / "mxfp4-rocm" / "tests" / "support"
TILES = tuple(
    itertools.product((16, 32, 64), (64, 128), (64, 128, 256))
)  # tokens, rows, columns of a program
WARPS = 4
SOURCE = "aiter/ops/triton/moe_op_mxfp4.py"


class Peer:
    """See ``hopper.peers.Peer``."""

    gate = "silu"
    threads = 8

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def available(self) -> str | None:
        """Look for the sources in the folder."""
        lacking = vllm_files.missing(self.folder, SOURCE)
        if lacking or self.folder is None:
            return lacking
        if str(SUPPORT) not in sys.path:
            sys.path.append(str(SUPPORT))
        import rocm_vendor

        rocm_vendor.install(self.folder)
        return None

    def prepare(self, moe: Sequence[tuple[str, int]], dense: Sequence[tuple[str, int]]) -> None:
        """Compile nothing yet: Triton compiles when a kernel is called."""

    def moe(self, case: MoeCase, tokens: Sequence[int]) -> Moe:
        """Take the weights as they are."""
        del tokens
        sorted_for: dict[tuple[int, int], Any] = {}
        return {
            f"{block}x{rows}x{columns}": partial(_experts, case, sorted_for, (block, rows, columns))
            for block, rows, columns in TILES
            if case.problem.n % columns == 0 == case.problem.k % columns  # it reads K without a mask
        }

    def linear(self, case: DenseCase, tokens: Sequence[int]) -> Linear:
        """Take the weight as it is."""
        del tokens
        codes, scales = case.weight.codes[None], case.weight.scales[None]
        sorted_for: dict[tuple[int, int], Any] = {}

        def run(x: Tensor, tile: tuple[int, int, int]) -> Tensor:
            m, block = x.shape[0], tile[0]
            if (m, block) not in sorted_for:
                ids = torch.zeros(m, 1, dtype=torch.int32, device=x.device)
                sorted_for[m, block] = ids, _sorted(ids, 1, block)
            ids, order = sorted_for[m, block]
            return _launch(x, codes, scales, ids, order, tile, 1)[:, 0]

        return {"x".join(map(str, tile)): partial(run, tile=tile) for tile in TILES}


def _experts(
    case: MoeCase, sorted_for: dict[tuple[int, int], Any], tile: tuple[int, int, int], routed: Routed
) -> Tensor:
    """Compute a layer whose routes are sorted once for each number of tokens."""
    m, block, experts = routed.x.shape[0], tile[0], case.problem.experts
    if block > 16 and routed.ids.numel() < experts * block // 4:
        raise OtherSizeError
    if (m, block) not in sorted_for:
        sorted_for[m, block] = _sorted(routed.ids, experts, block)
    order, top_k = sorted_for[m, block], routed.ids.shape[1]
    up = case.gate_up
    both = _launch(routed.x, up.codes, up.scales, routed.ids, order, tile, top_k)
    gate, value = both.chunk(2, dim=-1)
    hidden = (torch.nn.functional.silu(gate) * value).flatten(0, 1)
    each = _launch(hidden, case.down.codes, case.down.scales, routed.ids, order, tile, 1)
    return torch.bmm(routed.weights.to(each.dtype)[:, None], each)[:, 0]


def _sorted(ids: Tensor, experts: int, block: int) -> Any:
    """Sort slots by expert into whole blocks, as ``mxfp4_rocm`` does for this kernel."""
    from mxfp4_rocm.sorting import sort

    order = sort(ids, experts, block)
    end = int(order.filled)  # what is launched beyond is known to be empty
    return order._replace(slots=order.slots[:end].contiguous())


def _launch(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    ids: Tensor,
    order: Any,
    tile: tuple[int, int, int],
    top_k: int,
) -> Tensor:
    """Return bfloat16 [m, slots, n]."""
    from mxfp4_rocm.vendor import function

    out = torch.empty((*ids.shape, codes.shape[1]), dtype=torch.bfloat16, device=x.device)
    one = torch.ones(codes.shape[0], dtype=torch.float32, device=x.device)
    run: Callable[..., None] = function("fused_moe_mxfp4")
    run(
        A=x,
        B=codes,
        C=out,
        A_scale=one,
        B_scale=one,
        A_mx_scale=None,
        B_mx_scale=scales,
        topk_weights=torch.empty((1, 1), dtype=torch.float32, device=x.device),
        topk_ids=ids,
        sorted_token_ids=order.slots,
        expert_ids=order.experts,
        num_tokens_post_padded=order.filled,
        mul_routed_weight=False,
        top_k=top_k,
        swizzle_mx_a=False,
        swizzle_mx_b=False,
        config={
            "BLOCK_SIZE_M": tile[0],
            "BLOCK_SIZE_N": tile[1],
            "BLOCK_SIZE_K": tile[2],
            "GROUP_SIZE_M": 4,
            "num_warps": WARPS,
            "num_stages": 3,
        },
        compute_type=function("torch_to_triton_dtype")[torch.bfloat16],
    )
    return out
