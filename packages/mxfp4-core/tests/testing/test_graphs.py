"""The suite captures a backend that computes on the codes, and notices one that asks the device in a call."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mxfp4_core.arithmetic.tensor import MxTensor
from mxfp4_core.backend.answers import Numerics
from mxfp4_core.backend.device import Device
from mxfp4_core.backend.problem import Matrix, Problem
from mxfp4_core.backend.protocol import Layout, Packed
from mxfp4_core.backend.reference.backend import CanonicalLayout, ReferenceBackend
from mxfp4_core.testing.conformance import BackendConformance


class Values(CanonicalLayout):
    """Keeps the values beside the bytes."""

    id = "values"

    def pack(self, weight: MxTensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        return {**super().pack(weight, bias), "values": weight.dequantize(torch.float32)}


class Capturable(ReferenceBackend):
    numerics = Numerics()

    def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
        return Values()

    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        out = x.float() @ weight.tensors["values"].T
        return (out + weight.tensors["bias"].float()).to(x.dtype)


class Synchronising(Capturable):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        return super().linear(x, weight, problem) if float(x.abs().max()) >= 0 else x


@pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs are captured on GPUs")
def test_the_suite_captures_graphs() -> None:
    gpu, device = Device.current(), torch.device("cuda")
    suite = BackendConformance()
    suite.test_module_cuda_graph(Capturable(), gpu, device, "linear")
    with pytest.raises(RuntimeError, match="captur"):
        suite.test_module_cuda_graph(Synchronising(), gpu, device, "linear")
    torch.rand(1, device=device)  # the capture that failed left the device's generator as it found it
