"""Both providers on a CPU, for tests: what their kernels compute, and what they do to a wrong call.

petit-kernel has a strict stand-in. It reads operands lane by lane as the kernels do, by other index maths than the
layout, and refuses or poisons what the real one gets wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType

import torch
from torch import Tensor

from mxfp4_core.backend import Device, No, Packed, Problem, Routes, Verdict, select_backend
from mxfp4_petit.backend import PetitBackend
from mxfp4_petit.portable.layout import PortableLayout
from mxfp4_petit.portable.provider import PortableProvider
from mxfp4_petit.vendor import ops
from mxfp4_petit.vendor.provider import VendorProvider

GFX942 = Device("hip", "gfx942", "emulated")
VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
SIGNS = (15, 31, 7, 23, 16, 0, 24, 8)  # of the eight codes of a word, as the kernels read it
MAGNITUDES = (9, 25, 1, 17, 20, 4, 28, 12)


def expect(sound: bool, message: str) -> None:
    if not sound:
        raise RuntimeError(message)


def sound_operand(tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...], like: Tensor) -> bool:
    same = tensor.dtype is dtype and tuple(tensor.shape) == shape and tensor.device == like.device
    return same and tensor.is_contiguous()


def mul_mxfp4_a16(
    a: Tensor,
    b: Tensor,
    s: Tensor,
    global_scale: Tensor,
    size_m: int,
    size_n: int,
    size_k: int,
    solution_id: int,
) -> Tensor:
    """Multiply as petit-kernel 0.0.5 does on gfx942; every complaint is a RuntimeError, as its AT_ERROR is."""
    expect(size_n % 32 == 0 and size_k % 256 == 0, "kErrorProblemShape")
    expect(a.dtype is torch.bfloat16, "kErrorKernelShape")
    expect(solution_id == -1, "the emulation has the default solution alone")
    expect(sound_operand(a, torch.bfloat16, (size_m, size_k), a), "a must be contiguous [m, k]")
    expect(sound_operand(b, torch.int32, (size_n // 16, 2 * size_k), a), "b must be repacked")
    expect(sound_operand(s, torch.uint8, (size_n // 32, size_k), a), "s must be processed")
    expect(
        sound_operand(global_scale, torch.float32, (1,), a), "global_scale must be float32 [1] on the device"
    )
    weight = numbers(b, size_n, size_k) * scales(s, size_n, size_k).repeat_interleave(32, dim=1)
    return (a.float() @ weight.T * global_scale).to(torch.bfloat16)


def numbers(b: Tensor, n: int, k: int) -> Tensor:
    """Read float32 [n, k] out of repacked words: of a tile of 32 rows and 64 columns, four words for each lane."""
    row, word = torch.arange(n)[:, None], torch.arange(k // 8)[None, :]
    tile = (word // 8) * (n // 32) + row // 32
    lane = row % 16 + 16 * (word % 8 // 2)
    words = b.view(-1)[(tile * 64 + lane) * 4 + 2 * (row % 32 // 16) + word % 2]
    table = torch.cat((VALUES, torch.tensor([torch.nan]), -VALUES[1:]))  # a sign bit on a zero is NaN
    out = torch.empty(n, k // 8, 8)
    for i, (sign, low) in enumerate(zip(SIGNS, MAGNITUDES, strict=True)):
        order = (0, 1, 2) if i < 4 else (2, 1, 0)
        code = ((words >> sign) & 1) << 3
        for bit in range(3):
            code |= ((words >> (low + bit)) & 1) << order[bit]
        out[:, :, i] = table[code]
    return out.view(n, k)


def scales(s: Tensor, n: int, k: int) -> Tensor:
    """Read float32 [n, k/32] out of processed bytes, in low precision: 0 to 6 are zero, 255 is NaN."""
    row, block = torch.arange(n)[:, None], torch.arange(k // 32)[None, :]
    inside = row % 32
    place = (block % 2) * 32 + (inside % 16 // 2) * 4 + (inside % 2) * 2 + inside // 16
    byte = s.view(-1)[((block // 2) * (n // 32) + row // 32) * 64 + place]
    table = torch.exp2(torch.arange(256, dtype=torch.float64) - 127)
    table[:7], table[255] = 0.0, torch.nan
    return table.float()[byte.int()]


def repack_mxfp4(words: Tensor, size_n: int, size_k: int) -> Tensor:
    """Repack whole tiles; what is left over stays poisoned, as uninitialised memory is."""
    expect(size_k % 128 == 0 and size_n % 16 == 0, "kErrorProblemShape")
    expect(
        sound_operand(words, torch.int32, (size_n, size_k // 8), words),
        "words must be contiguous int32 [n, k/8]",
    )
    out = torch.full((size_n // 16, 2 * size_k), -1, dtype=torch.int32).view(-1)
    for row in range(size_n // 32 * 32):
        for word in range(size_k // 256 * 32):
            source, made = int(words[row, word]), 0
            for i, (sign, low) in enumerate(zip(SIGNS, MAGNITUDES, strict=True)):
                code = source >> (4 * i) & 15
                bits = [code >> bit & 1 for bit in range(3)]
                for bit, value in enumerate(bits if i < 4 else bits[::-1]):
                    made |= value << (low + bit)
                made |= (code >> 3 if any(bits) else 0) << sign
            tile = word // 8 * (size_n // 32) + row // 32
            lane = row % 16 + 16 * (word % 8 // 2)
            signed = made - (1 << 32) if made >> 31 else made
            out[(tile * 64 + lane) * 4 + 2 * (row % 32 // 16) + word % 2] = signed
    return out.view(size_n // 16, 2 * size_k)


@contextmanager
def stand_in() -> Iterator[None]:
    """Put the stand-in in the place of petit-kernel."""
    module, before = ModuleType("petit_kernel"), sys.modules.get("petit_kernel")
    module.__dict__.update(mul_mxfp4_a16=mul_mxfp4_a16, repack_mxfp4=repack_mxfp4)
    sys.modules["petit_kernel"] = module
    ops.library.cache_clear()
    try:
        yield
    finally:
        del sys.modules["petit_kernel"]
        if before is not None:
            sys.modules["petit_kernel"] = before
        ops.library.cache_clear()


def on_gfx942(problem: Problem) -> Problem:
    return replace(problem, device=GFX942) if problem.device.type == "cpu" else problem


def emulated(answer: Verdict) -> Verdict:
    if isinstance(answer, No):
        return answer
    return replace(answer, note=f"emulated on a CPU: {answer.note}")


class EmulatedVendor(VendorProvider):
    """petit-kernel's provider, whose calls reach the stand-in."""

    description = "petit-kernel, emulated on a CPU"
    automatic_on = frozenset[str]()

    def supports(self, problem: Problem) -> Verdict:
        """Answer for a CPU as for gfx942; see ``Backend.supports``."""
        return emulated(super().supports(on_gfx942(problem)))


