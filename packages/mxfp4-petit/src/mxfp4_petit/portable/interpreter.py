"""Triton's interpreter, mended: it runs kernels on a CPU where ``TRITON_INTERPRET=1`` is set before Triton is imported.

As of Triton 3.6 it multiplies the bit patterns of bfloat16 operands as if they were integers, without a word, cuts
float32 where GPUs round it to bfloat16, and reads the bounds of loops in a way that NumPy 2.4 refuses.
"""

from __future__ import annotations

import os
from typing import Any


def active() -> bool:
    """Say whether kernels are interpreted in this process."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def mend() -> None:
    """Mend the interpreter, once; call it before the first kernel runs."""
    import torch
    from triton import language as tl
    from triton.runtime import interpreter

    original = interpreter._patch_lang_tensor
    if original.__module__ == __name__:
        return
    builder, handle_of = interpreter.InterpreterBuilder, interpreter.TensorHandle
    dot, cast, round_to = builder.create_dot, builder.cast_impl, builder.create_fp_to_fp

    def patch(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def converts(source: Any, target: Any) -> bool:
        return {source.dtype.scalar, target.scalar} == {tl.bfloat16, tl.float32}

    def convert(source: Any, target: Any) -> Any:
        """Widen bfloat16 to float32, or round float32 to nearest even."""
        if target.scalar == tl.float32:
            return handle_of((source.data.astype("uint32") << 16).view("float32"), tl.float32)
        rounded = torch.from_numpy(source.data.copy()).to(torch.bfloat16).view(torch.int16)
        return handle_of(rounded.numpy().view("uint16"), tl.bfloat16)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        a, b = (convert(one, tl.float32) if one.dtype.scalar == tl.bfloat16 else one for one in (a, b))
        return dot(self, a, b, *rest)

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        return convert(source, target) if converts(source, target) else cast(self, source, target)

    def create_fp_to_fp(self: Any, source: Any, target: Any, rounding: Any) -> Any:
        if converts(source, target):
            return convert(source, target)
        return round_to(self, source, target, rounding)

    interpreter._patch_lang_tensor = patch
    builder.create_dot, builder.cast_impl, builder.create_fp_to_fp = create_dot, cast_impl, create_fp_to_fp


__all__ = ["active", "mend"]
