"""Sessions under threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from loader_layers import simple, weights
from torch.nn import Parameter

from mxfp4_core import quantize
from mxfp4_core.loader import LoadSession
from mxfp4_core.testing import engine_loaders as engines

# Threads.


def test_eight_threads_load_many_shards() -> None:
    experts, hidden, inter = 16, 64, 64
    w1, w2, w3 = (weights(experts, inter, hidden, seed=seed) for seed in (1, 2, 3))
    session = LoadSession(threads=1)
    moe = engines.FusedMoE(experts, hidden, inter, rank=0, tp=1)
    targets = {name: session.target(name, getattr(moe, name), dtype=torch.bfloat16) for name in ("w13", "w2")}
    params = {name: Parameter(one.codes, requires_grad=False) for name, one in targets.items()}
    loaders = {name: session.wrap(name, moe.weight_loader) for name in targets}
    jobs = [
        ("w2" if shard == "w2" else "w13", source[expert], shard, expert)
        for expert in range(experts)
        for shard, source in (("w1", w1), ("w2", w2), ("w3", w3))
    ]
    start, failures = threading.Barrier(8), []

    def work(mine: list[tuple[str, torch.Tensor, str, int]]) -> None:
        start.wait()
        try:
            for name, source, shard, expert in mine:
                loaders[name](params[name], source, f"e{expert}", shard, expert)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(jobs[index::8],)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    report = session.close()
    for name, want in (("w13", quantize(torch.cat([w1, w3], dim=1))), ("w2", quantize(w2))):
        assert torch.equal(targets[name].mx_tensor().codes, want.codes)
        assert torch.equal(targets[name].mx_tensor().scales, want.scales)
    assert report.phases["quantising"].threads >= report.phases["quantising"].wall > 0


def test_threads_leave_the_dispatcher_as_it_was() -> None:
    """A dispatch mode flips flags of the process, which threads do not restore in order."""
    from torch.utils import _python_dispatch as dispatch

    session = LoadSession(threads=1)
    _, load = simple(session, (64, 32), lambda param, source, shard_id: param.data[shard_id].copy_(source))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(load, [weights(32)] * 64, range(64)))
    session.close()
    assert not dispatch.is_in_torch_dispatch_mode()


def test_other_threads_use_the_meta_device_undisturbed() -> None:
    session = LoadSession()
    seen = []

    def loader(param: Parameter, loaded_weight: torch.Tensor) -> None:
        def other() -> None:
            tensor = torch.empty(4, 32, device="meta")
            tensor.add_(1)
            seen.append(tensor.to("meta").device.type)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        param.data.copy_(loaded_weight)

    _, load = simple(session, (4, 32), loader)
    load(weights(4, 32))
    session.close()
    assert seen == ["meta"]
