"""What a compiler sees of modules: the same numbers, and few guards."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mxfp4_core import quantize
from mxfp4_core.backend import Packed, Problem
from mxfp4_core.backend.reference.backend import ReferenceBackend
from mxfp4_core.modules import Mxfp4Experts, Mxfp4Linear
from mxfp4_core.testing import EmulatedBackend
from mxfp4_core.testing.samples import random_routes, random_x

N, K, E = 48, 96, 3
BACKEND = EmulatedBackend()
pytestmark = [
    # torch.compile imports modules of torch that use what torch has deprecated.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(autouse=True)
def _nothing_compiled() -> None:
    torch.compiler.reset()


def linear(seed: int = 0, n: int = N, k: int = K, bias: bool = True) -> Mxfp4Linear:
    torch.manual_seed(seed)
    row = torch.randn(n).bfloat16() if bias else None
    return Mxfp4Linear.from_weight(quantize(torch.randn(n, k), tail="pad"), row).prepare(BACKEND)


def experts() -> Mxfp4Experts:
    torch.manual_seed(0)
    module = Mxfp4Experts(E, K, K, top_k=2)
    module.fill("gate_up", quantize(torch.randn(E, 2 * K, K)))
    module.fill("down", quantize(torch.randn(E, K, K)))
    return module.prepare(EmulatedBackend())


def compiled(module: nn.Module, backend: Any = "aot_eager") -> Callable[..., Tensor]:
    return torch.compile(module, fullgraph=True, backend=backend)


class Counter:
    """A compiler that counts its graphs, and what is in them."""

    def __init__(self) -> None:
        self.graphs: list[list[str]] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        self.graphs.append([node.name for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward


@pytest.mark.parametrize("shape", [(1, K), (7, K), (2, 3, K), (K,)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_gives_the_same_numbers(shape: tuple[int, ...], bias: bool) -> None:
    module, x = linear(bias=bias), torch.randn(shape).bfloat16()
    assert torch.equal(compiled(module)(x), module(x))


@pytest.mark.parametrize(("n", "k"), [(10, K), (N, 70)])
def test_padded_sizes_give_the_same_numbers(n: int, k: int) -> None:
    module, x = linear(n=n, k=k), random_x(5, k)
    assert torch.equal(compiled(module)(x), module(x))


def test_experts_give_the_same_numbers() -> None:
    module, x, routes = experts(), random_x(6, K), random_routes(6, E, 2)
    assert torch.equal(compiled(module)(x, *routes), module(x, *routes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_dtypes_are_rounded_and_come_back(dtype: torch.dtype) -> None:
    module, x = linear(), random_x(5, K).to(dtype)
    got = compiled(module)(x)
    assert got.dtype is dtype and torch.equal(got, module(x))
    layer, routes = experts(), random_routes(5, E, 2)
    assert torch.equal(compiled(layer)(x, *routes), layer(x, *routes))


@pytest.mark.parametrize("inside", [True, False])
def test_autocast_is_as_ever(inside: bool) -> None:
    module, x = linear(), random_x(5, K).float()

    def run(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return module(x)

    if inside:
        got = torch.compile(run, fullgraph=True, backend="aot_eager")(x)
    else:
        with torch.autocast("cpu", torch.bfloat16):
            got = compiled(module)(x)
    assert got.dtype is torch.bfloat16 and torch.equal(got, run(x))


def test_a_gradient_goes_its_own_way() -> None:
    module = linear()
    ours, theirs = (random_x(5, K).requires_grad_() for _ in range(2))
    compiled(module)(ours).sum().backward()
    module(theirs).sum().backward()
    assert ours.grad is not None and theirs.grad is not None and torch.equal(ours.grad, theirs.grad)


def test_layers_that_are_alike_share_a_graph() -> None:
    counter = Counter()

    def run(module: Mxfp4Linear, x: Tensor) -> Tensor:
        return module(x)

    call = torch.compile(run, fullgraph=True, backend=counter)
    x = random_x(5, K)
    for seed in range(4):
        module = linear(seed)
        assert torch.equal(call(module, x), module(x))
    assert len(counter.graphs) == 1


def test_another_preparation_is_another_graph() -> None:
    counter, module, x = Counter(), linear(), random_x(5, K)
    call = compiled(module, counter)
    call(x)
    call(x)
    assert len(counter.graphs) == 1
    module.prepare(ReferenceBackend())
    assert torch.equal(call(x), module(x)) and len(counter.graphs) == 2


def test_backends_of_one_name_are_not_mixed_up() -> None:
    class Twice(EmulatedBackend):
        def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
            return 2 * super().linear(x, weight, problem)

    module, other, x = linear(bias=False), linear(bias=False).prepare(Twice()), random_x(5, K)
    want = module(x)
    assert torch.equal(compiled(other)(x), 2 * want) and torch.equal(compiled(module)(x), want)
    assert module._preparation != other._preparation == linear(bias=False).prepare(other.backend)._preparation


def test_new_weights_need_no_new_graph() -> None:
    counter, module, x = Counter(), linear(), random_x(5, K)
    call = compiled(module, counter)
    call(x)
    module.load_state_dict(linear(seed=1).state_dict())
    assert torch.equal(call(x), linear(seed=1)(x)) and len(counter.graphs) == 1


def test_guards_are_of_one_text_and_the_tensors() -> None:
    layers = nn.ModuleList([linear(seed, n=K) for seed in range(3)])

    def run(x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x)
        return x

    torch.compile(run, fullgraph=True, backend="eager")(random_x(5, K))
    (entry,) = torch._dynamo.eval_frame._debug_get_cache_entry_list(run)
    guards = re.findall(r"\+- ([A-Z_]+): .*_modules\['1'\]([^,)\s]*)", str(entry.guard_manager))
    read = {
        (kind, what)
        for kind, what in guards
        if kind not in ("DIMENSION_DYNAMIC_MARKING_GUARD", "NO_TENSOR_ALIASING")
    }
    tensors = {what for kind, what in read if kind == "TENSOR_MATCH"}
    others = {kind for kind, _ in read if kind != "TENSOR_MATCH"}
    assert len(tensors) == 3 and all(what.startswith("._buffers[") for what in tensors)
    assert others == {"TYPE_MATCH", "DICT_CONTAINS", "EQUALS_MATCH"}
    assert len(read) <= len(tensors) + 4, sorted(read)


def test_a_program_is_exported() -> None:
    module, x = linear(), random_x(5, K)
    program = torch.export.export(module, (x,), strict=True)
    assert torch.equal(program.module()(x), module(x))


def test_importing_modules_imports_no_compiler(tmp_path: Path) -> None:
    code = "import sys, mxfp4_core.modules as m; m.Mxfp4Linear; print('torch._dynamo' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.strip() == "False"
