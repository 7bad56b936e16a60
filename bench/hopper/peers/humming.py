"""humming-kernels with BF16 activations, composed as in vLLM's HummingIndexedExperts and HummingGroupedExperts.

Its kernels are chosen by its own heuristics for the device. Only those that the measured numbers of tokens need are
compiled, all at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hopper.cases import DENSE_SHAPES, MOE_SHAPES, DenseCase, MoeCase, Routed
from hopper.peers import Linear, Moe, OtherSizeError, vllm_files
from mxfp4_core import MxTensor

_SILU = {"activation_type": "binary_split", "activation_impl": "(a / (1.f + expf(-a))) * b"}
_LARGEST_SAMPLE = {"dense": 8128, "indexed": 65408, "grouped_contiguous": 65408}
_GROUPED_FROM = 512  # tokens from which the grouped composition, which permutes the tokens, is tried


class Peer:
    """See ``hopper.peers.Peer``."""

    gate = "silu"
    threads = 1

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def available(self) -> str | None:
        """Look for the package, and for vLLM's kernels around its GEMMs."""
        lacking = vllm_files.missing(self.folder, "humming/__init__.py", vllm_files.MOE, vllm_files.MUL_SUM)
        if lacking or self.folder is None:
            return lacking
        reason = vllm_files.load_library(self.folder / vllm_files.MOE)
        if reason:
            return reason
        if str(self.folder) not in sys.path:
            sys.path.append(str(self.folder))
        try:
            import humming.layer  # noqa: F401
        except ImportError as error:
            return f"humming does not import: {error}"
        return None

    def prepare(self, moe: Sequence[tuple[str, int]], dense: Sequence[tuple[str, int]]) -> None:
        """Compile the GEMMs in parallel."""
        from humming.kernel.humming import HummingKernel

        wanted: dict[tuple[Any, str], set[int]] = {}
        for name, m in moe:
            experts, k, n, top_k = MOE_SHAPES[name]
            for shape in ((2 * n, k), (k, n)):
                for kind in _kinds(m):
                    wanted.setdefault((_config(*shape, experts), kind), set()).add(m * top_k)
        for name, m in dense:
            wanted.setdefault((_config(*DENSE_SHAPES[name], 0), "dense"), set()).add(m)
        specs = []
        for (config, kind), sizes in wanted.items():
            table = json.dumps(_table(config, kind, sorted(sizes)))
            layer, compute, rows = HummingKernel._resolve_configs(config.to_str(), _compute(kind), table)
            for _, _, tuning in rows:
                spec = layer | compute | tuning
                spec.pop("num_sms", None)
                specs.append((HummingKernel, spec))
        HummingKernel.compile_many(specs)

    def moe(self, case: MoeCase, tokens: Sequence[int]) -> Moe:
        """Lay out the weights once, for both compositions."""
        layer = _Layer(case, tokens, vllm_files.load_source(self._mul_sum, "mxfp4_peers_mul_sum"))
        return {"indexed": layer.indexed, "grouped": layer.grouped}

    @property
    def _mul_sum(self) -> Path:
        return (self.folder or Path()) / vllm_files.MUL_SUM

    def linear(self, case: DenseCase, tokens: Sequence[int]) -> Linear:
        """Lay out the weight."""
        config = _config(case.problem.n, case.problem.k, 0)
        return {"default": partial(_gemm, _pack(config, case.weight, "dense", tokens))}


class _Layer:
    def __init__(self, case: MoeCase, tokens: Sequence[int], combine: Any) -> None:
        problem = case.problem
        self.problem, self.combine = problem, combine
        self.weights: dict[str, list[Any]] = {}
        weights = (case.gate_up, case.down)
        configs = [_config(*weight.shape[1:], problem.experts) for weight in weights]
        sizes = [m * problem.top_k for m in tokens]
        self.weights["indexed"] = [
            _pack(config, weight, "indexed", sizes) for config, weight in zip(configs, weights, strict=True)
        ]
        grouped = [m * problem.top_k for m in tokens if "grouped_contiguous" in _kinds(m)]
        self.weights["grouped"] = [
            one.of("grouped_contiguous", grouped) for one in self.weights["indexed"] if grouped
        ]

    def indexed(self, routed: Routed) -> Tensor:
        """Let the GEMM gather its rows by the tables of ``align``."""
        m, top_k = routed.ids.shape
        slots = m * top_k
        first, second = self.weights["indexed"]
        blocks = {one.block(slots) for one in (first, second)}
        tables = {block: vllm_files.align(routed.ids, block, self.problem.experts) for block in blocks}
        both = _gemm(first, routed.x, tables[first.block(slots)], top_k=top_k, slots=slots)
        hidden = _activate(first.config, both)
        result = _gemm(second, hidden, tables[second.block(slots)], slots=slots)
        return self.combine.moe_fused_mul_sum(result.view(m, top_k, -1), routed.weights)

    def grouped(self, routed: Routed) -> Tensor:
        """Sort the rows by expert first."""
        from humming.forward import may_process_input

        m, top_k = routed.ids.shape
        if "grouped_contiguous" not in _kinds(m):
            raise OtherSizeError(f"rows are sorted from {_GROUPED_FROM} tokens on")
        first, second = self.weights["grouped"]
        offsets, places = _scatter(routed.ids, self.problem.experts)
        count = offsets[-1:]
        x, _, _ = may_process_input(
            first.config, inputs=routed.x, layout="scatter", scatter_idx=places, num_valid_tokens=count
        )
        both = _gemm(first, x, offsets=offsets, slots=m * top_k)
        hidden = _activate(first.config, both, num_valid_tokens=count)
        result = _gemm(second, hidden, offsets=offsets, slots=m * top_k)
        out = torch.empty_like(routed.x)
        torch.ops._moe_C.moe_unpermute(
            result.view(m, top_k, -1), routed.weights, places.flatten(), offsets, top_k, out
        )
        return out


