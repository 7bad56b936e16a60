"""What a call launches, prepared once for its sizes and its variant of the kernels; all addresses come with the call.

So the layers of a model that are alike share a plan: a number of tokens that was not there before, as most prompts
bring one, costs a plan for each size of layer and not for each layer. The kernels of a MoE layer are launched so that
each may begin while the one before ends; the first of a layer may not, because its inputs come from kernels of others.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

import torch

from mxfp4_cuda_marlin.kernels import load
from mxfp4_cuda_marlin.kernels.few import TOKEN, Few
from mxfp4_cuda_marlin.kernels.launch import Given, Launch
from mxfp4_cuda_marlin.kernels.tiles import DOWN, GATE_UP, LINEAR, Tile, most_tiles
from mxfp4_cuda_marlin.launches import NO_GATE, Ends, Gate, Place, combine, decode, gather, gemm, route

_WIDE: Final = 2048  # slots from which routing takes a cluster of blocks
_X, _OUT = Given(0), Given(1)
_WEIGHT: Final = 2  # codes, scales and bias of a linear
_BOX: Final = Given(5, structure=True)
_Parts = tuple[list[Launch], tuple[Launch, Launch], list[Launch]]
"""What comes before the products with the weights, these two, and what comes after."""


class LinearPlan:
    """One linear for m tokens.

    Args:
        device: where everything is.
        m: tokens, as n features and k columns.
        n: output features.
        k: columns.
        small_scales: of the weight, see `has_small_scales`.
        variant: of the kernel for few tokens, or of the GEMM.
    """

    def __init__(
        self, device: torch.device, m: int, n: int, k: int, small_scales: bool, variant: Few | Tile
    ) -> None:
        weight = Place.at(_WEIGHT, small_scales)
        if isinstance(variant, Few):
            self._box: tuple[int, int, int] | None = None
            tiles, counts = -(-m // variant.tokens), (m, n, k, 1, 1, 0)
            self._launch = decode(
                device, variant, LINEAR, weight, (_X, _OUT), tiles, (None,) * 6, counts, NO_GATE
            )
            return
        self._box, tiles = (m, k, variant.nt), -(-m // variant.nt)
        ends = (m, n, k, tiles, *NO_GATE, _BOX)
        self._launch = gemm(device, variant, LINEAR, weight, (_X, _OUT), tiles, (None,) * 4, ends)

    def __call__(self, stream: int, x: int, out: int, weight: tuple[int, int, int]) -> None:
        """Launch.

        Args:
            stream: address of a stream of the device, which is current.
            x: address of bfloat16 [m, k], contiguous, a multiple of 16.
            out: address of bfloat16 [m, n], contiguous.
            weight: its `addresses`.
        """
        box = self._box
        self._launch(
            stream, (x, out, *weight) if box is None else (x, out, *weight, load.tensor_map(x, *box))
        )


class MoeSizes(NamedTuple):
    """Sizes of one call of a MoE layer.

    Attributes:
        m: tokens.
        top_k: experts of a token.
        experts: on this rank.
        n: intermediate size.
        k: hidden size.
        total: experts of all ranks where there is a map of them, else 0.
    """

    m: int
    top_k: int
    experts: int
    n: int
    k: int
    total: int


class MoePlan:
    """One MoE layer for m tokens.

    Args:
        device: where everything is.
        sizes: of the call.
        small_scales: of gate-up and of down, see `has_small_scales`.
        gate: of the activation.
        variants: of gate-up and down, for few tokens or of the GEMM.

    Attributes:
        bytes: of the workspace that a call needs.
        launches: in order.
        gemms: of gate-up and down, which are among them.
    """

    def __init__(
        self,
        device: torch.device,
        sizes: MoeSizes,
        small_scales: tuple[bool, bool],
        gate: Gate,
        variants: tuple[Few, Few] | tuple[Tile, Tile],
    ) -> None:
        self.bytes, self._offsets = 0, list[int]()
        gate_up, down = Place.at(_GATE_UP, small_scales[0]), Place.at(_DOWN, small_scales[1])
        up, lower = variants
        if isinstance(up, Tile) and isinstance(lower, Tile):
            parts = self._tiled(device, sizes, gate_up, down, gate, up, lower)
        elif isinstance(up, Few) and isinstance(lower, Few):
            make = self._each if up.tokens == 1 else self._grouped
            parts = make(device, sizes, gate_up, down, gate, up, lower)
        before, self.gemms, after = parts
        self.launches = [*before, *self.gemms, *after]

    def __call__(self, stream: int, given: tuple[int, ...]) -> None:
        """Launch on a stream of the device, which is current, for addresses that `given` took."""
        for launch in self.launches:
            launch(stream, given)

    def given(
        self,
        x: int,
        out: int,
        ids: int,
        weights: int,
        expert_map: int,
        gate_up: tuple[int, int, int],
        down: tuple[int, int, int],
        workspace: int,
    ) -> tuple[int, ...]:
        """Return what each launch gets.

        Args:
            x: address of bfloat16 [m, k], contiguous, a multiple of 16.
            out: address of bfloat16 [m, k], contiguous.
            ids: address of int32 [m, top_k].
            weights: address of float32 [m, top_k].
            expert_map: address of int32 [total], or 0.
            gate_up: `addresses` of the weight, as of the next one.
            down: likewise.
            workspace: address of `bytes` bytes, a multiple of 256.
        """
        rooms = [workspace + offset for offset in self._offsets]
        return (x, out, ids, weights, expert_map, *gate_up, *down, *rooms)

    def _room(self, values: int, width: int) -> Given:
        """Take room for so many values of so many bytes from the workspace."""
        self._offsets.append(self.bytes)
        self.bytes += -(-values * width // 256) * 256
        return Given(_FIRST_ROOM + len(self._offsets) - 1)

    def _each(
        self,
        device: torch.device,
        sizes: MoeSizes,
        gate_up: Place,
        down: Place,
        gate: Gate,
        up: Few,
        lower: Few,
    ) -> _Parts:
        """One token a tile: down sums over the slots of a token itself."""
        m, top_k, experts, n, k, total = sizes
        slots, routes = m * top_k, (top_k, experts, total)
        hidden = self._room(slots * n, 2)
        tables = (_IDS, _MAP, None, None, None, _WEIGHTS)
        wide, narrow = (m, 2 * n, k, *routes), (m, k, n, *routes)
        gemms = (
            decode(device, up, GATE_UP, gate_up, (_X, hidden), slots, tables, wide, gate),
            decode(device, lower, TOKEN, down, (hidden, _OUT), m, tables, narrow, NO_GATE, overlap=True),
        )
        return [], gemms, []

    def _grouped(
        self,
        device: torch.device,
        sizes: MoeSizes,
        gate_up: Place,
        down: Place,
        gate: Gate,
        up: Few,
        lower: Few,
    ) -> _Parts:
        """Slots grouped by expert, few in each."""
        m, top_k, experts, n, k, total = sizes
        slots, routes = m * top_k, (top_k, experts, total)
        tiles = most_tiles(slots, experts, up.tokens)
        hidden = self._room(slots * n, 2)
        local, rows = self._room(slots, 4), self._room(tiles * up.tokens, 4)
        owner, count, result = self._room(tiles, 4), self._room(1, 4), self._room(slots * k, 2)
        made = (_IDS, _MAP, None, local, rows, None, owner, count)
        tables = (None, None, owner, rows, count, _WEIGHTS)
        wide, narrow = (m, 2 * n, k, *routes), (m, k, n, *routes)
        first = route(device, 1, made, (slots, experts, total, up.tokens))
        gemms = (
            decode(device, up, GATE_UP, gate_up, (_X, hidden), tiles, tables, wide, gate, overlap=True),
            decode(device, lower, DOWN, down, (hidden, result), tiles, tables, narrow, NO_GATE, overlap=True),
        )
        return [first], gemms, [combine(device, result, local, _OUT, m, k, top_k)]

    def _tiled(
        self,
        device: torch.device,
        sizes: MoeSizes,
        gate_up: Place,
        down: Place,
        gate: Gate,
        up: Tile,
        lower: Tile,
    ) -> _Parts:
        """Slots grouped by expert, their rows gathered for the GEMM."""
        m, top_k, experts, n, k, total = sizes
        slots, nt = m * top_k, up.nt
        tiles = most_tiles(slots, experts, nt)
        local, rows = self._room(slots, 4), self._room(tiles * nt, 4)
        owner, count, factors = self._room(tiles, 4), self._room(1, 4), self._room(tiles * nt, 4)
        gathered, hidden = self._room(tiles * nt * k, 2), self._room(tiles * nt * n, 2)
        result = self._room(slots * k, 2)
        made = (_IDS, _MAP, _WEIGHTS, local, rows, factors, owner, count)
        tables = (owner, rows, count, factors)
        first = route(device, 8 if slots > _WIDE else 1, made, (slots, experts, total, nt))
        collect = gather(device, (_X, gathered, rows, count), tiles, k, nt, top_k)

        def product(mode: int, tile: Tile, weight: Place, ends: Ends, width: int, depth: int) -> Launch:
            rest = (m, width, depth, tiles, *gate, load.no_map())
            return gemm(device, tile, mode, weight, ends, tiles, tables, rest, overlap=True)

        gemms = (
            product(GATE_UP, up, gate_up, (gathered, hidden), 2 * n, k),
            product(DOWN, lower, down, (hidden, result), k, n),
        )
        return [first, collect], gemms, [combine(device, result, local, _OUT, m, k, top_k)]


_IDS, _WEIGHTS, _MAP = Given(2), Given(3), Given(4)
_GATE_UP, _DOWN, _FIRST_ROOM = 5, 8, 11


linear_plan = lru_cache(maxsize=8192)(LinearPlan)
"""`LinearPlan`, kept: a model asks for each again at each step."""

moe_plan = lru_cache(maxsize=2048)(MoePlan)
"""`MoePlan`, kept likewise."""

__all__ = ["LinearPlan", "MoePlan", "MoeSizes", "linear_plan", "moe_plan"]
