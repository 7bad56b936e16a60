"""Other weights for modules that compute: in whatever order they come, in the same memory, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mxfp4_core.backend import Backend, Device, Problem
from mxfp4_core.config import Mxfp4Config
from mxfp4_core.errors import FormatError, LoadError, ShapeError
from mxfp4_core.loader import LoadSession, QuantTarget, Region
from mxfp4_core.modules import Mxfp4Module
from mxfp4_core.testing.fixtures import Fixtures, takes
from mxfp4_core.testing.samples import had_back
from mxfp4_core.testing.suite_module import KINDS, build, empty, inputs, problem_of, weight_of

Arrival = Callable[[QuantTarget, Tensor], None]


def whole(target: QuantTarget, weight: Tensor) -> None:
    """Bring a weight as one tensor."""
    target.quantize(weight)


def backwards(target: QuantTarget, weight: Tensor) -> None:
    """Bring it expert by expert and half by half, the last one first."""
    experts, rows, cols = target.box
    middle = rows // 3
    for expert in reversed(range(experts)):
        for start, stop in ((middle, rows), (0, middle)):
            piece = (weight[expert] if target.stacked else weight)[start:stop]
            target.quantize(piece, Region((expert, expert + 1), (start, stop), (0, cols)))


def values(target: QuantTarget, seed: int) -> Tensor:
    """Return a weight in high precision as models have them."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(target.shape, generator=generator) / target.shape[-1] ** 0.5).to(torch.bfloat16)


def bound(module: Mxfp4Module, backend: Backend) -> tuple[LoadSession, dict[str, QuantTarget]]:
    """Return a session with the weights of a module as targets."""
    session = LoadSession(Mxfp4Config(tail="pad", nonfinite="nan"))
    return session, session.bind(module, backend=backend)


def loaded(problem: Problem, backend: Backend, device: torch.device, seed: int) -> Mxfp4Module:
    """Return a module with biases of zero that was loaded once."""
    module = empty(problem, device)
    for bias in module.biases.values():
        bias.zero_()
    session, targets = bound(module, backend)
    for place, target in enumerate(targets.values()):
        target.quantize(values(target, seed + place).to(device))
    session.close()
    return module


def places(module: Mxfp4Module) -> dict[str, int]:
    """Return the address of every buffer."""
    return {name: buffer.data_ptr() for name, buffer in module.named_buffers()}


class RefitSuite(Fixtures):
    """``LoadSession.bind`` and ``begin`` on modules that are prepared for the backend."""

    @pytest.mark.parametrize("arrive", [whole, backwards], ids=lambda way: way.__name__)
    @pytest.mark.parametrize("kind", KINDS)
    def test_refit_in_any_order(
        self, backend: Backend, here: Device, device: torch.device, kind: str, arrive: Arrival
    ) -> None:
        """The old weights compute until the load is closed, the new ones afterwards, at the same addresses."""
        problem = problem_of(backend, kind, here)
        if not takes(backend, problem):
            return
        module, arguments = loaded(problem, backend, device, 0), inputs(problem, device)
        old, before = module(*arguments), places(module)
        session, targets = bound(module, backend)
        for seed in (10, 20):
            session.begin()
            for place, target in reversed(list(enumerate(targets.values()))):
                arrive(target, values(target, seed + place).to(device))
            assert torch.equal(module(*arguments), old), "a load that is not closed changes what is computed"
            session.close()
            assert places(module) == before
            old = module(*arguments)
            assert torch.equal(old, loaded(problem, backend, device, seed)(*arguments))

    @pytest.mark.parametrize("kind", KINDS)
    def test_refit_of_some_rows(
        self, backend: Backend, here: Device, device: torch.device, kind: str
    ) -> None:
        """What was not loaded again is had back from the device layout, bit for bit."""
        problem = problem_of(backend, kind, here)
        if not takes(backend, problem):
            return
        module, want = loaded(problem, backend, device, 0), empty(problem, device)
        for bias in want.biases.values():
            bias.zero_()
        before, last = places(module), list(module.matrices.values())[-1]
        session, targets = bound(module, backend)
        other, all_of = bound(want, backend)
        session.begin(subset=True)
        for place, (name, target) in enumerate(all_of.items()):
            weight = values(target, place).to(device)
            if name == last:
                experts, _, cols = target.box
                new = values(target, 10).to(device)
                rows = (new[-1] if target.stacked else new)[3:40]
                (weight[-1] if target.stacked else weight)[3:40] = rows
                targets[name].quantize(rows, Region((experts - 1, experts), (3, 40), (0, cols)))
            target.quantize(weight)
        session.close()
        other.close()
        assert places(module) == before
        arguments = inputs(problem, device)
        assert torch.equal(module(*arguments), want(*arguments))

    @pytest.mark.parametrize("kind", KINDS)
    def test_refit_with_parts_of_a_checkpoint(
        self, backend: Backend, here: Device, device: torch.device, kind: str
    ) -> None:
        """Parts that are quantised already get in byte for byte, at a first load and later."""
        problem = problem_of(backend, kind, here)
        if not takes(backend, problem):
            return
        module = empty(problem).to_empty(device=device)
        for bias in module.biases.values():
            bias.zero_()
        session, targets = bound(module, backend)
        for seed in (0, 5):
            weights = {name: weight_of(problem, tuple(one.shape), seed) for name, one in targets.items()}
            for name, weight in weights.items():
                for part, tensor in weight.parts.items():
                    targets[name].put({part: tensor})
            session.close()
            state = module.state_dict()
            for matrix, name in module.matrices.items():
                for part, buffer in module.buffer_names(matrix).items():
                    want = had_back(backend, part, weights[name].parts[part])
                    assert torch.equal(state[buffer].cpu(), want), buffer
            session.begin()

    @pytest.mark.parametrize("kind", KINDS)
    def test_refit_that_fails(self, backend: Backend, here: Device, device: torch.device, kind: str) -> None:
        """With holes, other shapes, parts that lack others, or bytes that it refuses, a module is what it was."""
        problem = problem_of(backend, kind, here)
        if not takes(backend, problem):
            return
        module = build(problem, device).prepare(backend)
        arguments = inputs(problem, device)
        old, before = module(*arguments), places(module)
        session, targets = bound(module, backend)
        first, *_ = targets.values()
        *_, last = targets.values()
        session.begin()
        first.quantize(values(first, 10)[..., : first.shape[-2] // 2, :], _upper(first))
        with pytest.raises(LoadError, match="missing"):
            session.close()
        session.begin(subset=True)
        with pytest.raises(ShapeError):
            first.quantize(values(first, 10)[..., :-1, :])
        part = last.format.parts[0].name
        last.put({part: weight_of(problem, tuple(last.shape), 5).parts[part]})
        with pytest.raises(LoadError, match="missing"):
            session.close()
        session.begin(subset=True)
        lost = values(last, 10)
        lost[..., 0, 0] = torch.nan
        last.quantize(lost)
        if backend.numerics.scale_byte_255 == "refused":
            with pytest.raises(FormatError, match=last.name):
                session.close()
        else:
            session.begin()
        state = {name: tensor.clone() for name, tensor in build(problem, device, seed=5).state_dict().items()}
        lacking = next(name for name in state if name.endswith("_scale"))
        del state[lacking]
        with pytest.raises(LoadError, match=lacking):
            module.load_state_dict(state, strict=False)
        assert places(module) == before and torch.equal(module(*arguments), old)


def _upper(target: QuantTarget) -> Region:
    experts, rows, cols = target.box
    return Region((0, experts), (0, rows // 2), (0, cols))
