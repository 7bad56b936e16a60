"""Loaders as serving engines have them, reduced to what decides which numbers go where.

The function style (``output_dim`` and ``input_dim`` as attributes of a plain parameter) and the method style
(parameter classes that know how to load themselves) follow the interfaces of vLLM and SGLang. Each layer belongs to
one rank and holds its partition only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import Parameter


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Parameter:
    """Return the parameter that an engine would allocate in high precision."""
    return Parameter(torch.full(shape, float("nan"), dtype=dtype), requires_grad=False)


# Function style: the layer's loader narrows, the parameter only carries attributes.


class ColumnParallel:
    """Rows are divided among the ranks; the bias with them."""

    def __init__(self, n: int, k: int, rank: int, tp: int) -> None:
        self.rank, self.tp = rank, tp
        self.shape = (n // tp, k)

    def weight_loader(self, param: Any, loaded_weight: torch.Tensor) -> None:
        output_dim = getattr(param, "output_dim", None)
        param_data = param.data
        if output_dim is not None:
            size = param_data.shape[output_dim]
            loaded_weight = loaded_weight.narrow(output_dim, self.rank * size, size)
        assert param_data.shape == loaded_weight.shape
        param_data.copy_(loaded_weight)


class RowParallel:
    """K is divided among the ranks."""

    def __init__(self, n: int, k: int, rank: int, tp: int) -> None:
        self.rank, self.tp = rank, tp
        self.shape = (n, k // tp)

    def weight_loader(self, param: Any, loaded_weight: torch.Tensor) -> None:
        input_dim = getattr(param, "input_dim", None)
        if input_dim is not None:
            size = param.data.shape[input_dim]
            loaded_weight = loaded_weight.narrow(input_dim, self.rank * size, size)
        # Engines move the piece first; on a meta parameter that would lose the values if nobody looked.
        param.data.copy_(loaded_weight.to(param.device))


class MergedColumn:
    """Several members side by side along N (gate and up), each divided among the ranks."""

    def __init__(self, sizes: Sequence[int], k: int, rank: int, tp: int) -> None:
        self.sizes, self.rank, self.tp = list(sizes), rank, tp
        self.shape = (sum(sizes) // tp, k)

    def weight_loader(
        self, param: Any, loaded_weight: torch.Tensor, loaded_shard_id: int | None = None
    ) -> None:
        if loaded_shard_id is None:  # the checkpoint holds the members fused: cut them and call again
            offset = 0
            for index, size in enumerate(self.sizes):
                self.weight_loader(param, loaded_weight.narrow(param.output_dim, offset, size), index)
                offset += size
            return
        offset = sum(self.sizes[:loaded_shard_id]) // self.tp
        size = self.sizes[loaded_shard_id] // self.tp
        param_data = param.data.narrow(param.output_dim, offset, size)
        loaded_weight = loaded_weight.narrow(param.output_dim, self.rank * size, size)
        assert param_data.shape == loaded_weight.shape
        param_data.copy_(loaded_weight)


class QKV:
    """Query, key and value heads; key and value heads are replicated where there are more ranks than heads."""

    def __init__(self, heads: int, kv_heads: int, head_dim: int, k: int, rank: int, tp: int) -> None:
        self.rank, self.head_dim = rank, head_dim
        self.q, self.replicas = heads // tp, max(1, tp // kv_heads)
        self.kv = max(1, kv_heads // tp)
        self.shape = ((self.q + 2 * self.kv) * head_dim, k)

    def place(self, shard: str) -> tuple[int, int, int]:
        """Return offset in the parameter, size, and index of the shard in the checkpoint's tensor."""
        offset = {"q": 0, "k": self.q, "v": self.q + self.kv}[shard] * self.head_dim
        size = (self.q if shard == "q" else self.kv) * self.head_dim
        return offset, size, self.rank if shard == "q" else self.rank // self.replicas

    def weight_loader(self, param: Any, loaded_weight: torch.Tensor, loaded_shard_id: str) -> None:
        offset, size, index = self.place(loaded_shard_id)
        param_data = param.data.narrow(param.output_dim, offset, size)
        loaded_weight = loaded_weight.narrow(param.output_dim, index * size, size)
        assert param_data.shape == loaded_weight.shape
        param_data.copy_(loaded_weight)


