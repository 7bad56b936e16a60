"""What the formats of this package share: the parts given are checked, then the fast path of the format runs."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from mxfp4_core.arithmetic.formats.base import Format, Parts
from mxfp4_core.errors import FormatError, ShapeError

if TYPE_CHECKING:
    import torch

    from mxfp4_core.arithmetic.fast.blocks import Way


class CoreFormat(Format):
    """A format whose fast path is in ``arithmetic/fast``."""

    @cached_property
    @abstractmethod
    def way(self) -> Way:
        """The fast path."""

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
        """Quantise with the fastest path of the core; see `mxfp4_core.quantize_into`."""
        self.way.check(weight, name)
        outputs = self._outputs(weight, parts, name)
        self.way.run(weight, outputs, self.resolve(profile), nonfinite, name, threads)

    def _outputs(self, weight: torch.Tensor, parts: Parts, name: str) -> tuple[torch.Tensor, ...]:
        from mxfp4_core.arithmetic.dense import check_dense

        *rows, k = weight.shape
        found, fits = [], k % self.block == 0
        for part in self.weight_parts:
            if part.name not in parts:
                raise FormatError(
                    f"{name} cannot be quantised",
                    seen=f"no tensor for {part.name}",
                    rule=f"format {self.name} writes {', '.join(part.name for part in self.weight_parts)}",
                    fix="pass one tensor for each",
                )
            check_dense(parts[part.name], f"{part.name} of {name}")
            tensor = part.raw(parts[part.name])
            fits = fits and tensor.shape == (*rows, k // part.values)
            found.append(tensor)
        if not fits:
            raise self._misfit(weight, parts, name)
        for part, tensor in zip(self.weight_parts, found, strict=True):
            if tensor.dtype is not part.torch_dtype or tensor.device != weight.device:
                raise FormatError(
                    f"{part.name} of {name} cannot be written",
                    seen=f"{tensor.dtype} on {tensor.device}, the weight being on {weight.device}",
                    rule=f"{part.name} are {' or '.join(f'torch.{kind}' for kind in (part.dtype, *part.same))} "
                    "on the device of the weight",
                    fix=f"allocate them with dtype=torch.{part.dtype}, device=weight.device",
                )
        return tuple(found)

    def _misfit(self, weight: torch.Tensor, parts: Parts, name: str) -> ShapeError:
        wanted = self.weight_parts
        seen = ", ".join(f"{part.name} {tuple(parts[part.name].shape)}" for part in wanted)
        rule = ", ".join(f"{part.name} [..., K / {part.values}]" for part in wanted)
        return ShapeError(
            f"{name} does not fit the tensors that take its {' and '.join(part.name for part in wanted)}",
            seen=f"weight {tuple(weight.shape)}, {seen}",
            rule=f"weight [..., K] with K % {self.block} == 0, {rule}",
            fix="pad the weight to whole blocks, or pass the matching slices",
        )


__all__ = ["CoreFormat"]
