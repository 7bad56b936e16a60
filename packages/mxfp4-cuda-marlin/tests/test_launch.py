"""Launches and plans, with a driver that writes down what it is asked: no device is needed."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mxfp4_core.backend import Gate, Packed, Problem, Routes
from mxfp4_core.errors import BackendError, FormatError
from mxfp4_cuda_marlin import checks, compute, direct, plans
from mxfp4_cuda_marlin.kernels import build, launch, load
from mxfp4_cuda_marlin.kernels.launch import Given, Launch

BF16 = torch.bfloat16
KINDS = {"decode": "p" * 11 + "i" * 6 + "f" * 3, "gemm": "p" * 9 + "i" * 4 + "f" * 3 + "s"}
KINDS |= {"route": "p" * 8 + "i" * 4, "gather": "p" * 4 + "i" * 3, "combine": "p" * 3 + "i" * 3}
READ = {"p": ctypes.c_void_p, "i": ctypes.c_int, "f": ctypes.c_float, "s": ctypes.c_int64}


class Number:
    """A structure that is one number."""

    def __init__(self, value: int) -> None:
        self.cell = ctypes.c_int64(value)

    def getPtr(self) -> int:
        return ctypes.addressof(self.cell)


class Driver(SimpleNamespace):
    """Notes function, grid, stream, overlap and the values behind the addresses of each launch."""

    def __init__(self) -> None:
        super().__init__(launched=[], status=0, kinds=dict(KINDS))
        self.CUlaunchConfig = lambda: SimpleNamespace(numAttrs=0)
        self.CUlaunchAttribute = lambda: SimpleNamespace(value=SimpleNamespace())
        self.CUlaunchAttributeID = SimpleNamespace(CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION=1)

    def cuLaunchKernelEx(self, config: Any, function: Any, addresses: int, extra: int) -> tuple[int]:
        kinds = self.kinds[function[0]]
        each = (ctypes.c_void_p * len(kinds)).from_address(addresses)
        values = tuple(READ[kind].from_address(at).value or 0 for kind, at in zip(kinds, each, strict=True))
        self.launched.append((function, config.gridDimX, config.hStream, bool(config.numAttrs), values))
        return (self.status,)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """Let tensors of the CPU pass as those of the device, and note what is launched."""
    made = Driver()
    monkeypatch.setattr(build, "bindings", lambda name: made)
    monkeypatch.setattr(load, "gemm", lambda device, *variant: ("gemm", *variant))
    monkeypatch.setattr(load, "decode", lambda device, *variant: ("decode", *variant))
    monkeypatch.setattr(load, "routing", lambda device, name, cluster=1: (name, cluster))
    monkeypatch.setattr(load, "multiprocessors", lambda device: 132)
    monkeypatch.setattr(load, "tensor_map", lambda address, m, k, nt: Number(address))
    monkeypatch.setattr(load, "no_map", lambda: Number(0))
    monkeypatch.setattr(checks, "_is_sm90", lambda device: True)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)
    for module in (compute, direct):
        monkeypatch.setattr(module, "stream_of", lambda device: 7)
    # What one driver made must not reach another: on a GPU the same process tests the real one.
    kept = (plans.linear_plan, plans.moe_plan, launch._overlap)
    for made_once in kept:
        made_once.cache_clear()
    yield made
    for made_once in kept:
        made_once.cache_clear()


def weight(*tiles: int, bias: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return a weight of so many (experts and) tiles of rows and columns."""
    rows = torch.zeros(*tiles[:-2], 64 * tiles[-2], dtype=BF16) if bias else None
    codes, scales = (torch.zeros(*tiles, size, dtype=torch.uint8) for size in (2048, 128))
    return codes, scales, rows


def packed(codes: Tensor, scales: Tensor, bias: Tensor | None) -> Packed:
    tensors = {"codes": codes, "scales": scales} | ({} if bias is None else {"bias": bias})
    return Packed("sm90", tensors, (64 * codes.shape[-3], 64 * codes.shape[-2]))


