"""Marlin, as vLLM 0.33 ships it: align, GEMM, silu_and_mul, GEMM, moe_sum."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from hopper.cases import DenseCase, MoeCase, Routed
from hopper.peers import Linear, Moe, vllm_files
from mxfp4_core import MxTensor

_FLOAT4_E2M1F = 562949953487106  # vllm.scalar_type: scalar_types.float4_e2m1f.id
_SCALE_ORDER = [i + 8 * j for i in range(8) for j in range(8)]
_BLOCKS_PER_SM = 4


class Peer:
    """See ``hopper.peers.Peer``."""

    gate = "silu"
    threads = 1

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def available(self) -> str | None:
        """Load both libraries."""
        lacking = vllm_files.missing(self.folder, vllm_files.DENSE, vllm_files.MOE)
        if lacking or self.folder is None:
            return lacking
        loaded = (vllm_files.load_library(self.folder / name) for name in (vllm_files.DENSE, vllm_files.MOE))
        return next((reason for reason in loaded if reason), None)

    def prepare(self, moe: Sequence[tuple[str, int]], dense: Sequence[tuple[str, int]]) -> None:
        """Compile nothing: the kernels are in the libraries."""

    def moe(self, case: MoeCase, tokens: Sequence[int]) -> Moe:
        """Lay out the weights with as little padding as the kernels take, and with vLLM's where that is more."""
        del tokens
        n, k = case.problem.n, case.problem.k
        # gate-up is [2 n, k] and down [k, n]; Marlin takes (n % 64, k % 128) or (n % 128, k % 64) of each.
        least = (n, k) if n % 128 == 0 or (n % 64 == 0 and k % 128 == 0) else (_up(n, 128), _up(k, 64))
        sizes = {"least padding": least, "vLLM's padding": (_up(n, 128), _up(k, 256))}
        if len(set(sizes.values())) == 1:
            sizes = {"default": least}
        return {name: _Layer(case, *size).run for name, size in sizes.items()}

    def linear(self, case: DenseCase, tokens: Sequence[int]) -> Linear:
        """Lay out the weight; the shapes that are measured need no padding."""
        del tokens
        n, k = case.problem.n, case.problem.k
        codes, scales = _codes(case.weight.codes), _scales(case.weight.scales[None])[0]
        locks = _locks()

        def run(x: Tensor) -> Tensor:
            none = (None, None, None)
            size = (x.shape[0], n, k)
            rest = (*size, False, True, False)  # no atomic add; reduce in FP32; no float zero points
            return torch.ops._C.marlin_gemm(x, None, codes, None, scales, *none, locks, _FLOAT4_E2M1F, *rest)

        return {"default": run}


class _Layer:
    def __init__(self, case: MoeCase, n: int, k: int) -> None:
        self.problem, self.n, self.k = case.problem, n, k
        self.weights = [
            _experts(_grow(case.gate_up, 2 * n, k, 2)),
            _experts(_grow(case.down, k, n, 1)),
        ]
        self.locks = _locks()

    def run(self, routed: Routed) -> Tensor:
        """Compute the layer as vLLM's ``fused_marlin_moe`` does."""
        m, top_k = routed.ids.shape
        experts = self.problem.experts
        block = next((b for b in (8, 16, 32, 48) if m * top_k / experts / b < 0.9), 64)
        tables = vllm_files.align(routed.ids, block, experts)
        x = pad(routed.x, (0, self.k - self.problem.k)) if self.k != self.problem.k else routed.x

        def gemm(a: Tensor, index: int, size: tuple[int, int, int], slots: int, weigh: bool) -> Tensor:
            codes, scales = self.weights[index]
            out = a.new_empty(size[0] * slots, size[1])
            torch.ops._moe_C.moe_wna16_marlin_gemm(
                *(a, out, codes, None, scales, None, None, None, self.locks, *tables, routed.weights),
                *(block, slots, weigh, _FLOAT4_E2M1F, *size, False, True, False, -1, -1, -1),
            )
            return out

        both = gemm(x, 0, (m, 2 * self.n, self.k), top_k, False)
        hidden = x.new_empty(m * top_k, self.n)
        torch.ops._C.silu_and_mul(hidden, both)
        result = gemm(hidden, 1, (m * top_k, self.k, self.n), 1, True)
        out = torch.empty_like(x)
        torch.ops._moe_C.moe_sum(result.view(m, top_k, self.k), out, None, None)
        return out[:, : self.problem.k]


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _locks() -> Tensor:
    sms = torch.cuda.get_device_properties(0).multi_processor_count
    return torch.zeros(sms * _BLOCKS_PER_SM, dtype=torch.int32, device="cuda")


def _grow(weight: MxTensor, rows: int, k: int, parts: int) -> MxTensor:
    """Add zero codes: at the end of each of ``parts`` groups of rows, and of k."""
    experts, old, columns = weight.shape
    add, more = (rows - old) // parts, k - columns

    def grow(data: Tensor, width: int, value: int) -> Tensor:
        split = data.view(experts, parts, old // parts, -1)
        return pad(split, (0, width, 0, add), value=value).reshape(experts, rows, -1)

    return MxTensor(
        grow(weight.codes, more // 2, 0), grow(weight.scales, more // 32, 127), torch.Size((experts, rows, k))
    )


def _experts(weight: MxTensor) -> tuple[Tensor, Tensor]:
    return torch.stack([_codes(codes) for codes in weight.codes]), _scales(weight.scales)


def _codes(codes: Tensor) -> Tensor:
    n, k = codes.shape[0], codes.shape[1] * 2
    return torch.ops._C.gptq_marlin_repack(codes.view(torch.int32).T.contiguous(), k, n, 4, False)


def _scales(scales: Tensor) -> Tensor:
    """Permute scales [experts, n, k / 32] to [experts, k / 32, n], as vLLM's ``marlin_utils_fp4`` does."""
    turned = scales.mT.contiguous()
    permuted = turned.view(-1, 64)[:, _SCALE_ORDER].reshape(-1, 4)[:, [0, 2, 1, 3]]
    return permuted.reshape(turned.shape).contiguous().view(torch.float8_e8m0fnu)
