"""Hostile arguments of the operators, on a machine without the device: refused before a kernel could see them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mxfp4_core.errors import BackendError, ConfigError, FormatError, Mxfp4Error, ShapeError
from mxfp4_cuda_marlin import checks, compute

BF16 = torch.bfloat16


@pytest.fixture
def on_sm90(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tensors of the CPU pass as those of the device; what passes the checks is an error here."""

    def entered(device: torch.device) -> None:
        raise RuntimeError("it would run")

    monkeypatch.setattr(checks, "_is_sm90", lambda device: True)
    monkeypatch.setattr(torch.cuda, "device", entered)


def codes(*tiles: int) -> Tensor:
    return torch.zeros(*tiles, 2048, dtype=torch.uint8)


def shifted(tensor: Tensor, by: int = 1) -> Tensor:
    """Return the same at an address that 16 does not divide."""
    room = torch.empty(tensor.numel() + by, dtype=tensor.dtype)
    return room[by:].view(tensor.shape).copy_(tensor)


@dataclass
class Linear:
    """A call of 3 tokens, n = 128, k = 64 that is right until something is replaced."""

    x: Any = field(default_factory=lambda: torch.zeros(3, 64, dtype=BF16))
    codes: Any = field(default_factory=lambda: codes(2, 1))
    scales: Any = field(default_factory=lambda: torch.zeros(2, 1, 128, dtype=torch.uint8))
    bias: Any = None

    def call(self) -> Tensor:
        return compute.linear(self.x, self.codes, self.scales, self.bias)


@dataclass
class Moe:
    """A call of 3 tokens, top 2 of 4 experts, n = 64, k = 128 that is right until something is replaced."""

    x: Any = field(default_factory=lambda: torch.zeros(3, 128, dtype=BF16))
    gate_up: Any = field(default_factory=lambda: codes(4, 2, 2))
    gate_up_scales: Any = field(default_factory=lambda: torch.zeros(4, 2, 2, 64, 2, dtype=torch.uint8))
    gate_up_bias: Any = None
    down: Any = field(default_factory=lambda: codes(4, 2, 1))
    down_scales: Any = field(default_factory=lambda: torch.zeros(4, 2, 1, 128, dtype=torch.uint8))
    down_bias: Any = None
    ids: Any = field(default_factory=lambda: torch.zeros(3, 2, dtype=torch.int32))
    factors: Any = field(default_factory=lambda: torch.ones(3, 2))
    expert_map: Any = None
    gate: Any = (1.0, None, 0.0)

    def call(self) -> Tensor:
        gate_up = self.gate_up, self.gate_up_scales, self.gate_up_bias
        down = self.down, self.down_scales, self.down_bias
        return compute.moe(self.x, gate_up, down, self.ids, self.factors, self.expert_map, self.gate)


@pytest.mark.usefixtures("on_sm90")
def test_what_is_right_passes() -> None:
    biases = {"gate_up_bias": torch.zeros(4, 128, dtype=BF16), "down_bias": torch.zeros(4, 128, dtype=BF16)}
    expert_map = torch.zeros(9, dtype=torch.int32)
    for one in (
        Linear(),
        Linear(bias=torch.zeros(128, dtype=BF16), x=shifted(Linear().x)),
        Moe(),
        Moe(**biases, expert_map=expert_map, gate=(1.7, 7.0, 1.0)),
    ):
        with pytest.raises(RuntimeError, match="it would run"):
            one.call()


U8, I32 = torch.uint8, torch.int32