class PaddedColumn(ColumnParallel):
    """Rows that the ranks cannot divide: the last ranks fill up with zeros, as SGLang's CPU path does."""

    def __init__(self, n: int, k: int, rank: int, tp: int) -> None:
        super().__init__(n, k, rank, tp)
        self.shape = (-(-n // tp), k)

    def weight_loader(self, param: Any, loaded_weight: torch.Tensor) -> None:
        size = param.data.shape[0]
        start = self.rank * size
        real = max(0, min(size, loaded_weight.shape[0] - start))
        param.data.narrow(0, real, size - real).zero_()
        loaded_weight = (
            loaded_weight.narrow(0, start, real) if real else torch.zeros_like(param.data.narrow(0, 0, 0))
        )
        param.data.narrow(0, 0, real).copy_(loaded_weight)


# Method style: the parameter's class does the work, the layer's loader only says which shard it is.


class EngineParameter(Parameter):
    """A parameter that knows its rank, its axes, and how to load itself."""

    def __new__(cls, data: torch.Tensor, **kwargs: Any) -> EngineParameter:
        return super().__new__(cls, data=data, requires_grad=False)

    def __init__(self, data: torch.Tensor, *, weight_loader: Callable[..., Any], rank: int) -> None:
        self._weight_loader, self.tp_rank = weight_loader, rank
        self._output_dim, self._input_dim = 0, 1

    @property
    def weight_loader(self) -> Callable[..., Any]:
        return self._weight_loader

    @property
    def output_dim(self) -> int:
        return self._output_dim

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # torch leaves it without annotations.
        return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]

    def load_column(self, loaded_weight: torch.Tensor, *, index: int, offset: int, size: int) -> None:
        param_data = self.data.narrow(self._output_dim, offset, size)
        loaded_weight = loaded_weight.narrow(self._output_dim, index * size, size)
        assert param_data.shape == loaded_weight.shape
        param_data.copy_(loaded_weight)

    def load_row(self, loaded_weight: torch.Tensor) -> None:
        size = self.data.shape[self._input_dim]
        loaded_weight = loaded_weight.narrow(self._input_dim, self.tp_rank * size, size)
        assert self.data.shape == loaded_weight.shape
        self.data.copy_(loaded_weight)


class PackedParameter(EngineParameter):
    """A parameter whose bytes hold several codes; it divides offsets along its packed axis."""

    def __init__(self, data: torch.Tensor, *, packed_dim: int, packed_factor: int, **kwargs: Any) -> None:
        super().__init__(data, **kwargs)
        self._packed_dim, self._packed_factor = packed_dim, packed_factor

    def load_column(self, loaded_weight: torch.Tensor, *, index: int, offset: int, size: int) -> None:
        if self._packed_dim == self._output_dim:
            offset, size = offset // self._packed_factor, size // self._packed_factor
        super().load_column(loaded_weight, index=index, offset=offset, size=size)


class QKVMethods(QKV):
    """`QKV` through the methods of its parameter."""

    def weight_loader(self, param: Any, loaded_weight: torch.Tensor, loaded_shard_id: str) -> None:
        offset, size, index = self.place(loaded_shard_id)
        param.load_column(loaded_weight, index=index, offset=offset, size=size)


class RowMethods(RowParallel):
    """`RowParallel` through the methods of its parameter."""

    def weight_loader(self, param: Any, loaded_weight: torch.Tensor) -> None:
        param.load_row(loaded_weight)


# Experts.


class FusedMoE:
    """Stacked experts, w13 ``[E, 2 I, H]`` and w2 ``[E, H, I]``; I divided by TP, E by EP.

    Args:
        expert_map: global expert id to local index, -1 where another rank has it; None without EP.
        gate_first: whether w1 comes before w3.
    """

    def __init__(
        self,
        experts: int,
        hidden: int,
        inter: int,
        rank: int,
        tp: int,
        expert_map: Sequence[int] | None = None,
        gate_first: bool = True,
    ) -> None:
        self.rank, self.gate_first = rank, gate_first
        self.map = list(range(experts)) if expert_map is None else list(expert_map)
        local = sum(index >= 0 for index in self.map)
        self.w13, self.w2 = (local, 2 * inter // tp, hidden), (local, hidden, inter // tp)

    def weight_loader(
        self, param: Any, loaded_weight: torch.Tensor, weight_name: str, shard_id: str, expert_id: int
    ) -> bool:
        local = self.map[expert_id]
        if local < 0:
            return False
        expert_data = param.data[local]
        if shard_id == "w2":
            size = expert_data.shape[1]
            expert_data.copy_(loaded_weight.narrow(1, self.rank * size, size))
            return True
        size = expert_data.shape[0] // 2
        second = (shard_id == "w3") == self.gate_first
        expert_data = expert_data.narrow(0, size if second else 0, size)
        expert_data.copy_(loaded_weight.narrow(0, self.rank * size, size))
        return True

    def weight_loader_fused(
        self, param: Any, loaded_weight: torch.Tensor, weight_name: str, shard_id: str
    ) -> None:
        """Load one tensor of all experts: ``w13`` with gate and up stacked, or ``w2``."""
        if shard_id == "w2":
            size = param.data.shape[2]
            param.data.copy_(loaded_weight.narrow(2, self.rank * size, size))
            return
        size = param.data.shape[1] // 2
        for half, source in enumerate(loaded_weight.chunk(2, dim=1)):
            param.data.narrow(1, half * size, size).copy_(source.narrow(1, self.rank * size, size))


class TransposedMoE:
    """Stacked experts with K before N, gate and up interleaved, as gpt-oss has them: ``[E, H, 2 I]``."""

    def __init__(self, experts: int, hidden: int, inter: int, rank: int, tp: int) -> None:
        self.rank = rank
        self.shape = (experts, 2 * inter // tp, hidden)

    def weight_loader(
        self,
        param: Any,
        loaded_weight: torch.Tensor,
        weight_name: str,
        shard_id: str,
        expert_id: int | None,
    ) -> None:
        size = param.data.shape[2]
        narrow = loaded_weight[..., self.rank * size : (self.rank + 1) * size]
        if expert_id is None:
            param.data[:, : narrow.shape[1], : narrow.shape[2]].copy_(narrow)
        else:
            param.data[expert_id].copy_(narrow)
