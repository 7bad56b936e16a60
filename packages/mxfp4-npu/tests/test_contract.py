"""Every call that the package makes, against the schemas and the Meta functions in the vendor's wheels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import npu_contract
import npu_torch
import pytest
import torch
import vendor_wheels
from npu_emulated import A5, EmulatedNpu, emulated

from mxfp4_core import quantize
from mxfp4_core.backend import GPT_OSS_SWIGLU, Problem, Routes, calls
from mxfp4_npu import vendor

WHEELS = [key for key in vendor_wheels.WHEELS if key.startswith("torch-npu")]

Call = tuple[str, tuple[Any, ...], dict[str, Any], Any]


@pytest.fixture(scope="module")
def made() -> list[Call]:
    """The calls of linear layers of one and two levels, of experts, and of the quantizers, with what came back."""
    seen: list[Call] = []

    def recording(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            seen.append((name, args, kwargs, result))
            return result

        return run

    with emulated():
        module = vendor.loaded()
        for name in vars(npu_torch.module()):
            if name.startswith("npu_"):
                setattr(module, name, recording(name, getattr(module, name)))
        backend, x = EmulatedNpu(), torch.randn(5, 544).bfloat16()
        for format in ("mxfp4", "mxfp4-dual"):
            linear = Problem(op="linear", n=48, k=544, bias=True, activation="auto", format=format, device=A5)
            weight = quantize(torch.randn(48, 544).bfloat16(), format=format, tail="pad")
            packed = calls.pack(backend, linear, weight, torch.randn(48))
            calls.linear(backend, x, packed, linear)
            calls.unpack(backend, linear, packed)
        moe = Problem(
            op="moe",
            n=96,
            k=544,
            experts=3,
            top_k=2,
            bias=True,
            gate=GPT_OSS_SWIGLU,
            activation="auto",
            device=A5,
        )
        stacks = [
            calls.pack(backend, moe, quantize(torch.randn(shape).bfloat16()), torch.randn(shape[:-1]), matrix)
            for matrix, shape in calls.shapes(moe).items()
        ]
        ids, weights = torch.tensor([[0, 2]] * 5, dtype=torch.int32), torch.rand(5, 2)
        calls.moe(backend, x, *stacks, Routes(ids, weights), moe)
        for profile, format in (("ascend-single", "mxfp4"), ("ascend", "mxfp4-dual")):
            parts = {name: part.clone() for name, part in quantize(x[:, :512], format=format).parts.items()}
            backend.quantize_into(x[:, :512].contiguous(), parts, profile=profile)
    return seen


@pytest.fixture(params=WHEELS)
def wheel(request: pytest.FixtureRequest) -> Path:
    folder = vendor_wheels.unpacked(request.param)
    if folder is None:
        reason = vendor_wheels.missing(request.param)
        if vendor_wheels.required():
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


def test_every_operator_is_called(made: list[Call]) -> None:
    assert {name for name, *_ in made} == {*vendor.SINGLE, *vendor.DUAL, *vendor.GROUPED}


def test_the_calls_fit_the_schemas(made: list[Call], wheel: Path) -> None:
    known = npu_contract.schemas(wheel)
    for name, args, kwargs, _ in made:
        assert not (why := npu_contract.binds(known[name], args, kwargs)), f"{name} of {wheel.name}: {why}"


def test_the_dual_matmul_has_its_arguments_in_the_order_of_the_calls(wheel: Path) -> None:
    names = [
        argument.name for argument in npu_contract.schemas(wheel)["npu_dual_level_quant_matmul"].arguments
    ]
    assert names == [
        *("x1", "x2", "x1_level0_scale", "x2_level0_scale", "x1_level1_scale", "x2_level1_scale"),
        *("bias", "output_dtype"),
    ]


def test_the_meta_functions_take_the_calls_and_give_the_shapes_of_the_emulation(
    made: list[Call], wheel: Path
) -> None:
    functions, asked = npu_contract.meta_functions(wheel), set()
    for name, args, kwargs, result in made:
        if name not in functions:
            continue
        asked.add(name)
        got = functions[name](
            *map(npu_contract.shaped, args),
            **{key: npu_contract.shaped(value) for key, value in kwargs.items()},
        )
        for mine, theirs in zip(_flat(result), _flat(got), strict=True):
            assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype), f"{name} of {wheel.name}"
    # The vendor has none for the dual matmul and for the cast of formats.
    assert asked == {*vendor.SINGLE, *vendor.GROUPED, "npu_dynamic_dual_level_mx_quant"}


def _flat(result: Any) -> list[torch.Tensor]:
    return list(result) if isinstance(result, tuple | list) else [result]
