"""What Triton lacks is an error with advice; what else it says passes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from mxfp4_core.arithmetic import compiling
from mxfp4_core.errors import BackendError
from mxfp4_cuda_marlin import packing


class Kernel:
    def __getitem__(self, grid: tuple[int, ...]) -> object:
        return self

    def __call__(self, *arguments: object, **settings: object) -> None:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable")


def test_a_missing_compiler_when_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_kernels", lambda: SimpleNamespace(pack_kernel=Kernel()))
    codes = torch.zeros(1, 64, 32, dtype=torch.uint8)
    with pytest.raises(BackendError, match="set CC to one; without Triton torch packs"):
        packing.pack(codes, torch.zeros(1, 64, 2, dtype=torch.uint8), torch.zeros(4, 256), "plain")


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="out of memory"), compiling("it", "nothing"):
        raise RuntimeError("out of memory")
