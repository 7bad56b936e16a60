"""Linear: right within a derived bound, for sizes that vendors get wrong, and clear errors for the rest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mxfp4_core.arithmetic import MxTensor
from mxfp4_core.backend import Backend, Device, Packed, Problem, calls, numerics_for
from mxfp4_core.errors import FormatError, ShapeError
from mxfp4_core.testing import judge
from mxfp4_core.testing.fixtures import Fixtures, posed, takes
from mxfp4_core.testing.samples import random_biases, random_weight, random_x

# A block, blocks of several alignments, shards of 2880 (gpt-oss) that end in the middle of a block, and whole layers.
GRID_K = (32, 96, 160, 288, 360, 1664, 2880)
GRID_N = (1, 32, 130, 2880)
# Nothing, decode, and both sides of a tile border of prefill.
GRID_M = (0, 1, 255, 256, 257)


class LinearSuite(Fixtures):
    """``y = x @ weight.T + bias`` on the device."""

    def run(
        self,
        backend: Backend,
        device: torch.device,
        problem: Problem,
        weight: MxTensor,
        bias: Tensor | None = None,
    ) -> Packed:
        """Pack a canonical weight on the device."""
        return calls.pack(backend, problem, weight.to(device), None if bias is None else bias.to(device))

    @pytest.mark.parametrize("n", GRID_N)
    @pytest.mark.parametrize("k", GRID_K)
    def test_linear_grid(self, backend: Backend, here: Device, device: torch.device, n: int, k: int) -> None:
        """Each shape is right, or refused before anything is loaded."""
        problem = posed(backend, Problem(op="linear", n=n, k=k, device=here))
        if not takes(backend, problem):
            return
        weight, x = random_weight(n, k, seed=n + k), random_x(max(GRID_M), k)
        packed = self.run(backend, device, problem, weight)
        answer = judge.linear(x, weight, None, numerics_for(backend, problem))
        for m in GRID_M:
            got = calls.linear(backend, x[:m].to(device), packed, problem)
            assert got.dtype == x.dtype and got.device.type == device.type
            judge.Answer(answer.value[:m], answer.bound[:m]).check(got, f"m={m} n={n} k={k}")

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
    @pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
    def test_linear_dtypes_and_bias(
        self, backend: Backend, here: Device, device: torch.device, dtype: torch.dtype, bias: bool
    ) -> None:
        """Each dtype that is offered, with and without a bias."""
        problem = posed(
            backend, Problem(op="linear", n=130, k=288, bias=bias, dtype=str(dtype)[6:], device=here)
        )
        if not takes(backend, problem):
            return
        weight, x, [values] = random_weight(130, 288), random_x(300, 288, dtype), random_biases(problem)
        packed = self.run(backend, device, problem, weight, values)
        answer = judge.linear(x, weight, values, numerics_for(backend, problem))
        for m in (17, 1, 300):
            got = calls.linear(backend, x[:m].to(device), packed, problem)
            assert got.dtype == dtype
            judge.Answer(answer.value[:m], answer.bound[:m]).check(got, f"m={m}")

    def test_linear_any_shape_and_strides_of_x(
        self, backend: Backend, here: Device, device: torch.device
    ) -> None:
        """One token, images, and views with gaps give what the plain matrix gives."""
        problem = posed(backend, Problem(op="linear", n=64, k=160, device=here))
        if not takes(backend, problem):
            return
        packed = self.run(backend, device, problem, random_weight(64, 160))
        wide = random_x(24, 320).to(device)
        x = wide[:, ::2]
        want = calls.linear(backend, x.contiguous(), packed, problem)
        assert torch.equal(calls.linear(backend, x, packed, problem), want)
        assert torch.equal(
            calls.linear(backend, x.reshape(2, 3, 4, 160), packed, problem), want.view(2, 3, 4, 64)
        )
        transposed = x.T.contiguous().T
        assert torch.equal(calls.linear(backend, transposed, packed, problem), want)
        assert calls.linear(backend, x[0], packed, problem).shape == (64,)
        assert calls.linear(backend, x[:0].view(0, 7, 160), packed, problem).shape == (0, 7, 64)

    def test_linear_the_same_twice(self, backend: Backend, here: Device, device: torch.device) -> None:
        """The same input gives the same bits."""
        problem = posed(backend, Problem(op="linear", n=512, k=2048, device=here))
        if not takes(backend, problem):
            return
        packed, x = (
            self.run(backend, device, problem, random_weight(512, 2048)),
            random_x(64, 2048).to(device),
        )
        first = calls.linear(backend, x, packed, problem)
        assert all(torch.equal(calls.linear(backend, x, packed, problem), first) for _ in range(3))

    def test_linear_nan_stays_in_its_row(self, backend: Backend, here: Device, device: torch.device) -> None:
        """A NaN activation makes its own token NaN, and no other."""
        problem = posed(backend, Problem(op="linear", n=64, k=128, device=here))
        if not takes(backend, problem):
            return
        weight, x = random_weight(64, 128), random_x(9, 128)
        packed = self.run(backend, device, problem, weight)
        x[4, 77] = torch.nan
        got = calls.linear(backend, x.to(device), packed, problem)
        assert bool(got[4].isnan().all())
        judge.linear(x, weight, None, numerics_for(backend, problem)).check(got)

    @pytest.mark.parametrize("byte", [0, 1, 254, 255])
    def test_linear_ends_of_the_scale(
        self, backend: Backend, here: Device, device: torch.device, byte: int
    ) -> None:
        """The first and last scale bytes mean what the backend says."""
        problem = posed(backend, Problem(op="linear", n=64, k=128, device=here))
        if not takes(backend, problem):
            return
        numerics = numerics_for(backend, problem)
        low, high = numerics.scale_bytes
        if numerics.scale_byte_255 == "refused" if byte == 255 else not low <= byte <= high:
            return
        weight, x = random_weight(64, 128), random_x(5, 128)
        weight.codes[7] = 0x22  # 1.0 everywhere, so that nothing cancels
        weight.scales[7] = byte
        x = x.abs() * (2.0**-120 if byte == 254 else 2.0**120 if byte < 2 else 1.0)
        got = calls.linear(backend, x.to(device), self.run(backend, device, problem, weight), problem).cpu()
        judge.linear(x, weight, None, numerics).check(got)
        if byte == 0 and numerics.scale_byte_0 == "zero":
            assert bool((got[:, 7] == 0).all())

    def test_linear_wrong_x_is_refused(self, backend: Backend, here: Device, device: torch.device) -> None:
        """Wrong sizes and dtypes are errors of ours, before a kernel sees them."""
        problem = posed(backend, Problem(op="linear", n=64, k=128, device=here))
        if not takes(backend, problem):
            return
        packed = self.run(backend, device, problem, random_weight(64, 128))
        for shape in ((3, 96), (3, 160), (128, 3), (), (3, 0)):
            with pytest.raises(ShapeError):
                calls.linear(
                    backend, torch.zeros(shape, dtype=torch.bfloat16, device=device), packed, problem
                )
        for dtype in (torch.float64, torch.int8, torch.uint8, torch.float32):
            with pytest.raises(FormatError):
                calls.linear(backend, torch.zeros(3, 128, dtype=dtype, device=device), packed, problem)
