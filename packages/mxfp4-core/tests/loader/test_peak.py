"""A load holds what is quantised so far and the piece that the engine has in hand, and nothing more."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mxfp4_core import Mxfp4Config, quantize
from mxfp4_core.arithmetic.tensor import MxTensor
from mxfp4_core.backend import quantizers
from mxfp4_core.backend.problem import Matrix, Problem
from mxfp4_core.backend.protocol import Layout
from mxfp4_core.backend.reference.backend import CanonicalLayout, ReferenceBackend
from mxfp4_core.loader import LoadSession, QuantTarget
from mxfp4_core.loader.twin import is_twin
from mxfp4_core.modules import Mxfp4Linear

torch.set_num_threads(1)

_LOAD = """
import json, sys
import torch
from torch.nn import Parameter
from mxfp4_core.loader import LoadSession
from mxfp4_core.loader.report import LoadReportBuilder

torch.set_num_threads(1)
layers, rows, k, dtype, keep_first = json.loads(sys.argv[1])
dtype = getattr(torch, dtype)

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(key + ":"))

def copy_whole(param, loaded_weight):
    param.data.copy_(loaded_weight)

def load(count, rows):
    session = LoadSession(report=LoadReportBuilder())
    held = []
    for index in range(count):
        target = session.target(f"layers.{index}", (rows, k), dtype=torch.bfloat16)
        wrapped = session.wrap(target.name, copy_whole)
        source = torch.empty(rows, k, dtype=dtype).copy_(pattern)  # a fresh tensor, as a reader brings it
        wrapped(Parameter(target.codes, requires_grad=False), source)
        if keep_first:
            held.append(source)
        del source
    return session, session.close()