LINEAR: dict[str, tuple[type[Mxfp4Error], dict[str, Any]]] = {
    "no tokens": (ShapeError, {"x": torch.zeros(0, 64, dtype=BF16)}),
    "k is not that of the weight": (ShapeError, {"x": torch.zeros(3, 128, dtype=BF16)}),
    "x is a vector": (ShapeError, {"x": torch.zeros(64, dtype=BF16)}),
    "x is a batch": (ShapeError, {"x": torch.zeros(1, 3, 64, dtype=BF16)}),
    "x has gaps": (ShapeError, {"x": torch.zeros(3, 128, dtype=BF16)[:, :64]}),
    "x is float16": (FormatError, {"x": torch.zeros(3, 64, dtype=torch.float16)}),
    "x is float32": (FormatError, {"x": torch.zeros(3, 64)}),
    "codes are a vector": (FormatError, {"codes": torch.zeros(2048, dtype=U8)}),
    "codes are canonical": (FormatError, {"codes": torch.zeros(128, 32, dtype=U8)}),
    "codes have experts": (FormatError, {"codes": codes(1, 2, 1)}),
    "codes are signed": (FormatError, {"codes": codes(2, 1).view(torch.int8)}),
    "codes have gaps": (FormatError, {"codes": codes(4, 1)[::2]}),
    "codes are at an odd address": (FormatError, {"codes": shifted(codes(2, 1))}),
    "codes are elsewhere": (FormatError, {"codes": codes(2, 1).to("meta")}),
    "codes are cut": (FormatError, {"codes": codes(2, 1)[..., :1024].contiguous()}),
    "scales are too few": (FormatError, {"scales": torch.zeros(1, 1, 128, dtype=U8)}),
    "scales are canonical": (FormatError, {"scales": torch.zeros(128, 2, dtype=U8)}),
    "scales are floats": (FormatError, {"scales": torch.zeros(2, 1, 128)}),
    "scales are E8M0 by dtype": (FormatError, {"scales": Linear().scales.view(torch.float8_e8m0fnu)}),
    "scales are at an odd address": (FormatError, {"scales": shifted(Linear().scales)}),
    "bias is short": (FormatError, {"bias": torch.zeros(127, dtype=BF16)}),
    "bias is float32": (FormatError, {"bias": torch.zeros(128)}),
    "bias is at an odd address": (FormatError, {"bias": shifted(torch.zeros(128, dtype=BF16))}),
    "no rows": (ShapeError, {"codes": codes(0, 1), "scales": torch.zeros(0, 1, 128, dtype=U8)}),
    "no columns": (
        ShapeError,
        {
            "x": torch.zeros(3, 0, dtype=BF16),
            "codes": codes(2, 0),
            "scales": torch.zeros(2, 0, 128, dtype=U8),
        },
    ),
}


@pytest.mark.usefixtures("on_sm90")
@pytest.mark.parametrize("name", LINEAR)
def test_linear_refuses(name: str) -> None:
    error, changes = LINEAR[name]
    with pytest.raises(error, match=r"mxfp4_cuda_marlin::linear|a weight of the backend"):
        Linear(**changes).call()


def no_experts(experts: int) -> dict[str, Any]:
    return {
        "gate_up": codes(experts, 2, 2),
        "gate_up_scales": torch.zeros(experts, 2, 2, 128, dtype=U8),
        "down": codes(experts, 2, 1),
        "down_scales": torch.zeros(experts, 2, 1, 128, dtype=U8),
    }


