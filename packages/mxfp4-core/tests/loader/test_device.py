"""Loads into the memory of an accelerator: the same bytes as on the CPU, within the bound, at the same address."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
from torch.nn import Parameter

from mxfp4_core import Mxfp4Config, quantize
from mxfp4_core.backend import Backend, Device, No, Problem, Yes, quantizers, registry, verdict
from mxfp4_core.loader import LoadSession, QuantTarget, Region
from mxfp4_core.modules import Mxfp4Experts, Mxfp4Linear, Mxfp4Module
from mxfp4_core.testing import engine_loaders as engines

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")


def weights(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.05).to(dtype)


def copy_whole(param: Parameter, loaded_weight: torch.Tensor) -> None:
    param.data.copy_(loaded_weight.to(param.device))


@pytest.mark.parametrize("source", ["cpu", "cuda", "pinned"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bytes_equal_those_of_the_cpu(
    source: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantizers, "CHUNK_VALUES", 1 << 12)  # several chunks
    weight = weights(96, 330, dtype=dtype)
    loaded = weight.pin_memory() if source == "pinned" else weight.to(source)
    session = LoadSession(Mxfp4Config(tail="pad"))
    target = session.target("w", (96, 330), dtype=torch.bfloat16, device="cuda")
    wrapped = session.wrap("w", copy_whole)
    addresses = set()
    for _ in range(2):
        wrapped(Parameter(target.codes, requires_grad=False), loaded)
        session.close()
        addresses.add((target.codes.data_ptr(), target.scales.data_ptr()))
        session.begin()
    want = quantize(weight.to(torch.bfloat16), tail="pad")
    assert target.codes.device.type == "cuda"
    assert torch.equal(target.codes.cpu(), want.codes)
    assert torch.equal(target.scales.cpu(), want.scales)
    assert len(addresses) == 1


def test_threads_fill_one_device() -> None:
    w13, w2 = weights(32, 256, 128, seed=1), weights(32, 128, 128, seed=2)
    session = LoadSession()
    moe = engines.FusedMoE(32, 128, 128, rank=0, tp=1)
    targets = {
        name: session.target(name, getattr(moe, name), dtype=torch.bfloat16, device="cuda")
        for name in ("w13", "w2")
    }
    params = {name: Parameter(one.codes, requires_grad=False) for name, one in targets.items()}
    loaders = {name: session.wrap(name, moe.weight_loader) for name in targets}

    def work(first: int) -> None:
        for expert in range(first, 32, 8):
            gate, up = w13[expert].chunk(2)
            loaders["w13"](params["w13"], gate, "gate", "w1", expert)
            loaders["w13"](params["w13"], up, "up", "w3", expert)
            loaders["w2"](params["w2"], w2[expert], "down", "w2", expert)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    session.close()
    for name, weight in (("w13", w13), ("w2", w2)):
        assert torch.equal(targets[name].codes.cpu(), quantize(weight).codes)
        assert torch.equal(targets[name].scales.cpu(), quantize(weight).scales)


@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_device_memory_stays_below_the_bound(where: str) -> None:
    """32 tensors of 64 MiB: the result, the piece in hand, and what quantising a chunk of it needs."""
    pattern = weights(1, 4096, seed=1)
    torch.cuda.empty_cache()
    session = LoadSession()
    for index in range(32):
        target = session.target(f"w{index}", (8192, 4096), dtype=torch.bfloat16, device="cuda")
        wrapped = session.wrap(target.name, lambda param, loaded_weight: param.data.copy_(loaded_weight))
        source = pattern.to(where).expand(8192, 4096).contiguous()
        wrapped(Parameter(target.codes, requires_grad=False), source)
        del source
    report = session.close()
    use = next(one for one in report.memory if one.device.startswith("cuda"))
    quantised = sum(target.bytes_after for target in session.targets.values())
    unit = 8192 * 4096 * 2
    temporaries = 200 << 20
    print(report.line())
    assert quantised <= use.peak - use.before <= quantised + (unit if where == "cuda" else 0) + temporaries


def computing_on_codes(problem: Problem) -> Backend:
    """Return a backend whose kernels read the codes; what the machine has counts here, not what the tests install."""
    for plugin in registry.installed().values():
        found = plugin.load()
        if (
            not isinstance(found, No)
            and not found.numerics.emulated
            and isinstance(verdict(found, problem), Yes)
        ):
            return found
    pytest.skip("no backend of this machine computes on the codes")


@pytest.mark.parametrize("kind", ["linear", "experts"])
def test_a_captured_graph_computes_with_what_was_loaded_again(kind: str) -> None:
    """The graph is captured once; whole loads and loads of some rows give it new weights where the old ones were."""
    here = {"dtype": torch.bfloat16, "device": "cuda"}

    def fresh() -> Mxfp4Module:
        if kind == "linear":
            return Mxfp4Linear(320, 512, device="meta")
        return Mxfp4Experts(4, 160, 512, top_k=2, device="meta")

    def load(session: LoadSession, targets: dict[str, QuantTarget], seed: int) -> None:
        for place, target in enumerate(targets.values()):
            target.quantize(weights(*target.shape, seed=seed + place))
        session.close()

    backend = computing_on_codes(replace(fresh().problem, device=Device.of("cuda")))

    def loaded(seed: int) -> tuple[Mxfp4Module, LoadSession, dict[str, QuantTarget]]:
        module, session = fresh(), LoadSession()
        targets = session.bind(module, backend=backend, **here)
        load(session, targets, seed)
        return module, session, targets

    module, session, targets = loaded(0)
    x = torch.randn(8, 512, **here)
    ids = torch.tensor([[0, 3], [1, 2]] * 4, device="cuda", dtype=torch.int32)
    arguments = (x,) if kind == "linear" else (x, ids, torch.rand(8, 2, device="cuda"))
    with torch.no_grad():
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            module(*arguments)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = module(*arguments)
        before = {name: buffer.data_ptr() for name, buffer in module.named_buffers()}
        for seed in (10, 20):
            session.begin()
            load(session, targets, seed)
            graph.replay()
            torch.cuda.synchronize()
            assert torch.equal(out, loaded(seed)[0](*arguments))
        *_, target = targets.values()
        rows = weights(7, target.shape[-1], seed=30)
        session.begin(subset=True)
        target.quantize(rows, Region((target.box[0] - 1, target.box[0]), (3, 10), (0, target.shape[-1])))
        session.close()
        graph.replay()
        torch.cuda.synchronize()
        want, again, all_of = loaded(20)
        *_, last = all_of.values()
        again.begin(subset=True)
        last.put(quantize(rows).parts, Region((last.box[0] - 1, last.box[0]), (3, 10), (0, last.shape[-1])))
        again.close()
        assert torch.equal(out, want(*arguments))
    assert {name: buffer.data_ptr() for name, buffer in module.named_buffers()} == before
