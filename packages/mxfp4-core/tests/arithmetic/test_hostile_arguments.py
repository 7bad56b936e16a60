"""Arguments of the wrong type, and tensors that hold no values themselves, end in errors of ours."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mxfp4_core import MxTensor, dequantize, quantize, quantize_into
from mxfp4_core.config import Mxfp4Config
from mxfp4_core.errors import ConfigError, FormatError, ShapeError
from mxfp4_core.jobs import plan_checkpoint, quantize_checkpoint, verify_checkpoint
from mxfp4_core.modules import quantize_

DENSE = torch.randn(32, 64)
DONE = quantize(DENSE)


def fake() -> torch.Tensor:
    with FakeTensorMode():
        return torch.randn(32, 64)


def nested(layout: torch.layout) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nested tensors are new
        return torch.nested.nested_tensor([DENSE, DENSE[:8]], layout=layout)


def csr() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that sparse rows are new
        return DENSE.to_sparse_csr()


ODD: dict[str, Callable[[], Any]] = {
    "sparse": DENSE.to_sparse,
    "csr": csr,
    "nested": lambda: nested(torch.strided),
    "jagged": lambda: nested(torch.jagged),
    "fake": fake,
    "meta": lambda: DENSE.to("meta"),
    "complex": lambda: DENSE.to(torch.complex64),
    "list": DENSE.tolist,
    "array": DENSE.numpy,
    "none": lambda: None,
    "text": lambda: "abc",
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_dense_tensor_is_refused(kind: str) -> None:
    odd = ODD[kind]()
    attempts: list[Callable[[], object]] = [
        lambda: quantize(odd),
        lambda: quantize_into(odd, DONE.parts),
        lambda: quantize_into(DENSE, {"codes": odd, "scales": DONE.scales}),
        lambda: dequantize(odd, DONE.scales),
        lambda: MxTensor(odd, DONE.scales, torch.Size((32, 64))),
    ]
    for attempt in attempts:
        with pytest.raises((FormatError, ShapeError)):
            attempt()
    if odd is not None:  # then there is none
        with pytest.raises(FormatError):
            dequantize(DONE.codes, DONE.scales, torch.float32, out=odd)


@pytest.mark.parametrize(
    "given", [{"profile": 3}, {"profile": ["a"]}, {"rule": 3}, {"ties": 1}, {"threads": "a"}]
)
def test_options_of_another_type(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        quantize(DENSE, **given)
    with pytest.raises(ConfigError, match="cannot be used"):
        quantize_into(DENSE, DONE.parts, **given)


@pytest.mark.parametrize("shape", ["ab", 5, (32, "64"), (32, 64.0), (-1, 64)])
def test_shapes_of_another_type(shape: Any) -> None:
    with pytest.raises(FormatError):
        MxTensor(DONE.codes, DONE.scales, shape)


@pytest.mark.parametrize("path", [None, 3, b"x", ["x"]])
def test_paths_of_another_type(path: Any, tmp_path: Path) -> None:
    for job in (plan_checkpoint, verify_checkpoint, lambda path: quantize_checkpoint(path, tmp_path / "q")):
        with pytest.raises(ConfigError, match="path of a checkpoint"):
            job(path)
    with pytest.raises(ConfigError, match="destination"):
        quantize_checkpoint(os.curdir, path)


def test_configs_and_models_of_another_type(tmp_path: Path) -> None:
    odd: Any = {"profile": "even"}
    attempts: list[Callable[[], object]] = [
        lambda: plan_checkpoint(tmp_path, odd),
        lambda: plan_checkpoint(tmp_path, tp=odd),
        lambda: quantize_checkpoint(tmp_path, tmp_path / "q", odd),
        lambda: quantize_(torch.nn.Sequential(torch.nn.Linear(64, 64)), odd),
        lambda: quantize_(odd, Mxfp4Config()),
    ]
    for attempt in attempts:
        with pytest.raises(ConfigError, match="cannot be used"):
            attempt()
