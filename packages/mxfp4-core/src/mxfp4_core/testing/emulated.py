"""A device that does not exist: awkward tiles, shuffled bytes, many layouts. It proves the core without hardware.

Its tiles are 48 rows by 96 columns, so that neither 32 nor 64 nor 2880 fits by luck. Inside a tile the bytes go column
by column, the eight codes of four bytes change places as they do in Marlin's layout, and scales have a tile of their
own with a column of padding that must be filled. Weights of at least 192 rows get a wider tile, and experts swap their
gate and up halves. The outer scales of ``mxfp4-dual`` lie group by group, tile rows side by side, in a fourth place; a
multiplier of the input is one vector, reversed. Calls undo all of it and compute in float32: right, slow, and only for
tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mxfp4_core.arithmetic import BLOCK, E8M0_NAN, Alignment, MxTensor
from mxfp4_core.arithmetic.formats.registry import get as get_format
from mxfp4_core.backend import (
    Backend,
    Layout,
    Matrix,
    No,
    Numerics,
    Packed,
    Problem,
    Routes,
    Verdict,
    Yes,
    check_choice,
    check_keys,
    input_format,
)
from mxfp4_core.backend.problem import PLAIN
from mxfp4_core.backend.reference import ops as reference_ops
from mxfp4_core.errors import BackendError, FormatError, ShapeError

_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # where the eight codes of four bytes go
_COLUMNS = 96
_FILL = 0x7F  # of the scale padding: uninitialised bytes could be 255, which is NaN


@dataclass(frozen=True)
class TileLayout:
    """Tiles of ``rows`` by 96 columns.

    Attributes:
        rows: rows of a tile.
        halves: the weight is gate rows and then up rows, and the device wants up first.
        format: ``mxfp4``, or one with outer scales or a multiplier of the input beside the codes and scales.
    """

    rows: int = 48
    halves: bool = False
    format: str = PLAIN

    @property
    def id(self) -> str:
        """Name of the variant."""
        kind = "" if self.format == PLAIN else f"-{self.format}"
        return f"emulated-{self.rows}x{_COLUMNS}{'-up-gate' if self.halves else ''}{kind}"

    @property
    def alignment(self) -> Alignment:
        """One tile."""
        return Alignment(n=self.rows, k=_COLUMNS)

    def pack(self, weight: MxTensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        """Shuffle; see ``Layout.pack``."""
        *lead, n, k = weight.shape
        if n % (self.rows * (2 if self.halves else 1)) or k % _COLUMNS:
            raise ShapeError(
                f"packing for {self.id}",
                seen=f"n = {n}, k = {k}",
                rule=f"n is a multiple of {self.rows}{' in each half' if self.halves else ''}, k of {_COLUMNS}",
                fix="let mxfp4_core.backend.calls.pack pad the weight",
            )
        if bool((weight.scales == E8M0_NAN).any()):
            raise FormatError(
                f"packing for {self.id}",
                seen="scale byte 255",
                rule="the device has no NaN scale",
                fix="quantise again with nonfinite='refuse' to find the weight that is not finite",
            )
        codes, scales = self._swap(weight.codes), self._swap(weight.scales)
        tiles = codes.view(*lead, n // self.rows, self.rows, k // _COLUMNS, _COLUMNS // 2)
        scale_tiles = scales.view(*lead, n // self.rows, self.rows, k // _COLUMNS, _COLUMNS // BLOCK)
        padded = scale_tiles.new_full((*lead, n // self.rows, k // _COLUMNS, 4, self.rows), _FILL)
        padded[..., :3, :] = scale_tiles.movedim(-3, -1)
        packed = {"blob": _reorder(tiles.movedim(-3, -1).contiguous(), _ORDER), "scale_blob": padded}
        if "level0" in weight.parts:
            outer = self._swap(weight.parts["level0"]).unflatten(-2, (n // self.rows, self.rows))
            packed["outer"] = outer.movedim(-1, -3).contiguous()
        if "input_scale" in weight.parts:
            packed["multiplier"] = weight.parts["input_scale"].flip(0)
        if bias is not None:
            packed["bias"] = self._swap(bias[..., None])[..., 0].contiguous()
        return packed

    def unpack(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> MxTensor:
        """Undo ``pack``; see ``Layout.unpack``."""
        return MxTensor.from_parts(get_format(self.format), self.parts(tensors, shape), torch.Size(shape))

    def parts(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Return the canonical parts, in the order of the format."""
        *lead, n, k = shape
        back = tuple(_ORDER.index(place) for place in range(8))
        tiles = _reorder(tensors["blob"], back).movedim(-1, -3)
        scales = tensors["scale_blob"][..., :3, :].movedim(-1, -3)
        parts = {
            "codes": self._swap(tiles.reshape(*lead, n, k // 2)),
            "scales": self._swap(scales.reshape(*lead, n, k // BLOCK)),
        }
        if "outer" in tensors:
            outer = tensors["outer"].movedim(-3, -1)
            parts["level0"] = self._swap(outer.reshape(*lead, n, outer.shape[-1]))
        if "multiplier" in tensors:
            parts["input_scale"] = tensors["multiplier"].flip(0)
        return parts

    def bias(self, tensors: Mapping[str, Tensor]) -> Tensor | None:
        """Return the bias in canonical order."""
        return self._swap(tensors["bias"][..., None])[..., 0] if "bias" in tensors else None

    def _swap(self, tensor: Tensor) -> Tensor:
        return torch.cat(tensor.chunk(2, dim=-2)[::-1], dim=-2) if self.halves else tensor


def _reorder(tiles: Tensor, order: tuple[int, ...]) -> Tensor:
    """Move the codes of every four consecutive bytes of the columns (axis -2) to the places of ``order``."""
    low, high = tiles & 0x0F, tiles >> 4
    codes = torch.stack([low, high], dim=-2).flatten(-3, -2).unflatten(-2, (-1, 8))
    codes = codes[..., list(order), :].flatten(-3, -2).unflatten(-2, (-1, 2))
    return codes[..., 0, :] | (codes[..., 1, :] << 4)


class EmulatedBackend(Backend):
    """The emulated device, on any torch device that the tensors are on.

    It has one option, ``tile``: ``auto`` (by the number of rows) or ``narrow`` (always 48 rows).

    Args:
        quantises: whether it multiplies quantised activations only, as a kernel does that knows no others.
    """

    name = "emulated"
    description = "a device that does not exist, for tests of the core"
    features = frozenset(
        {
            *("linear", "moe", "bias", "expert-map", "gate:silu", "gate:clamped", "rows:interleaved"),
            *("gate:gelu", "gate:gelu_tanh", "gate:relu", "gate:relu2", "gate:none"),
            *("dtype:bfloat16", "dtype:float32", "activation:mxfp4", "format:mxfp4-dual", "input-scale"),
            *("moe:shared-experts", "moe:tokens:masked"),
        }
    )
    numerics = Numerics(
        emulated=True, scale_byte_255="refused", activation_profile="floor/even", hidden="input"
    )
    automatic_on: frozenset[str] = frozenset()

    def __init__(self, *, quantises: bool = False) -> None:
        self.quantises = quantises

    def supports(self, problem: Problem) -> Verdict:
        """Refuse a single column tile of many experts, so that a refusal by shape is tested too."""
        if self.quantises and problem.activation == "none":
            return No("activations in high precision: the device multiplies FP4", "ask for activation='auto'")
        if problem.experts > 4096:
            return No(f"{problem.experts} experts, at most 4096", "use expert parallelism")
        numerics = self.numerics
        if problem.activation == "auto":
            numerics = replace(numerics, activation="mxfp4")
        if self._inputs(problem)[0] == "mxfp4-dual":
            numerics = replace(numerics, activation_profile="ascend")
        tile = self._tile(problem, "down" if problem.op == "moe" else "weight")
        return Yes("undoes its layout", 4 * problem.n * problem.k, numerics, layout=tile.id)

    def check_options(self, options: Mapping[str, object]) -> None:
        """Take ``tile``; see ``Backend.check_options``."""
        check_keys(self.name, options, ("tile",))
        check_choice(self.name, options, "tile", ("auto", "narrow"))

    def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
        """Choose the tile by the number of rows."""
        return self._tile(problem, matrix)

    def _tile(self, problem: Problem, matrix: Matrix) -> TileLayout:
        rows = problem.k if matrix == "down" else problem.n
        wide = rows >= 192 and problem.options.get("tile") != "narrow"
        halves = matrix == "gate_up" and problem.gate.halves
        return TileLayout(64 if wide else 48, halves, problem.format)

    def _canonical(
        self, packed: Packed, problem: Problem, matrix: Matrix
    ) -> tuple[list[Tensor], Tensor | None]:
        layout = self._tile(problem, matrix)
        if packed.layout != layout.id:
            raise BackendError(
                "a call of the emulated device",
                seen=f"a weight in the layout {packed.layout!r}",
                rule=f"{problem} uses {layout.id!r}",
                fix="pack the weight for this problem",
            )
        parts = layout.parts(packed.tensors, packed.shape)
        return list(parts.values()), layout.bias(packed.tensors)

    def _inputs(self, problem: Problem) -> tuple[str, str, str]:
        """Return what inputs are quantised to, by which profile, and what they are rounded to before."""
        kind = input_format(problem.format, "mxfp4" if problem.activation == "auto" else problem.activation)
        profiles = {"none": "", "mxfp4": self.numerics.activation_profile, "mxfp4-dual": "ascend"}
        return kind, profiles.get(kind, ""), self.numerics.hidden

    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        """Undo the layout and compute; see ``Backend.linear``."""
        self._aligned(x, weight)
        canonical = self._canonical(weight, problem, "weight")
        return reference_ops.linear(x, *canonical, problem.format, *self._inputs(problem))

    def moe(self, x: Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem) -> Tensor:
        """Undo the layouts and compute; see ``Backend.moe``."""
        self._aligned(x, gate_up)
        return reference_ops.moe(
            x,
            *self._canonical(gate_up, problem, "gate_up"),
            *(*self._canonical(down, problem, "down"), problem.format),
            *(*routes, problem.shared_experts),
            *(*problem.gate.arguments, *self._inputs(problem)),
        )

    def direct_linear(self, weight: Packed, problem: Problem) -> Callable[[Tensor], Tensor]:
        """Return ``linear`` for x of any leading axes; see ``Backend.direct_linear``."""
        rows = weight.shape[0]
        return lambda x: self.linear(x.view(-1, x.shape[-1]), weight, problem).view(*x.shape[:-1], rows)

    def direct_moe(
        self, gate_up: Packed, down: Packed, problem: Problem
    ) -> Callable[[Tensor, Routes], Tensor]:
        """Return ``moe``; see ``Backend.direct_moe``."""
        return lambda x, routes: self.moe(x, gate_up, down, routes, problem)

    def _aligned(self, x: Tensor, weight: Packed) -> None:
        if x.dim() not in (2, 3) or 0 in x.shape or x.shape[-1] != weight.shape[-1] or not x.is_contiguous():
            raise BackendError(
                "a call of the emulated device",
                seen=f"x of shape {tuple(x.shape)}, contiguous: {x.is_contiguous()}",
                rule=f"the core gives a backend contiguous rows of the physical k = {weight.shape[-1]}, at least one",
                fix="this is a defect of the core",
            )


backend = EmulatedBackend()
