"""What a call costs the host, and that it never waits for the device: AITER's functions are recorded, nothing computes.

Tensors are fake, so that whatever looks at a value raises: a call without an error can be captured in a graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mxfp4_core.backend import GPT_OSS_SWIGLU, SILU, Gate
from mxfp4_rocm import dense, experts, tokens
from mxfp4_rocm.experts import Stack

M, N, K, EXPERTS, TOP_K = 48, 256, 512, 8, 2
PLAIN, GPT_OSS = SILU, GPT_OSS_SWIGLU


class Launches(TorchDispatchMode):
    """Counts torch's operators but views and new memory: what the host dispatches, most of which is a launch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and name not in (
            "device",
            "empty",
            "new_empty",
            "_reshape_alias",
            "_unsafe_view",
        ):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Put recorders in the place of AITER's functions and of the quantizer; yield the names of what is called."""
    names: list[str] = []

    class Table(dict[torch.dtype, str]):
        Silu, per_1x32 = "silu", "per_1x32"

        def __missing__(self, key: torch.dtype) -> str:
            return str(key)

    def function(name: str) -> Any:
        if name in ("torch_to_triton_dtype", "ActivationType", "QuantType"):
            return Table()

        def run(*args: Any, **kwargs: Any) -> Any:
            names.append(name)
            if name == "fused_moe":
                return torch.empty_like(kwargs["hidden_states"])
            if name == "gemm_afp4wfp4":
                return kwargs["x"].new_empty((M, N), dtype=kwargs["dtype"])
            if name == "gemm_a4w4":
                return kwargs["A"].new_empty((M, N), dtype=torch.bfloat16)
            return None

        return run

    def quantize_rows(x: Tensor, by_aiter: bool = False) -> tuple[Tensor, Tensor]:
        names.append("quantize")
        rows, k = x.shape
        return x.new_empty((rows, k // 2), dtype=torch.uint8), x.new_empty((rows, k // 32), dtype=torch.uint8)

    for module in (dense, experts, tokens):
        monkeypatch.setattr(module, "function", function, raising=False)
        monkeypatch.setattr(module, "quantize_rows", quantize_rows)
    monkeypatch.setattr(dense, "takes", lambda name, argument: False)
    monkeypatch.setattr(experts, "check_weight", lambda *_, **__: None)
    monkeypatch.setattr(dense, "check_weight", lambda *_, **__: None)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield names


def stack(rows: int, k: int, bias: bool) -> Stack:
    shape = EXPERTS, rows
    return Stack(
        torch.empty(*shape, k // 2, dtype=torch.uint8),
        torch.empty(*shape, k // 32, dtype=torch.uint8),
        torch.empty(shape) if bias else None,
    )


@pytest.mark.parametrize(
    ("way", "gate", "wanted", "most"),
    [
        ("fused", PLAIN, ["fused_moe"], 17),
        ("experts", PLAIN, ["quantize", "fused_moe_mxfp4", "quantize", "fused_moe_mxfp4"], 53),
        ("experts", GPT_OSS, ["quantize", "fused_moe_mxfp4", "quantize", "fused_moe_mxfp4"], 59),
        ("widened", GPT_OSS, ["fused_moe_mxfp4", "fused_moe_mxfp4"], 60),
    ],
    ids=str,
)
@pytest.mark.parametrize("mapped", [False, True], ids=["all experts", "a map"])
def test_experts_never_wait(
    called: list[str], way: str, gate: Gate, wanted: list[str], most: int, mapped: bool
) -> None:
    bias = gate is GPT_OSS
    x = torch.empty(M, K, dtype=torch.bfloat16)
    ids, weights = torch.zeros(M, TOP_K, dtype=torch.int32), torch.ones(M, TOP_K)
    expert_map = torch.zeros(2 * EXPERTS, dtype=torch.int32) if mapped else None
    with Launches() as launches:
        out = experts.moe(
            x, stack(2 * N, K, bias), stack(K, N, bias), ids, weights, expert_map, 0, gate, way, False
        )
    assert out.shape == x.shape and out.dtype == x.dtype
    assert called == wanted
    assert sum(launches.found.values()) <= most + 9 * mapped, launches.found


@pytest.mark.parametrize(
    ("way", "wanted"),
    [
        ("widened", ["fused_moe_mxfp4"]),
        ("triton", ["quantize", "gemm_afp4wfp4"]),
        ("asm", ["quantize", "gemm_a4w4"]),
    ],
)
def test_a_linear_never_waits(called: list[str], way: str, wanted: list[str]) -> None:
    x = torch.empty(M, K, dtype=torch.bfloat16)
    codes = torch.empty(N, K // 2, dtype=torch.uint8)
    scales = torch.empty(N, K // 32, dtype=torch.uint8)
    with Launches() as launches:
        out = dense.linear(x, codes, scales, None, way, False)
    assert out.shape == (M, N)
    assert called == wanted
    assert sum(launches.found.values()) <= 10, launches.found


def test_what_looks_at_a_value_is_found(called: list[str]) -> None:
    with pytest.raises(DataDependentOutputException):
        int(torch.ones(3).sum())
