"""What a format is: which named parts a weight has, and how they are made from values and back.

Everything that holds, moves, saves or checks a quantised weight loops over the parts of its format and knows no more.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from mxfp4_core._plugins import plugins
from mxfp4_core.arithmetic.shapes import padded
from mxfp4_core.errors import FormatError

if TYPE_CHECKING:
    import torch

    from mxfp4_core.arithmetic.profile import Profile

GROUP = "mxfp4.formats"
"""Entry points of formats."""

Operand = Literal["weight", "input"]
Parts = Mapping[str, "torch.Tensor"]
"""Tensors by the name of their part."""


@dataclass(frozen=True)
class Part:
    """One named tensor of a format.

    Attributes:
        name: for example ``codes`` or ``scales``.
        suffix: what is appended to the name of the weight to name this part in a ``state_dict`` and in files of our
            own dialect; the part with an empty suffix stands under the weight's own name.
        dtype: torch name of the dtype, for example ``uint8``.
        itemsize: bytes of an element.
        values: how many consecutive values along K one element belongs to.
        fill: the element that padding gets: it makes values of zero, or changes nothing.
        same: torch's own dtypes of the same bits, which are taken for it without a copy.
        operand: a part of the weight has its rows, ``[..., N, K / values]``; a part of the input is one row,
            ``[K / values]``, the same for every row and expert of the weight.
    """

    name: str
    suffix: str
    dtype: str
    itemsize: int
    values: int
    fill: float = 0
    operand: Operand = "weight"
    same: tuple[str, ...] = ()

    @cached_property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of the part."""
        return _dtype(self.dtype)

    @cached_property
    def others(self) -> tuple[torch.dtype, ...]:
        """The dtypes that are taken for it."""
        return tuple(map(_dtype, self.same))

    def raw(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a view of the dtype of the part, where the tensor has another dtype of the same bits."""
        return tensor.view(self.torch_dtype) if tensor.dtype in self.others else tensor

    def of_bytes(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a view of the dtype of the part, where the tensor holds its bits as uint8."""
        import torch

        wanted: torch.dtype = getattr(torch, self.dtype)
        return tensor.view(wanted) if tensor.dtype is torch.uint8 and wanted.itemsize == 1 else tensor

    def named(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a view of the dtype that torch has for these bits; the tensor itself where it has none."""
        return tensor.view(self.others[0]) if self.others else tensor

    def shape(self, shape: Sequence[int], k: int) -> tuple[int, ...]:
        """Return the shape of the part for a weight ``[..., N, K]`` whose K is padded to ``k``."""
        rows = () if self.operand == "input" else tuple(shape[:-1])
        return (*rows, k // self.values)


class Format(ABC):
    """A way to store a weight as parts. Stateless; one object a format.

    Attributes:
        name: as configs, files and problems name it.
        parts: in the order in which they are written; the first one is the one that a weight is known by.
        block: values along K that cannot be separated; K is padded to a multiple of it.
    """

    name: str
    parts: tuple[Part, ...]
    block: int

    def __repr__(self) -> str:
        return f"<format {self.name}>"

    def __reduce__(self) -> tuple[object, ...]:
        # There is one object a format, also after pickling to another process.
        return _installed, (self.name,)

    @property
    def scales_input(self) -> bool:
        """Whether a part belongs to the input of a product."""
        return any(part.operand == "input" for part in self.parts)

    def input_format(self, activation: str) -> str:
        """Return what an input is quantised to beside a weight of this format.

        Args:
            activation: ``none``, ``mxfp4``, ``mxfp8`` or ``fp8``.

        Returns:
            ``none``, ``fp8``, or the name of a format.
        """
        return activation

    @property
    @abstractmethod
    def profiles(self) -> tuple[str, ...]:
        """Names of the profiles that make it, the default first; `resolve` takes each of them."""

    @abstractmethod
    def resolve(
        self, profile: str | None = None, *, rule: str | None = None, ties: str | None = None
    ) -> Profile:
        """Return the profile that a name, or a rule and a tie rule, stand for in this format.

        Args:
            profile: one of ``profiles``, or a pair such as ``even/even``.
            rule: a scale rule, instead of a profile; the format's own if neither is given.
            ties: a tie rule, instead of a profile; ``even`` if not given.

        Raises:
            ConfigError: unknown names, a profile together with a rule or ties, or one that makes no such format; the
                error lists those that do.
        """

    @abstractmethod
    def quantize_into(
        self,
        weight: torch.Tensor,
        parts: Parts,
        *,
        profile: str,
        nonfinite: Literal["refuse", "nan"] = "refuse",
        name: str = "weight",
        threads: int | None = None,
    ) -> None:
        """Quantise whole blocks into the parts of the weight (not of the input), which may be slices.

        Args:
            weight: bfloat16, float16 or float32 ``[..., K]``, K a multiple of ``block``.
            parts: one tensor for each part of the operand ``weight``, on the device of the weight; written.
            profile: what `resolve` takes as a profile.
            nonfinite: what to do about NaN and infinity.
            name: name of the weight in messages.
            threads: CPU threads to use; torch's number if None.
        """

    @abstractmethod
    def dequantize(self, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
        """Return the values of the weight, ``[..., Kp]``, without any part of the input."""

    def part(self, name: str) -> Part:
        """Return a part by name.

        Raises:
            FormatError: the format has no such part.
        """
        for part in self.parts:
            if part.name == name:
                return part
        raise FormatError(
            f"format {self.name} has no part {name!r}",
            seen=repr(name),
            rule=f"its parts are {', '.join(part.name for part in self.parts)}",
            fix="use one of them, or another format",
        )

    @cached_property
    def weight_parts(self) -> tuple[Part, ...]:
        """The parts of the operand ``weight``: what `quantize_into` makes."""
        return tuple(part for part in self.parts if part.operand == "weight")

    @property
    def of_weight(self) -> str:
        """Name of the format without what it has for the input: what a quantizer makes."""
        return self.name

    def physical_k(self, k: int) -> int:
        """Return K padded to whole blocks."""
        return padded(k, self.block)

    def shapes(self, shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """Return the shape of each part of a weight of the logical shape ``[..., N, K]``."""
        k = self.physical_k(shape[-1])
        return {part.name: part.shape(shape, k) for part in self.parts}

    def nbytes(self, shape: Sequence[int]) -> int:
        """Return the bytes of all parts of a weight of the logical shape ``[..., N, K]``."""
        sizes = self.shapes(shape)
        return sum(math.prod(sizes[part.name]) * part.itemsize for part in self.parts)

    def empty(
        self, shape: Sequence[int], device: torch.device | str | None = None
    ) -> dict[str, torch.Tensor]:
        """Allocate the parts of a weight of the logical shape ``[..., N, K]``; those of the input hold their fill."""
        import torch

        made = {}
        for part, size in zip(self.parts, self.shapes(shape).values(), strict=True):
            made[part.name] = torch.empty(size, dtype=part.torch_dtype, device=device)
            if part.operand == "input":
                made[part.name].fill_(part.fill)
        return made

    def raw(self, parts: Parts) -> Parts:
        """Return the parts in the dtypes of the format: views where torch has another dtype for the same bits."""
        changed = {}
        for part in self.parts:
            tensor = parts.get(part.name)
            if tensor is not None and tensor.dtype in part.others:
                changed[part.name] = part.raw(tensor)
        return {**parts, **changed} if changed else parts

    def check(self, parts: Parts, name: str = "the weight") -> None:
        """Check that the parts are there, are those of the format, and belong together.

        Raises:
            FormatError: a part is missing or too many, or has another dtype, device or shape.
        """
        first = parts.get(self.parts[0].name)
        fits = first is not None and first.ndim > 0 and len(parts) == len(self.parts)
        if first is not None and fits:
            *rows, columns = first.shape
            k = columns * self.parts[0].values
            fits = k % self.block == 0
            for part in self.parts:
                tensor = parts.get(part.name)
                fits = fits and (
                    tensor is not None
                    and tensor.dtype is part.torch_dtype
                    and tensor.device == first.device
                    and tensor.shape
                    == ((*rows, k // part.values) if part.operand == "weight" else (k // part.values,))
                )
        if not fits:
            seen = ", ".join(f"{key} {t.dtype} {tuple(t.shape)} on {t.device}" for key, t in parts.items())
            lead = {part.name: "" if part.operand == "input" else "..., " for part in self.parts}
            want = ", ".join(
                f"{part.name} {part.dtype} [{lead[part.name]}K/{part.values}]" for part in self.parts
            )
            raise FormatError(
                f"the parts of {name} do not belong together",
                seen=seen or "no parts",
                rule=f"format {self.name} has {want} on one device, K a multiple of {self.block}",
                fix="pass the parts that one quantizer wrote",
            )


def _dtype(name: str) -> torch.dtype:
    import torch

    found: torch.dtype = getattr(torch, name)
    return found


def _installed(name: str) -> object:
    return plugins(GROUP)[name].object()


__all__ = ["GROUP", "Format", "Operand", "Part", "Parts"]
