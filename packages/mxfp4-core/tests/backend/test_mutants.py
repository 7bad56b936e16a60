"""The suite is only worth something if it fails: each defect below was seen in a real kernel package or loader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mxfp4_core.arithmetic.shapes import Alignment
from mxfp4_core.arithmetic.tensor import MxTensor
from mxfp4_core.backend.answers import Numerics, Verdict, Yes
from mxfp4_core.backend.device import Device, cpu
from mxfp4_core.backend.problem import Matrix, Problem
from mxfp4_core.backend.protocol import Backend, Layout, Packed
from mxfp4_core.backend.reference.backend import CanonicalLayout, ReferenceBackend
from mxfp4_core.backend.routes import Routes
from mxfp4_core.testing.conformance import BackendConformance
from mxfp4_core.testing.emulated import EmulatedBackend, TileLayout

CPU = torch.device("cpu")


class NibblesSwapped(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        codes = weight.tensors["codes"]
        swapped = {**weight.tensors, "codes": (codes >> 4) | (codes << 4)}
        return super().linear(x, Packed(weight.layout, swapped, weight.shape), problem)


class BiasDropped(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        kept = {name: tensor for name, tensor in weight.tensors.items() if name != "bias"}
        return super().linear(x, Packed(weight.layout, kept, weight.shape), problem)


class Bfloat16Sum(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        tensors, half = weight.tensors, x.shape[1] // 64 * 32
        if not half:
            return super().linear(x, weight, problem)
        parts = [
            super(Bfloat16Sum, self).linear(
                x[:, low:high].contiguous(),
                Packed(
                    "",
                    {
                        "codes": tensors["codes"][:, low // 2 : high // 2],
                        "scales": tensors["scales"][:, low // 32 : high // 32],
                    },
                    weight.shape,
                ),
                problem,
            )
            for low, high in ((0, half), (half, x.shape[1]))
        ]
        return parts[0] + parts[1]


class LateTile(ReferenceBackend):
    """Wrong from the 256th token on."""

    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        out = super().linear(x, weight, problem)
        out[256:] = 0
        return out


class Byte0IsZero(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        t = dict(weight.tensors)
        t["codes"] = torch.where((t["scales"] == 0).repeat_interleave(16, dim=1), 0, t["codes"])
        return super().linear(x, Packed(weight.layout, t, weight.shape), problem)


class Byte255IsFinite(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        finite = {**weight.tensors, "scales": weight.tensors["scales"].clamp(max=254)}
        return super().linear(x, Packed(weight.layout, finite, weight.shape), problem)


class NanHidden(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        return super().linear(x.nan_to_num(), weight, problem)


class UpFirst(ReferenceBackend):
    def moe(self, x: Tensor, gate_up: Packed, *rest: Any) -> Tensor:
        turned = {name: torch.cat(tensor.chunk(2, 1)[::-1], 1) for name, tensor in gate_up.tensors.items()}
        return super().moe(x, Packed(gate_up.layout, turned, gate_up.shape), *rest)


class WeightsIgnored(ReferenceBackend):
    def moe(self, x: Tensor, a: Packed, b: Packed, routes: Routes, problem: Problem) -> Tensor:
        ones = torch.ones_like(routes.topk_weights)
        return super().moe(x, a, b, routes._replace(topk_weights=ones), problem)


class MapIgnored(ReferenceBackend):
    def moe(self, x: Tensor, a: Packed, b: Packed, routes: Routes, problem: Problem) -> Tensor:
        ids = routes.topk_ids % problem.experts
        return super().moe(x, a, b, Routes(ids, routes.topk_weights), problem)


class IdsWrapped(ReferenceBackend):
    def moe(self, x: Tensor, a: Packed, b: Packed, routes: Routes, problem: Problem) -> Tensor:
        ids = routes.topk_ids
        wrapped = torch.where(ids == -1, ids, ids % problem.total_experts)
        return super().moe(x, a, b, routes._replace(topk_ids=wrapped), problem)


class Unstable(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        return super().linear(x, weight, problem) + torch.randn(()).mul(0.1).to(x.dtype)


class RulesMixed(ReferenceBackend):
    def quantize(self, weight: Tensor, *, profile: str) -> MxTensor:
        return super().quantize(weight, profile="rceil/even" if profile == "quark" else profile)


class GradientLost(ReferenceBackend):
    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        with torch.no_grad():
            return super().linear(x, weight, problem)


class SupportsRaises(ReferenceBackend):
    def supports(self, problem: Problem) -> Verdict:
        return Yes(str(128 // problem.n % problem.k)) if problem.device.arch else Yes(str(1 / 0))


class SupportsCounts(ReferenceBackend):
    count = 0

    def supports(self, problem: Problem) -> Verdict:
        self.count += 1
        return Yes(temporary_bytes=self.count)


class RefusesSilently(ReferenceBackend):
    def supports(self, problem: Problem) -> Verdict:
        from mxfp4_core.backend.answers import No

        return No("", "") if problem.n % 16 else Yes()


class Truncating(CanonicalLayout):
    """Floors instead of refusing."""

    id = "truncating"
    alignment = Alignment(n=16, k=64)

    def pack(self, weight: MxTensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        n, k = weight.shape[-2] // 16 * 16, weight.shape[-1] // 64 * 64
        return {"codes": weight.codes[..., :n, : k // 2], "scales": weight.scales[..., :n, : k // 32]}


class LayoutTruncates(ReferenceBackend):
    def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
        return Truncating()


class PaddingLeft(TileLayout):
    """Forgets one permutation on the way back."""

    def unpack(self, tensors: Any, shape: tuple[int, ...]) -> MxTensor:
        whole = super().unpack(tensors, shape)
        return MxTensor(whole.codes, whole.scales.flip(-1), whole.shape)


class UnpackForgets(EmulatedBackend):
    def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
        tile = self._tile(problem, matrix)
        return PaddingLeft(tile.rows, tile.halves)


class MinusZeroDropped(ReferenceBackend):
    def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
        return Dropping()


class Dropping(CanonicalLayout):
    def pack(self, weight: MxTensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        from mxfp4_core.testing.suite_layout import without_minus_zero

        return {"codes": without_minus_zero(weight.codes), "scales": weight.scales}


class Byte255Taken(EmulatedBackend):
    numerics = Numerics(emulated=True, scale_byte_255="refused", scale_bytes=(1, 254))


Case = tuple[type[Backend], str, tuple[Any, ...]]

MUTANTS: list[Case] = [
    (NibblesSwapped, "test_linear_grid", (32, 32)),
    (BiasDropped, "test_linear_dtypes_and_bias", (torch.bfloat16, True)),
    (Bfloat16Sum, "test_linear_grid", (130, 288)),
    (LateTile, "test_linear_grid", (32, 32)),
    (Byte0IsZero, "test_linear_ends_of_the_scale", (0,)),
    (Byte255IsFinite, "test_linear_ends_of_the_scale", (255,)),
    (NanHidden, "test_linear_nan_stays_in_its_row", ()),
    (Unstable, "test_linear_the_same_twice", ()),
    (UpFirst, "test_moe_grid", ((4, 2, 32, 64), "silu")),
    (WeightsIgnored, "test_moe_grid", ((4, 2, 32, 64), "silu")),
    (MapIgnored, "test_moe_expert_parallel", ()),
    (IdsWrapped, "test_moe_ids_out_of_range", (4,)),
    (RulesMixed, "test_quantize_named_blocks", (torch.bfloat16,)),
    (GradientLost, "test_module_gradients_are_right_or_refused", ()),
    (SupportsRaises, "test_supports_is_total_and_pure", ("",)),
    (SupportsCounts, "test_supports_is_total_and_pure", ("cpu",)),
    (RefusesSilently, "test_linear_grid", (130, 32)),
    (LayoutTruncates, "test_layout_misaligned_weights_are_refused", ("linear",)),
    (UnpackForgets, "test_layout_unpack_gives_back_what_was_packed", ("linear",)),
    (MinusZeroDropped, "test_layout_every_byte_survives", ()),
    (Byte255Taken, "test_layout_scale_bytes_out_of_range_are_refused", ("linear",)),
]


@pytest.mark.parametrize(
    ("mutant", "test", "arguments"), MUTANTS, ids=lambda value: getattr(value, "__name__", None)
)
def test_the_suite_sees_the_defect(mutant: type[Backend], test: str, arguments: tuple[Any, ...]) -> None:
    call(
        type(mutant.__mro__[1].__name__, (mutant.__mro__[1],), {})(), test, arguments
    )  # sound without the defect
    with pytest.raises((AssertionError, pytest.fail.Exception, ZeroDivisionError)):
        call(mutant(), test, arguments)


def call(backend: Backend, test: str, arguments: tuple[Any, ...]) -> None:
    """Call one test of the suite on the CPU."""
    from mxfp4_core.backend.problem import SILU
    from mxfp4_core.testing.suite_layout import LINEAR

    method: Callable[..., None] = getattr(BackendConformance(), test)
    names: dict[str, Any] = {"silu": SILU, "linear": LINEAR[4], "": Device("", ""), "cpu": cpu()}
    given = [names.get(one, one) if isinstance(one, str) else one for one in arguments]
    if test.startswith("test_layout") or test.startswith("test_supports"):
        method(backend, *([cpu()] if "layout" in test else []), *given)
    else:
        method(backend, cpu(), CPU, *given)


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


def test_every_suite_counts() -> None:
    """Two suites with a test of the same name would hide one of them."""
    own = [name for suite in BackendConformance.__mro__ for name in vars(suite) if name.startswith("test_")]
    assert len(own) == len(set(own)) > 40
