"""Weights that lie somewhere else than they are computed with: same numbers, no buffers, nothing left behind."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mxfp4_core import Mxfp4Config
from mxfp4_core.arithmetic.quantize import quantize
from mxfp4_core.backend.reference.backend import ReferenceBackend
from mxfp4_core.errors import BackendError, LoadError, OutputError
from mxfp4_core.loader import LoadSession, Region
from mxfp4_core.modules import Mxfp4Experts, Mxfp4Linear, Mxfp4Module, Parking, prepare_model
from mxfp4_core.testing import EmulatedBackend

BACKENDS = [ReferenceBackend(), EmulatedBackend()]
Make = Callable[[], Mxfp4Module]


def linear() -> Mxfp4Module:
    torch.manual_seed(1)
    module = Mxfp4Linear(40, 70, bias=True, dtype=torch.float32)
    module.fill("weight", quantize(torch.randn(40, 70), tail="pad"), torch.randn(40))
    return module


def experts() -> Mxfp4Module:
    torch.manual_seed(2)
    module = Mxfp4Experts(3, 64, 96, top_k=2, bias=True, dtype=torch.float32)
    module.fill("gate_up", quantize(torch.randn(3, 128, 96)), torch.randn(3, 128))
    module.fill("down", quantize(torch.randn(3, 96, 64)), torch.randn(3, 96))
    return module


def called(module: Mxfp4Module) -> tuple[Tensor, Tensor]:
    """Return what a module makes of something, and a gradient."""
    torch.manual_seed(3)
    if isinstance(module, Mxfp4Linear):
        x = torch.randn(5, 70, requires_grad=True)
        result = module(x)
    else:
        x = torch.randn(5, 96, requires_grad=True)
        ids = torch.tensor([[0, 1], [1, 2], [2, 0], [0, 2], [1, 0]], dtype=torch.int32)
        result = module(x, ids, torch.rand(5, 2))
    result.sum().backward()
    assert x.grad is not None
    return result.detach(), x.grad


@pytest.fixture(params=["memory", "file"])
def parking(request: pytest.FixtureRequest, tmp_path: Path) -> Parking:
    return Parking(torch.device("cpu"), tmp_path if request.param == "file" else None)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
@pytest.mark.parametrize("make", [linear, experts])
def test_a_parked_module_computes_what_it_did(
    make: Make, backend: ReferenceBackend, parking: Parking
) -> None:
    plain = make().prepare(backend, dtype=torch.float32)
    module = make()
    module.park(parking)
    assert not module.state_dict().keys() & {
        name for m in module.matrices for name in module.buffer_names(m).values()
    }
    module.prepare(backend, dtype=torch.float32, name="layer")
    assert "parked" in repr(module) and "parked" not in repr(plain)
    assert [name for name, _ in module.named_buffers()] == [name for name, _ in module.named_parameters()] + [
        *module.named_biases
    ]
    for one, other in zip(called(module), called(plain), strict=True):
        assert torch.equal(one, other)
    state, wanted = module.state_dict(), plain.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)
    assert torch.equal(
        getattr(module, module.matrices[next(iter(module.matrices))]) + 0,
        getattr(plain, next(iter(plain.matrices.values()))) + 0,
    )
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(called(other)[0], called(plain)[0])


@pytest.mark.parametrize("make", [linear, experts])
def test_files_are_gone_with_their_names(make: Make, tmp_path: Path) -> None:
    module = make()
    module.park(Parking(torch.device("cpu"), tmp_path))
    module.prepare(EmulatedBackend(), dtype=torch.float32)
    assert not [*tmp_path.iterdir()]
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert f"{tmp_path}{os.sep}.mxfp4-" in maps.read_text()
    del module
    if maps.exists():
        assert f"{tmp_path}{os.sep}.mxfp4-" not in maps.read_text()


class Counted(Parking):
    """A device of its own: each tensor that is computed with is a copy."""

    fetched: list[Tensor] = []  # noqa: RUF012

    def fetch(self, tensor: Tensor) -> Tensor:
        self.fetched.append(tensor)
        return tensor.clone()


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
@pytest.mark.parametrize("make", [linear, experts])
def test_each_call_has_a_copy_on_the_device(make: Make, backend: ReferenceBackend) -> None:
    plain, module = make().prepare(backend, dtype=torch.float32), make()
    module.park(Counted(torch.device("cpu")))
    module.prepare(backend, dtype=torch.float32)
    assert module.parked is not None
    lying = {name: each.clone() for name, each in module.parked.tensors.items()}
    Counted.fetched.clear()
    for _ in range(2):
        called(module)
    assert Counted.fetched and all(
        any(each is one for one in module.parked.tensors.values()) for each in Counted.fetched
    )
    assert torch.equal(called(module)[0], called(plain)[0])
    assert all(torch.equal(lying[name], each) for name, each in module.parked.tensors.items())


def test_a_session_fills_what_is_parked(parking: Parking) -> None:
    torch.manual_seed(4)
    weight = torch.randn(40, 64)
    model = nn.ModuleDict({"up": Mxfp4Linear(40, 64, device="meta", dtype=torch.float32)})
    up = model["up"]
    assert isinstance(up, Mxfp4Module)
    up.park(parking)
    session = LoadSession()
    targets = session.bind(model, dtype=torch.float32)
    targets["up.weight"].quantize(weight[:20], Region((0, 1), (0, 20), (0, 64)))
    with pytest.raises(LoadError, match="missing"):
        session.check()
    targets["up.weight"].quantize(weight[20:], Region((0, 1), (20, 40), (0, 64)))
    session.close()
    assert up.parked is not None and up.computes
    assert torch.equal(model.state_dict()["up.weight"], quantize(weight).codes)


def test_what_is_parked_is_not_changed(parking: Parking) -> None:
    module = linear()
    module.park(parking)
    prepare_model(module, dtype=torch.float32)
    want, state = called(module)[0], module.state_dict()
    wrong: list[Callable[[], object]] = [
        lambda: module.prepare(ReferenceBackend(), dtype=torch.float32),
        lambda: module.load_state_dict(state),
        lambda: module.repack({"weight": quantize(torch.randn(40, 70), tail="pad")}),
        lambda: module.to(torch.float16),
        lambda: module.park(parking),
    ]
    for change in wrong:
        with pytest.raises(BackendError, match="loaded once, and stay where they lie"):
            change()
        assert torch.equal(called(module)[0], want)
    session = LoadSession(Mxfp4Config(tail="pad"))
    target = session.bind(module, dtype=torch.float32)["weight"]
    session.begin()
    with pytest.raises(BackendError, match="stay where they lie"):
        target.quantize(torch.randn(40, 70), Region((0, 1), (0, 40), (0, 70)))
        session.close()
    assert torch.equal(called(module)[0], want)


def test_a_folder_that_takes_no_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be parked"):
        linear().park(Parking(torch.device("cpu"), tmp_path / "absent"))


def test_a_disk_without_room_is_an_error_and_no_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError, match="No space left"):
        linear().park(Parking(torch.device("cpu"), tmp_path))
    assert not [*tmp_path.iterdir()]