MOE: dict[str, tuple[type[Mxfp4Error], dict[str, Any]]] = {
    "no tokens": (
        ShapeError,
        {
            "x": torch.zeros(0, 128, dtype=BF16),
            "ids": torch.zeros(0, 2, dtype=I32),
            "factors": torch.zeros(0, 2),
        },
    ),
    "no experts": (ShapeError, no_experts(0)),
    "more experts than the routing kernel has threads": (ShapeError, no_experts(1025)),
    "top_k is 0": (ShapeError, {"ids": torch.zeros(3, 0, dtype=I32), "factors": torch.zeros(3, 0)}),
    "top_k is huge": (
        ShapeError,
        {"ids": torch.zeros(3, 2**16 + 1, dtype=I32), "factors": torch.zeros(3, 2**16 + 1)},
    ),
    "down has fewer rows than k": (
        ShapeError,
        {"down": codes(4, 1, 1), "down_scales": torch.zeros(4, 1, 1, 128, dtype=U8)},
    ),
    "down has another n": (
        ShapeError,
        {"down": codes(4, 2, 2), "down_scales": torch.zeros(4, 2, 2, 128, dtype=U8)},
    ),
    "down has fewer experts": (
        FormatError,
        {"down": codes(3, 2, 1), "down_scales": torch.zeros(3, 2, 1, 128, dtype=U8)},
    ),
    "gate_up is that of a linear": (FormatError, {"gate_up": codes(2, 2)}),
    "gate_up is a number": (FormatError, {"gate_up": torch.zeros((), dtype=U8)}),
    "bias of one expert": (FormatError, {"down_bias": torch.zeros(128, dtype=BF16)}),
    "ids are int64": (FormatError, {"ids": torch.zeros(3, 2, dtype=torch.int64)}),
    "ids are floats": (FormatError, {"ids": torch.zeros(3, 2)}),
    "ids of other tokens": (FormatError, {"ids": torch.zeros(4, 2, dtype=I32), "factors": torch.zeros(4, 2)}),
    "ids are a vector": (FormatError, {"ids": torch.zeros(6, dtype=I32)}),
    "ids have gaps": (FormatError, {"ids": torch.zeros(3, 4, dtype=I32)[:, ::2]}),
    "ids are elsewhere": (FormatError, {"ids": torch.zeros(3, 2, dtype=I32, device="meta")}),
    "factors of another top_k": (FormatError, {"factors": torch.ones(3, 3)}),
    "factors are bfloat16": (FormatError, {"factors": torch.ones(3, 2, dtype=BF16)}),
    "map is int64": (FormatError, {"expert_map": torch.zeros(4, dtype=torch.int64)}),
    "map is a matrix": (FormatError, {"expert_map": torch.zeros(2, 2, dtype=I32)}),
    "map is a number": (FormatError, {"expert_map": torch.zeros((), dtype=I32)}),
    "map has gaps": (FormatError, {"expert_map": torch.zeros(8, dtype=I32)[::2]}),
    "limit is negative": (ConfigError, {"gate": (1.0, -1.0, 0.0)}),
    "limit is NaN": (ConfigError, {"gate": (1.0, float("nan"), 0.0)}),
}


@pytest.mark.usefixtures("on_sm90")
@pytest.mark.parametrize("name", MOE)
def test_moe_refuses(name: str) -> None:
    error, changes = MOE[name]
    with pytest.raises(error, match=r"mxfp4_cuda_marlin::moe|a weight of the backend"):
        Moe(**changes).call()


@pytest.mark.parametrize(
    ("n", "k", "experts"), [(2**31, 64, 1), (64, 2**31, 1), (2**31 - 64, 64, 1), (2**28, 64, 1024)]
)
def test_sizes_that_32_bits_do_not_hold(n: int, k: int, experts: int) -> None:
    with pytest.raises(ShapeError, match="cut the layer"):
        checks._check_sizes("it", n, k, experts)


def test_the_largest_sizes_pass() -> None:
    checks._check_sizes("it", 2**31 - 128, 2**31 - 128, 1)
    checks._check_sizes("it", 28672, 8192, 1024)


def test_an_expert_map_that_32_bits_do_not_hold() -> None:
    x, ids, factors = Moe().x, Moe().ids, Moe().factors
    large = SimpleNamespace(
        dtype=I32,
        device=x.device,
        shape=(2**31,),
        is_contiguous=lambda: True,
        dim=lambda: 1,
        data_ptr=lambda: 0,
    )
    with pytest.raises(FormatError, match="2147483648"):
        checks._check_routes(x, ids, factors, large)  # type: ignore[arg-type]  # 8 GB otherwise


@pytest.mark.parametrize("call", [Linear(codes=torch.zeros(0)).call, Moe(ids=torch.zeros(0)).call])
def test_another_device_is_refused_first(call: Callable[[], Tensor]) -> None:
    with pytest.raises(BackendError, match="tensors on cpu"):
        call()


def test_a_gpu_of_amd_with_the_same_numbers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    checks._is_sm90.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert not checks._is_sm90(torch.device("cuda", 0))
    checks._is_sm90.cache_clear()
    monkeypatch.setattr(torch.version, "hip", None)
    assert checks._is_sm90(torch.device("cuda", 0))
    checks._is_sm90.cache_clear()