class _Weight:
    """A weight in Humming's layout, with the kernels for some numbers of rows."""

    def __init__(self, config: Any, tensors: dict[str, Tensor], kind: str, sizes: Sequence[int]) -> None:
        self.config, self.tensors, self.kind = config, tensors, kind
        self.rows = _table(config, kind, sorted(sizes))
        self.table, self.compute = json.dumps(self.rows), _compute(kind)
        sms = torch.cuda.get_device_properties(0).multi_processor_count
        self.locks = torch.zeros(sms * 8, dtype=torch.int32, device="cuda")

    def of(self, kind: str, sizes: Sequence[int]) -> _Weight:
        return _Weight(self.config, self.tensors, kind, sizes)

    def block(self, slots: int) -> int:
        return next(row["block_shape"][0] for low, high, row in self.rows if low < slots <= high)


def _kinds(m: int) -> tuple[str, ...]:
    return ("indexed", "grouped_contiguous") if m >= _GROUPED_FROM else ("indexed",)


def _compute(kind: str) -> str:
    return json.dumps({"use_batch_invariant": False, "use_f16_accum": False, "gemm_type": kind})


def _schema() -> Any:
    from humming import dtypes
    from humming.schema import HummingWeightSchema

    scales = dtypes.float8e8m0
    return HummingWeightSchema(b_dtype=dtypes.float4e2m1, bs_dtype=scales, weight_scale_group_size=32)


def _config(n: int, k: int, experts: int) -> Any:
    """Describe a weight as vLLM does, n padded to 256 and k to 128; no experts: a linear."""
    from humming.schema import HummingInputSchema
    from humming.transform import prepare_layer_config

    return prepare_layer_config(
        shape_n=n,
        shape_k=k,
        weight_schema=_schema(),
        input_schema=HummingInputSchema(),
        num_experts=experts or None,
        pad_n_to_multiple=256,
        pad_k_to_multiple=128,
        torch_dtype=torch.bfloat16,
    )


def _table(config: Any, kind: str, sizes: Sequence[int]) -> list[list[Any]]:
    """Return the heuristics' kernel for each number of rows, at the samples that Humming's own table has."""
    from humming.tune import get_heuristics_config

    rows, low = [], 0
    for size in sizes:
        sample = next((few for few in (1, 2, 4, 8) if size <= few), -(-size // 8) * 8)
        sample = min(sample, _LARGEST_SAMPLE[kind])
        tuning = get_heuristics_config(layer_config=config, shape_m=sample, gemm_type=kind)
        rows.append([low, size, tuning])
        low = size
    return rows


def _pack(config: Any, weight: MxTensor, kind: str, sizes: Sequence[int]) -> _Weight:
    from humming.transform import transform_humming_tensors

    codes, scales = weight.codes.view(torch.int32), weight.scales.view(torch.float8_e8m0fnu)
    tensors = transform_humming_tensors(config, {"weight": codes, "weight_scale": scales})
    return _Weight(config, tensors, kind, sizes)


def _gemm(
    weight: _Weight,
    x: Tensor,
    tables: tuple[Tensor, Tensor, Tensor] | None = None,
    *,
    offsets: Tensor | None = None,
    top_k: int = 1,
    slots: int = 0,
) -> Tensor:
    from humming.forward import humming_forward

    slot_ids, expert_ids, padded = tables or (None, None, None)
    return humming_forward(
        weight.config,
        inputs=x,
        **weight.tensors,
        sorted_ids=slot_ids,
        expert_ids=expert_ids,
        num_tokens_padded=padded,
        expert_layout=offsets,
        locks=weight.locks,
        top_k=top_k,
        valid_shape_m=slots,
        compute_config=weight.compute,
        tuning_config=weight.table,
    )


def _activate(config: Any, both: Tensor, **limits: Any) -> Tensor:
    from humming.forward import may_process_input

    return may_process_input(config, inputs=both, **_SILU, **limits)[0]


def _scatter(ids: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """Return the first row of each expert, and the row of each slot, as vLLM's ``moe_prepare_scatter`` does."""
    rows = ids.numel()
    offsets = torch.empty(experts + 1, dtype=torch.int64, device=ids.device)
    places, sorted_experts, sorted_rows, spare = (torch.empty_like(ids) for _ in range(4))
    order = _arange(rows, ids.device).view_as(ids)
    room = torch.ops._moe_C.moe_permute_sort_workspace_size(rows, experts)
    space = torch.empty(room, dtype=torch.int8, device=ids.device)
    torch.ops._moe_C.moe_prepare_scatter(
        *(ids, order, None, experts, experts, offsets, places, space, sorted_experts, sorted_rows, spare)
    )
    return offsets, places


_orders: dict[int, Tensor] = {}


def _arange(rows: int, device: torch.device) -> Tensor:
    """Keep the constant that vLLM keeps too."""
    if rows not in _orders:
        _orders[rows] = torch.arange(rows, dtype=torch.int32, device=device)
    return _orders[rows]
