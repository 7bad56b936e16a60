"""OpenAI's triton_kernels, as vLLM 0.33 vendors and patches them: routing, two matmul_ogs, clamped SwiGLU in the first.

Routing starts from the same chosen experts as every other peer's. For a top k that is no power of two, vLLM packs
them itself and patches the routing kernels; so does this module, with vLLM's own functions.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from hopper.cases import SWIGLU, DenseCase, MoeCase, Routed
from hopper.peers import Linear, Moe, vllm_files

_PATCH, _PACK = "_patch_legacy_routing_for_nonpow2_topk", "pack_bitmatrix"


class Peer:
    """See ``hopper.peers.Peer``."""

    gate = "swiglu"
    threads = 8

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def available(self) -> str | None:
        """Look for the sources."""
        lacking = vllm_files.missing(self.folder, vllm_files.TRITON_KERNELS, vllm_files.TRITON_EXPERTS)
        if lacking or self.folder is None:
            return lacking
        parent = str((self.folder / vllm_files.TRITON_KERNELS).parent.parent)
        if parent not in sys.path:
            sys.path.append(parent)
        try:
            import triton_kernels.matmul_ogs  # noqa: F401
        except ImportError as error:
            return f"triton_kernels does not import: {error}"
        return None

    def prepare(self, moe: Sequence[tuple[str, int]], dense: Sequence[tuple[str, int]]) -> None:
        """Compile nothing yet: Triton compiles when a kernel is called."""

    def moe(self, case: MoeCase, tokens: Sequence[int]) -> Moe:
        """Lay out the weights, gate and up rows alternating."""
        del tokens
        from triton_kernels.matmul_ogs import (
            FnSpecs,
            FusedActivation,
            matmul_ogs,
            update_opt_flags_constraints,
        )
        from triton_kernels.swiglu import swiglu_fn

        problem, experts = case.problem, case.problem.experts
        update_opt_flags_constraints({"split_k": 1})
        up, up_config = _weight(_alternate(case.gate_up.codes), _alternate(case.gate_up.scales))
        down, down_config = _weight(case.down.codes, case.down.scales)
        activation = FusedActivation(FnSpecs("swiglu", swiglu_fn, ("alpha", "limit")), SWIGLU, 2)
        source = (self.folder or Path()) / vllm_files.TRITON_EXPERTS

        def run(routed: Routed) -> Tensor:
            m, top_k = routed.ids.shape
            hidden = routed.x.new_empty(1, m * top_k, problem.n)
            out = routed.x.new_empty(1, m, problem.k)
            data, gather, scatter = _route(routed, experts, source)
            matmul_ogs(
                *(routed.x, up, None, data),
                gather_indx=gather,
                precision_config=up_config,
                fused_activation=activation,
                y=hidden,
            )
            matmul_ogs(
                *(hidden[0], down, None, data),
                scatter_indx=scatter,
                precision_config=down_config,
                gammas=data.gate_scal,
                y=out,
            )
            return out[0]

        return {"default": run}

    def linear(self, case: DenseCase, tokens: Sequence[int]) -> Linear:
        """Lay out the weight as that of one expert."""
        del tokens
        from triton_kernels.matmul_ogs import matmul_ogs, update_opt_flags_constraints

        weight, config = _weight(case.weight.codes[None], case.weight.scales[None])

        def run(x: Tensor, split_k: int | None) -> Tensor:
            update_opt_flags_constraints({"split_k": split_k})
            return matmul_ogs(x, weight, None, precision_config=config).view(x.shape[0], -1)

        return {"split_k=1": partial(run, split_k=1), "split_k by heuristic": partial(run, split_k=None)}


def _alternate(data: Tensor) -> Tensor:
    gate, up = data.chunk(2, dim=1)
    return torch.stack((gate, up), dim=2).flatten(1, 2)


def _weight(codes: Tensor, scales: Tensor) -> tuple[Any, Any]:
    """Swizzle [..., n, k / 2] codes and [..., n, k / 32] scales, as vLLM's ``_swizzle_mxfp4`` does for Hopper."""
    from triton_kernels.matmul_ogs import FlexCtx, PrecisionConfig
    from triton_kernels.numerics import InFlexData
    from triton_kernels.tensor import FP4, convert_layout, wrap_torch_tensor
    from triton_kernels.tensor_details import layout

    axis = codes.ndim - 2
    value_layout, value_options = layout.make_default_matmul_mxfp4_w_layout(mx_axis=axis)
    scale_layout, scale_options = layout.make_default_matmul_mxfp4_w_scale_layout(mx_axis=axis, num_warps=8)
    scales = pad(scales, (0, -scales.shape[-1] % 4))
    weight = convert_layout(wrap_torch_tensor(codes.mT, dtype=FP4), value_layout, **value_options)
    scale = convert_layout(wrap_torch_tensor(scales.mT), scale_layout, **scale_options)
    return weight, PrecisionConfig(weight_scale=scale, flex_ctx=FlexCtx(rhs_data=InFlexData()))


def _route(routed: Routed, experts: int, source: Path) -> tuple[Any, Any, Any]:
    """Make routing tables."""
    from triton_kernels.routing import routing, routing_from_bitmatrix
    from triton_kernels.tensor import Bitmatrix

    m, top_k = routed.ids.shape
    if top_k & (top_k - 1) == 0:
        return routing(routed.scores, top_k, expt_indx=routed.ids)
    words = -(-experts // 32)
    bits = torch.zeros(m, words, dtype=torch.uint32, device=routed.ids.device)
    pack = _patched(source).pack_bitmatrix[(-(-m // 512),)]
    pack(bits, routed.ids, m, words, top_k, BLOCK_SIZE_M=512, BLOCK_SIZE_K=32)
    packed = Bitmatrix(bits, shape=[m, words * 32], shape_max=[m, None], scratchpad=None)
    return routing_from_bitmatrix(packed, routed.weights, routed.ids, experts, top_k)


@cache
def _patched(source: Path) -> ModuleType:
    functions = vllm_files.load_functions(source, {_PATCH, _PACK}, "mxfp4_peers_vllm_routing")
    getattr(functions, _PATCH)()
    return functions