pattern = torch.linspace(-1, 1, k).to(dtype)
load(2, 64)  # warm up: imports, compiled kernels, thread pools
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # forget the high-water mark of the imports
before = status("VmRSS")
session, report = load(layers, rows)
print(json.dumps({
    "grown": status("VmHWM") - before,
    "quantised": sum(target.bytes_after for target in session.targets.values()),
    "unit": rows * k * dtype.itemsize,
    "report": report.to_dict()["memory"],
}))
"""


def measure(layers: int, rows: int, k: int, dtype: str, *, hold_sources: bool = False) -> dict[str, Any]:
    arguments = json.dumps([layers, rows, k, dtype, hold_sources])
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, arguments], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# The allocator of the C library keeps some freed memory, and pages of code come in on first use.
SLACK = 6 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("dtype", "rows"), [("bfloat16", 2048), ("float32", 1024)])
def test_resident_memory_stays_below_the_bound(dtype: str, rows: int) -> None:
    """64 tensors of 16 MiB, one at a time: 1 GiB passes through, and the bound is the result plus one tensor."""
    seen = measure(64, rows, 4096, dtype)
    assert seen["unit"] == 16 << 20
    # A cast goes chunk by chunk beside the source: less than a second copy of the unit.
    cast = 0 if dtype == "bfloat16" else quantizers.CHUNK_VALUES * 2
    bound = seen["quantised"] + seen["unit"] + cast + SLACK
    assert seen["quantised"] < seen["grown"] <= bound
    (use,) = seen["report"]
    assert use["peak"] - use["before"] <= bound
    assert use["after"] - use["before"] >= seen["quantised"] * 0.9


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_measure_sees_a_loader_that_holds_its_sources() -> None:
    seen = measure(16, 2048, 4096, "bfloat16", hold_sources=True)
    assert seen["grown"] > seen["quantised"] + 15 * seen["unit"]


class LiveBytes(TorchDispatchMode):
    """Count the bytes of all tensors that operations made and that are still alive; the exact peak is kept."""

    def __init__(self) -> None:
        super().__init__()
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = self._before = 0

    def start(self) -> None:
        """Forget what is alive now."""
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}
        self._before = sum(nbytes for _, nbytes in self._live.values())
        self.peak = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            # A stand-in for a parameter has a size and no memory, as meta tensors do.
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta and not is_twin(tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                self._live[reference.cdata] = (reference, storage.nbytes())
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(nbytes for _, nbytes in self._live.values()) - self._before)
        return result


def by_rows(param: Parameter, loaded_weight: torch.Tensor) -> None:
    param.data.copy_(loaded_weight)


def by_columns(param: Parameter, loaded_weight: torch.Tensor) -> None:
    for start in range(0, loaded_weight.shape[1], 64):
        stop = min(start + 64, loaded_weight.shape[1])
        param.data[:, start:stop].copy_(loaded_weight[:, start:stop])


@pytest.mark.parametrize("loader", [by_rows, by_columns])
@pytest.mark.parametrize(
    ("source_dtype", "k", "extra_copies"),
    [
        (torch.bfloat16, 256, 0),  # straight from the source
        (torch.float32, 256, 1),  # cast, a chunk at a time
        (torch.bfloat16, 250, 1),  # padded, a chunk at a time
        (torch.float32, 250, 2),  # cast, then padded
    ],
)
def test_every_live_tensor_is_accounted_for(
    loader: Callable[..., Any],
    source_dtype: torch.dtype,
    k: int,
    extra_copies: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chunk = 8 * 256
    monkeypatch.setattr(quantizers, "CHUNK_VALUES", chunk)
    rows, layers = 64, 5
    with LiveBytes() as live:
        quantize(torch.ones(1, 32, dtype=torch.bfloat16))  # its tables stay
        live.start()
        session = LoadSession(Mxfp4Config(tail="pad"))
        for index in range(layers):
            target = session.target(f"w{index}", (rows, k), dtype=torch.bfloat16)
            wrapped = session.wrap(target.name, loader)
            source = torch.full((rows, k), 0.5, dtype=source_dtype)
            wrapped(Parameter(target.codes, requires_grad=False), source)
            del source
        session.close()
    quantised = sum(target.bytes_after for target in session.targets.values())
    unit = rows * k * source_dtype.itemsize
    assert quantised + unit <= live.peak
    # A chunk that ends inside a block is wider when padded (58 columns become 64); constants take some bytes.
    copies = extra_copies * chunk * torch.bfloat16.itemsize * 64 // 58
    assert live.peak <= quantised + unit + copies + 64


class InPlace(ReferenceBackend):
    """Packs in the memory of the canonical bytes."""

    def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
        return Flipped()


class Flipped(CanonicalLayout):
    id = "flipped"

    def pack(self, weight: MxTensor, bias: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        return {name: ~part for name, part in weight.parts.items()}

    def pack_in_place(self, weight: MxTensor, bias: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        return {name: part.bitwise_not_() for name, part in weight.parts.items()}

    def unpack(self, tensors: Mapping[str, torch.Tensor], shape: tuple[int, ...]) -> MxTensor:
        return MxTensor(~tensors["codes"], ~tensors["scales"], torch.Size(shape))


@pytest.mark.parametrize("subset", [None, False, True], ids=["first load", "refit", "refit layer by layer"])
def test_bound_modules_hold_the_result_and_one_piece(subset: bool | None) -> None:
    """A refit has the new weights beside the old ones: all of them, or those of one layer."""
    rows, k, layers = 64, 256, 5
    model = nn.ModuleDict({str(number): Mxfp4Linear(rows, k, device="meta") for number in range(layers)})
    session = LoadSession()

    def load(targets: Iterable[QuantTarget]) -> None:
        for target in targets:
            source = torch.full((rows, k), 0.5, dtype=torch.bfloat16)
            target.quantize(source)
            del source
        session.close()

    with LiveBytes() as live:
        quantize(torch.ones(1, 32, dtype=torch.bfloat16))  # its tables stay
        live.start()
        targets = session.bind(model, backend=InPlace())
        load(targets.values())
        quantised = sum(target.bytes_after for target in targets.values())
        unit = rows * k * torch.bfloat16.itemsize
        assert live.peak <= quantised + unit + 64, "the first load"
        if subset is None:
            return
        live.start()
        for some in [[each] for each in targets.values()] if subset else [list(targets.values())]:
            session.begin(subset=subset)
            load(some)
            del some
    collected = quantised // layers if subset else quantised
    # A subset is unpacked first: the bytes of one weight in the layout and out of it.
    assert live.peak <= collected + unit + (collected if subset else 0) + 64