def test_arguments_are_where_the_driver_looks(driver: Driver) -> None:
    driver.kinds["f"] = "ppifspp"
    tensor = torch.zeros(3)
    arguments = (tensor, None, 5, 0.5, Number(9), Given(1), ctypes.c_void_p(77))
    launch = Launch(("f",), 4, 128, 0, arguments, overlap=True)
    launch(3, (10, 20))
    launch(4, (30, 40))
    fixed = (tensor.data_ptr(), 0, 5, 0.5, 9)
    assert driver.launched == [
        (("f",), 4, 3, True, (*fixed, 20, 77)),
        (("f",), 4, 4, True, (*fixed, 40, 77)),
    ]


def test_a_structure_may_be_given(driver: Driver) -> None:
    driver.kinds["f"] = "ps"
    launch = Launch(("f",), 1, 32, 0, (Given(0), Given(1, structure=True)))
    for value in (11, 12):
        launch(0, (1, Number(value)))
    assert [values for *_, values in driver.launched] == [(1, 11), (1, 12)]


def test_a_refused_launch_is_an_error(driver: Driver) -> None:
    driver.kinds["f"], driver.status = "", 700
    with pytest.raises(BackendError, match="700"):
        Launch(("f",), 1, 32, 0, ())(0)


def test_threads_do_not_mix_their_arguments(driver: Driver) -> None:
    driver.kinds["f"] = "pppp"
    launch = Launch(("f",), 1, 32, 0, [Given(0)] * 4)
    threads = [
        threading.Thread(target=lambda value=value: [launch(0, (value,)) for _ in range(300)])
        for value in (1, 2, 3, 4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(driver.launched) == 1200 and all(len(set(values)) == 1 for *_, values in driver.launched)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("m", [1, 9, 64, 65, 300])
@pytest.mark.parametrize("tiles", [(1, 1), (5, 7), (40, 70)])
def test_a_direct_linear_launches_what_the_operator_launches(
    driver: Driver, m: int, tiles: tuple[int, int], bias: bool
) -> None:
    codes, scales, row = weight(*tiles, bias=bias)
    n, k = 64 * tiles[0], 64 * tiles[1]
    x = torch.zeros(m, k, dtype=BF16)
    wanted = compute.linear(x, codes, scales, row)
    run = direct.linear(packed(codes, scales, row))
    outs = [wanted, run(x), run(x)]
    assert all(out.shape == (m, n) and out.dtype is BF16 for out in outs)
    assert len(driver.launched) == 3
    for (function, grid, stream, overlap, values), out in zip(driver.launched, outs, strict=True):
        assert (function, grid, stream, overlap) == (*driver.launched[0][:2], 7, False)
        address = 0 if row is None else row.data_ptr()
        assert values[:5] == (codes.data_ptr(), scales.data_ptr(), x.data_ptr(), out.data_ptr(), address)
        assert values[5:] == driver.launched[0][4][5:]
        assert function[0] == "decode" or values[-1] == x.data_ptr(), "the map is that of x"
    sizes = (
        driver.launched[0][4][11:14] if driver.launched[0][0][0] == "decode" else driver.launched[0][4][9:12]
    )
    assert sizes == (m, n, k)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(
    ("m", "names"),
    [
        (1, ["decode", "decode"]),
        (16, ["route", "decode", "decode", "combine"]),
        (500, ["route", "gather", "gemm", "gemm", "combine"]),
    ],
)
def test_direct_experts_launch_what_the_operator_launches(
    driver: Driver, m: int, names: list[str], mapped: bool
) -> None:
    experts, n, k = 16, 128, 192
    up, down = weight(experts, 4, 3, bias=True), weight(experts, 3, 2, bias=False)
    x, ids, factors = torch.zeros(m, k, dtype=BF16), torch.zeros(m, 2, dtype=torch.int32), torch.ones(m, 2)
    expert_map = torch.zeros(2 * experts, dtype=torch.int32) if mapped else None
    gate = Gate(1.702, 7.0, 1.0)
    problem = Problem(op="moe", n=n, k=k, experts=experts, top_k=2, gate=gate, bias=True)
    wanted = compute.moe(x, up, down, ids, factors, expert_map, (1.702, 7.0, 1.0))
    first = list(driver.launched)
    run = direct.moe(packed(*up), packed(*down), problem)
    driver.launched.clear()
    got = run(x, Routes(ids, factors, expert_map))
    assert [function[0] for function, *_ in driver.launched] == names
    assert [overlap for *_, overlap, _ in driver.launched] == [False] + [True] * (len(names) - 1)
    known = {part.data_ptr() for part in (*up, *down, x, ids, factors, expert_map) if part is not None}
    known |= {0}
    for (*one, a), (*other, b) in zip(first, driver.launched, strict=True):
        assert one == other
        kinds = KINDS[one[0][0]]
        for kind, old, new in zip(kinds, a, b, strict=True):
            # Workspaces and the result are others; all else is the same.
            assert old == new or (kind == "p" and old not in known and new not in known)
    last = driver.launched[-1][4]
    assert (first[-1][4].index(wanted.data_ptr()), wanted.shape) == (last.index(got.data_ptr()), got.shape)


def test_workspaces_do_not_overlap(driver: Driver) -> None:
    call = plans.MoeSizes(500, 2, 16, 128, 192, 0)
    variants = compute.moe_variant(*call, 132)
    plan = plans.MoePlan(torch.device("cpu"), call, (True, False), (1.0, 7.0, 0.0), variants)
    given = plan.given(0, 0, 0, 0, 0, (1, 2, 0), (3, 4, 0), 4096)
    rooms = given[11:]
    assert list(rooms) == sorted(set(rooms)) and all(room % 256 == 0 for room in rooms)
    assert rooms[-1] + 2 * 1000 * 192 <= 4096 + plan.bytes


def test_weights_that_are_alike_share_a_plan(driver: Driver) -> None:
    x = torch.zeros(4, 64, dtype=BF16)
    first, second = weight(1, 1, bias=False), weight(1, 1, bias=False)
    run = direct.linear(packed(*first))
    for _ in range(3):
        run(x)
    direct.linear(packed(*second))(x)
    assert plans.linear_plan.cache_info().misses == 1
    assert [values[0] for *_, values in driver.launched] == [first[0].data_ptr()] * 3 + [second[0].data_ptr()]
    first[0].data = torch.zeros_like(first[0])  # the same tensor in other memory
    run(x)
    assert driver.launched[-1][4][0] == first[0].data_ptr()


@pytest.mark.parametrize("m", [1, 16, 500])
def test_experts_that_are_alike_share_a_plan(driver: Driver, m: int) -> None:
    problem = Problem(op="moe", n=128, k=192, experts=16, top_k=2, gate=Gate(1.702, 7.0, 1.0), bias=True)
    layers = [(weight(16, 4, 3, bias=True), weight(16, 3, 2, bias=True)) for _ in range(2)]
    x, ids, factors = torch.zeros(m, 192, dtype=BF16), torch.zeros(m, 2, dtype=torch.int32), torch.ones(m, 2)
    known = {part.data_ptr() for layer in layers for each in layer for part in each if part is not None}
    seen = []
    for up, down in layers:
        driver.launched.clear()
        direct.moe(packed(*up), packed(*down), problem)(x, Routes(ids, factors, None))
        products = [each[-1] for each in driver.launched if each[0][0] in ("decode", "gemm")]
        seen.append([known & {*values} for values in products])
    assert seen == [
        [{part.data_ptr() for part in each if part is not None} for each in layer] for layer in layers
    ]
    assert plans.moe_plan.cache_info().misses == 1


def test_a_weight_is_checked_when_the_call_is_made(driver: Driver) -> None:
    codes, scales, _ = weight(2, 1, bias=False)
    with pytest.raises(FormatError, match="Sm90Layout"):
        direct.linear(packed(codes, scales[:1], None))


def test_odd_addresses_are_copied(driver: Driver) -> None:
    room = torch.zeros(4 * 64 + 1, dtype=BF16)
    x = room[1:].view(4, 64)
    direct.linear(packed(*weight(1, 1, bias=False)))(x)
    assert driver.launched[0][4][2] % 16 == 0 and driver.launched[0][4][2] != x.data_ptr()
