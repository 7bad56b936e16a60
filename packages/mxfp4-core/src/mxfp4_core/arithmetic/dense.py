"""What is taken for a tensor here: one that is dense, and holds its values itself where they are read or written."""

from __future__ import annotations

import torch

from mxfp4_core.errors import FormatError


def check_dense(tensor: object, name: str, *, values: bool = True) -> None:
    """Refuse what is no dense tensor: kernels read and write memory, and would take any address for it.

    Args:
        tensor: what was passed.
        name: what it is, in words.
        values: whether it must hold values: tensors of tracers, and those made of others, hold none themselves.

    Raises:
        FormatError: no tensor, or one that is sparse, nested, or of a class that keeps its values elsewhere.
    """
    if not isinstance(tensor, torch.Tensor):
        seen = f"{type(tensor).__name__}"
    elif tensor.is_nested:
        seen = "a nested tensor"
    elif tensor.layout is not torch.strided:
        seen = f"a tensor of layout {tensor.layout}"
    elif values and type(tensor) is not torch.Tensor and _keeps_elsewhere(tensor):
        seen = f"a {type(tensor).__name__}, which keeps its values elsewhere"
    else:
        return
    raise FormatError(
        f"{name} cannot be used",
        seen=seen,
        rule="it is a dense torch.Tensor that holds its own values",
        fix="convert it first: torch.as_tensor(...), .to_dense(), or .full_tensor() of one that is split",
    )


def _keeps_elsewhere(tensor: torch.Tensor) -> bool:
    # A class that handles every operation itself, as those of tracers, shards and quantised values do.
    return type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__


__all__ = ["check_dense"]
