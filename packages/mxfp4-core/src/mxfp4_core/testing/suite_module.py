"""Modules on the backend: save and reload, second loads, copies, compilation."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mxfp4_core import quantize
from mxfp4_core.arithmetic import MxTensor
from mxfp4_core.backend import SILU, Backend, Device, Problem
from mxfp4_core.errors import BackendError
from mxfp4_core.modules import Mxfp4Experts, Mxfp4Linear, Mxfp4Module
from mxfp4_core.testing.fixtures import Fixtures, posed, takes
from mxfp4_core.testing.samples import had_back, random_biases, random_routes, random_weight, random_x

KINDS = (
    *("linear", "moe", "linear mxfp4+input_scale", "moe mxfp4+input_scale"),
    *("linear mxfp4-dual", "moe mxfp4-dual", "linear mxfp8", "moe mxfp8"),
)
"""An op, and the format of the weights where it is not plain MXFP4."""


def problem_of(backend: Backend, kind: str, here: Device) -> Problem:
    """Return a problem with sizes that most backends must pad."""
    op, _, format = kind.partition(" ")
    if op == "linear":
        return posed(
            backend, Problem(op="linear", n=130, k=360, bias=True, format=format or "mxfp4", device=here)
        )
    return posed(
        backend,
        Problem(
            op="moe",
            n=90,
            k=160,
            experts=2 if format else 4,  # a format with large blocks is padded to large sizes
            top_k=2,
            bias=True,
            gate=SILU,
            format=format or "mxfp4",
            device=here,
        ),
    )


def weight_of(problem: Problem, shape: tuple[int, ...], seed: int) -> MxTensor:
    """Return a random weight in the format of the problem, on the CPU."""
    if problem.format == "mxfp4":
        return random_weight(*shape, seed=seed, scales=(117, 122))
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator) / shape[-1] ** 0.5
    made = quantize(values, format=problem.format, tail="pad")
    for part in made.format.parts:
        if part.operand == "input":
            made.parts[part.name].uniform_(0.5, 2.0, generator=generator)
    return made


def empty(problem: Problem, device: torch.device | str = "meta") -> Mxfp4Module:
    """Return a module for the problem, whose weights are still to be filled."""
    profile = "even/even" if problem.format == "mxfp4" else ""
    if problem.op == "linear":
        return Mxfp4Linear(
            problem.n,
            problem.k,
            bias=problem.bias,
            profile=profile,
            activation=problem.activation,
            format=problem.format,
            device=device,
        )
    return Mxfp4Experts(
        problem.experts,
        problem.n,
        problem.k,
        top_k=problem.top_k,
        bias=problem.bias,
        profile=profile,
        activation=problem.activation,
        format=problem.format,
        device=device,
    )


def build(problem: Problem, device: torch.device, seed: int = 0) -> Mxfp4Module:
    """Return a module with random weights, on the device, not prepared."""
    module = empty(problem)
    for matrix, bias in zip(module.matrices, random_biases(problem, seed), strict=True):
        module.fill(matrix, weight_of(problem, module.shapes[matrix], seed), bias)
    return module.to(device)


def inputs(problem: Problem, device: torch.device, m: int = 9) -> tuple[Tensor, ...]:
    """Return the arguments of forward."""
    x = random_x(m, problem.k).to(device)
    if problem.op == "linear":
        return (x,)
    ids, weights = random_routes(m, problem.experts, problem.top_k)
    return x, ids.to(device), weights.to(device)


@contextmanager
def _capture(graph: torch.cuda.CUDAGraph) -> Iterator[None]:
    """Capture into a graph; where that fails, the device's random generator can be used as before.

    ``torch.cuda.graph`` leaves the generator in the state of capture when the capture was broken off, and every later
    test in the process that draws a random number would fail for it (``CUDAGraph::capture_end``).
    """
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    try:
        with torch.cuda.graph(graph):
            yield
    except BaseException:
        generator.graphsafe_set_state(torch.Generator(generator.device).graphsafe_get_state())
        raise


class _Recorder(TorchDispatchMode):
    """Collect the calls of operators that are not torch's own."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no annotation here
        self.calls: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace not in ("aten", "prims", "prim", "c10d"):
            self.calls[str(func)] = (func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


class ModuleSuite(Fixtures):
    """``Mxfp4Linear`` and ``Mxfp4Experts`` prepared for the backend."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_module_save_and_reload(
        self, backend: Backend, here: Device, device: torch.device, kind: str, tmp_path: Path
    ) -> None:
        """What is saved is canonical whatever the layout, and a reloaded module computes the same bits."""
        problem = problem_of(backend, kind, here)
        if not takes(backend, problem):
            return
        module = build(problem, device)
        canonical = {name: tensor.cpu().clone() for name, tensor in module.state_dict().items()}
        module.prepare(backend)
        want = module(*inputs(problem, device))
        state = {name: tensor.cpu().contiguous() for name, tensor in module.state_dict().items()}
        assert state.keys() == canonical.keys()
        assert all(torch.equal(state[name], had_back(backend, name, t)) for name, t in canonical.items())
        save_file(state, tmp_path / "model.safetensors")

        again = build(problem, device, seed=77)
        again.load_state_dict(load_file(tmp_path / "model.safetensors"))
        assert torch.equal(again.prepare(backend)(*inputs(problem, device)), want)

    @pytest.mark.parametrize("kind", KINDS)
    def test_module_second_load(
        self, backend: Backend, here: Device, device: torch.device, kind: str
    ) -> None:
        """A prepared module takes new weights into the same memory, as a captured graph needs it."""
        problem = problem_of(backend, kind, here)
        if not takes(backend, problem):
            return
        module, other = build(problem, device).prepare(backend), build(problem, device, seed=5)
        before = {name: buffer.data_ptr() for name, buffer in module.named_buffers()}
        module(*inputs(problem, device))  # so that whatever a backend keeps of the first weight is there
        module.load_state_dict(other.state_dict())
        assert {name: buffer.data_ptr() for name, buffer in module.named_buffers()} == before
        want = other.prepare(backend)(*inputs(problem, device))
        assert torch.equal(module(*inputs(problem, device)), want)

    @pytest.mark.parametrize("kind", KINDS)
    def test_module_made_in_the_memory_of_its_bytes(
        self, backend: Backend, here: Device, device: torch.device, kind: str
    ) -> None:
        """Where the canonical bytes may be overwritten, nothing is lost: with sizes to pad, and without."""
        for problem in (
            problem_of(backend, kind, here),
            replace(problem_of(backend, kind, here), n=256, k=512),
        ):
            if not takes(backend, problem):
                continue
            module = build(problem, device)
            canonical = {name: tensor.clone() for name, tensor in module.state_dict().items()}
            want = build(problem, device).prepare(backend)(*inputs(problem, device))
            module.prepare(backend, consume=True)
            assert torch.equal(module(*inputs(problem, device)), want)
            state = module.state_dict()
            assert all(torch.equal(state[name], had_back(backend, name, t)) for name, t in canonical.items())
            other = build(problem, device, seed=5)
            module.load_state_dict(other.state_dict())
            want = other.prepare(backend)(*inputs(problem, device))
            assert torch.equal(module(*inputs(problem, device)), want)

    @pytest.mark.parametrize("kind", KINDS)
    def test_module_copies(self, backend: Backend, here: Device, device: torch.device, kind: str) -> None:
        """Deepcopy and pickle lose the marks that a vendor hangs on tensors; the result stays."""
        problem = problem_of(backend, kind, here)
        if not takes(backend, problem):
            return
        module = build(problem, device).prepare(backend)
        want = module(*inputs(problem, device))
        for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert torch.equal(twin(*inputs(problem, device)), want)

    def test_module_moving_asks_for_another_prepare(
        self, backend: Backend, here: Device, device: torch.device
    ) -> None:
        """A dtype or a device for which nothing was prepared is an error with the way out, and keeps the codes."""
        problem = problem_of(backend, "linear", here)
        if not takes(backend, problem):
            return
        module = build(problem, device)
        codes = module.canonical("weight").codes.clone()
        module.prepare(backend).to(torch.float32)
        assert torch.equal(module.canonical("weight").codes, had_back(backend, "codes", codes))
        with pytest.raises(BackendError, match="prepare"):
            module(*inputs(problem, device))

    # torch.compile imports modules of torch that use what torch has deprecated.
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    @pytest.mark.parametrize("kind", KINDS)
    def test_module_compiles_whole(
        self, backend: Backend, here: Device, device: torch.device, kind: str
    ) -> None:
        """``torch.compile(fullgraph=True)`` works, for one token and for many."""
        problem = problem_of(backend, kind, here)
        if not takes(backend, problem):
            return
        module = build(problem, device).prepare(backend)
        torch.compiler.reset()
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            for m in (9, 1, 12, 0):
                arguments = inputs(problem, device, m)
                assert torch.equal(compiled(*arguments), module(*arguments)), f"m={m}"

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    @pytest.mark.parametrize("kind", KINDS)
    def test_module_operators(self, backend: Backend, here: Device, device: torch.device, kind: str) -> None:
        """Every operator that a call reaches passes ``torch.library.opcheck``."""
        problem = problem_of(backend, kind, here)
        if not takes(backend, problem):
            return
        module = build(problem, device).prepare(backend)
        with torch.no_grad(), _Recorder() as recorder:
            module(*inputs(problem, device))
        for func, args, kwargs in recorder.calls.values():
            torch.library.opcheck(func, args, kwargs)

    @pytest.mark.parametrize("kind", KINDS)
    def test_module_cuda_graph(self, backend: Backend, here: Device, device: torch.device, kind: str) -> None:
        """On a GPU, what computes on the codes can be captured, and replayed with new inputs and with new weights."""
        problem = problem_of(backend, kind, here)
        if not takes(backend, problem) or device.type != "cuda" or backend.numerics.emulated:
            return
        module = build(problem, device).prepare(backend)
        arguments, fresh = inputs(problem, device), inputs(problem, device)
        fresh[0].mul_(-0.5)
        with torch.no_grad():
            want = module(*fresh)
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                module(*arguments)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with _capture(graph):
                out = module(*arguments)
            for static, new in zip(arguments, fresh, strict=True):
                static.copy_(new)
            graph.replay()
            torch.cuda.synchronize()
            assert torch.equal(out, want)
            other = build(problem, device, seed=5)
            module.load_state_dict(other.state_dict())
            graph.replay()
            torch.cuda.synchronize()
        assert torch.equal(out, other.prepare(backend)(*fresh)), "the graph computes with the old weights"