class EmulatedPortable(PortableProvider):
    """Our own kernels' provider; what they compute is computed by the reference on what they read."""

    description = "our own kernels, emulated on a CPU"
    automatic_on = frozenset[str]()

    def __init__(self) -> None:
        cpu = Problem(op="linear", n=1, k=32, device=Device("cpu", "any"))
        self.reference = select_backend(cpu, backend="reference").backend

    def supports(self, problem: Problem) -> Verdict:
        """Answer for a CPU as for gfx942; see ``Backend.supports``."""
        answer = super().supports(on_gfx942(problem))
        return emulated(answer if isinstance(answer, No) else replace(answer, numerics=self.numerics))

    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        """Compute on the codes that the kernels would read; see ``Backend.linear``."""
        return self.reference.linear(x, canonical(weight), problem)

    def moe(self, x: Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem) -> Tensor:
        """Compute on the codes that the kernels would read; see ``Backend.moe``."""
        if (
            problem.tokens == "flat"
        ):  # the kernels take what is no expert for an empty slot, the reference refuses it
            ids = routes.topk_ids
            total = problem.experts if routes.expert_map is None else len(routes.expert_map)
            routes = routes._replace(topk_ids=torch.where((ids >= 0) & (ids < total), ids, -1))
        return self.reference.moe(x, canonical(gate_up), canonical(down), routes, problem)


def canonical(packed: Packed) -> Packed:
    """Undo the layout."""
    variants = [PortableLayout(pairs, wide) for pairs in (False, True) for wide in (False, True)]
    layout = next(each for each in variants if each.id == packed.layout)
    weight = layout.unpack(packed.tensors, packed.shape)
    bias = {"bias": packed.tensors["bias"]} if "bias" in packed.tensors else {}
    codes = weight.codes.view(torch.uint8)  # as the reference holds parts of 8 bits
    return replace(packed, tensors={"codes": codes, "scales": weight.scales} | bias)


class EmulatedPetit(PetitBackend):
    """The whole backend on a CPU, as where petit-kernel is installed."""

    name = "petit-emulated"
    description = "AMD CDNA2 and CDNA3, emulated on a CPU"
    automatic_on = frozenset[str]()

    def __init__(self) -> None:
        super().__init__(providers={"triton": EmulatedPortable(), "petit_kernel": EmulatedVendor()})

    def found(self) -> str | None:
        """Return the version that the stand-in stands for."""
        return "0.0.5"


backend = EmulatedPetit()

__all__ = [
    "GFX942",
    "EmulatedPetit",
    "EmulatedPortable",
    "EmulatedVendor",
    "backend",
    "mul_mxfp4_a16",
    "repack_mxfp4",
]
