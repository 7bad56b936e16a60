"""Run by ``test_triton.py``: the quantizer's kernels under Triton's interpreter against the reference.

PTX is interpreted too: a stand-in for ``inline_asm_elementwise`` does each instruction in NumPy.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from triton import language as tl
from triton.runtime.interpreter import TensorHandle

from mxfp4_core.arithmetic import MXFP4, Profile, reference, resolve
from mxfp4_core.arithmetic.fast.triton import quantize as module
from mxfp4_core.testing.cases import BLOCKS

Words = NDArray[np.uint32]


def halves(words: Words) -> tuple[Words, Words]:
    return words & np.uint32(0xFFFF), words >> np.uint32(16)


def each_half(function: Callable[..., Any], *words: Words) -> Words:
    low, high = (function(*parts) for parts in zip(*(halves(word) for word in words), strict=True))
    return (np.asarray(low) | np.asarray(high) << 16).astype(np.uint32)


def floats(function: Callable[..., Any], form: str) -> Callable[..., Any]:
    """Round the float64 result of a function to nearest even: exact products and sums need no more bits."""

    def widen(half: Words) -> Any:
        return (half << 16).view(np.float32) if form == "bf16x2" else half.astype(np.uint16).view(np.float16)

    def run(*parts: Words) -> Any:
        value = function(*(widen(part).astype(np.float64) for part in parts))
        if form == "f16x2":
            return value.astype(np.float16).view(np.uint16).astype(np.uint32)
        bits = value.astype(np.float32).view(np.uint32)
        return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16

    return run


INTEGERS: dict[str, Callable[..., Words]] = {
    "mov.b32": lambda a: a,
    "and.b32": np.bitwise_and,
    "or.b32": np.bitwise_or,
    "not.b32": np.bitwise_not,
    "shl.b32": np.left_shift,
    "shr.u32": np.right_shift,
    "add.u32": np.add,
    "sub.u32": np.subtract,
    "max.u16x2": lambda a, b: each_half(np.maximum, a, b),
    "min.u16x2": lambda a, b: each_half(np.minimum, a, b),
}
FLOATS: dict[str, Callable[..., Any]] = {
    "mul.rn": np.multiply,
    "add.rn": np.add,
    "fma.rn": lambda a, b, c: a * b + c,
}


def permute(a: Words, b: Words, selector: Words) -> Words:
    parts = [(word >> shift) & 0xFF for word in (a, b) for shift in (0, 8, 16, 24)]
    chosen = [parts[int(selector.flat[0]) >> 4 * i & 7] << 8 * i for i in range(4)]
    return (chosen[0] | chosen[1] | chosen[2] | chosen[3]).astype(np.uint32)


def execute(text: str, inputs: list[Words]) -> Words:
    """Return ``$0`` after these instructions."""
    registers = {f"${i + 1}": words for i, words in enumerate(inputs)}

    def value(operand: str) -> Words:
        number = re.fullmatch(r"0x[0-9a-f]+|\d+", operand)
        return np.full_like(inputs[0], int(operand, 0)) if number else registers[operand]

    for line in filter(None, (part.strip() for part in text.strip("{} \n").split(";"))):
        name, _, rest = line.partition(" ")
        if name == ".reg":
            continue
        target, *operands = (part.strip() for part in rest.split(","))
        values = [value(operand) for operand in operands]
        if name == "prmt.b32":
            registers[target] = permute(*values)
        elif name in INTEGERS:
            registers[target] = INTEGERS[name](*values)
        else:
            stem, _, form = name.rpartition(".")
            registers[target] = each_half(floats(FLOATS[stem], form), *values)
    return registers["$0"]


def inline_asm(
    asm: Any, constraints: Any, args: list[Any], dtype: Any, is_pure: bool, pack: int, **_: Any
) -> Any:
    text, shape = str(getattr(asm, "value", asm)), args[0].handle.data.shape
    columns = [arg.handle.data.astype(np.int32).view(np.uint32).reshape(-1, pack).T for arg in args]
    inputs = [np.ascontiguousarray(word) for column in columns for word in column]
    assert len(str(getattr(constraints, "value", constraints)).split(",")) == 1 + len(inputs)
    out = execute(text, inputs).view(np.int8 if pack == 4 else np.int32).reshape(shape)
    return tl.tensor(TensorHandle(out, dtype), tl.block_type(dtype, list(shape)) if shape else dtype)


def fold(operand: Any, axis: int, combine: Any) -> Any:
    """Reduce the last axis with one call a column; the interpreter's own makes one for each element."""
    assert axis == 1
    data = operand.handle.data
    kind = tl.block_type(operand.dtype, [len(data)])
    columns = [tl.tensor(TensorHandle(column.copy(), operand.dtype), kind) for column in data.T]
    return functools.reduce(combine, columns)


def weights() -> torch.Tensor:
    """Return float32 [*, 32]: named blocks, random ones, ties and their neighbours, subnormals, zeros, not finite."""
    generator = torch.Generator().manual_seed(0)

    def integers(low: int, high: int, rows: int, columns: int = 32) -> torch.Tensor:
        return torch.randint(low, high, (rows, columns), generator=generator).float()

    noise = torch.randn(100, 32, generator=generator) * integers(-140, 120, 100, 1).exp2()
    ties = integers(-16, 17, 200) / 4 * integers(-140, 120, 200, 1).exp2()
    above, below = (torch.nextafter(ties, torch.full_like(ties, end)) for end in (torch.inf, -torch.inf))
    halves = (
        integers(-65500, 65500, 50),
        integers(-40, 40, 50) * 2.0**-24,
        integers(-200, 200, 50) * 2.0**-149,
    )
    odd = torch.randn(5, 32, generator=generator)
    odd[0, 3], odd[1, 2], odd[2, 31], odd[3], odd[4, 0] = torch.nan, torch.inf, -torch.inf, -torch.nan, 3e38
    named = torch.stack([block.weight for block in BLOCKS])
    return torch.cat(
        (named, noise, ties, above, below, *halves, odd, torch.zeros(1, 32), -torch.zeros(1, 32))
    )


def main(dtype: torch.dtype, packed: bool) -> None:
    tl.inline_asm_elementwise, tl.reduce = inline_asm, fold
    setattr(module, "_BLOCKS", 512)  # noqa: B010, fewer programs; mypy knows that it is final
    source = weights().to(dtype)
    kinds: dict[object, Profile] = {}
    for name in sorted(MXFP4.profiles):
        profile = resolve(name)
        kind = (profile.ties, profile.zeros, profile.flush_below) if packed else name  # PTX is slow here
        if not profile.dtypes or dtype in profile.dtypes:
            kinds.setdefault(kind, profile)
    for profile in kinds.values():
        codes, scales = (
            source.new_empty((len(source), 16), dtype=torch.uint8),
            torch.empty(len(source)).byte(),
        )
        module._run(source, codes, scales, profile, packed=packed)
        want = reference.quantize(source, profile)
        assert torch.equal(scales, want[1][:, 0]), profile.name
        assert torch.equal(codes, want[0]), profile.name


if __name__ == "__main__":
    main(getattr(torch, sys.argv[1]), sys.argv[2] == "packed")
