"""The layout of our own SM90 kernels: tiles of 64 rows by 64 columns, in the order in which threads read them.

One tile is 2048 bytes of codes: 128 threads with 16 bytes each. The four 32-bit words of a thread are its register
fragments of ``wgmma`` for four steps of 16 columns: rows ``16 * warp + lane / 4`` and 8 further, columns
``2 * (lane % 4)`` and 8 further. Inside a word the bits of eight codes are spread so that a mask and a shift give two
bfloat16 numbers (``_PLACES``). The 64 x 2 scales of a tile follow the same order of threads. Tiles of one strip of 64
rows lie one after the other along k, so that a kernel copies whole stages.

Gate and up rows of an expert alternate in groups of eight, which puts both values of a feature into one thread; the
gated activation then needs no memory.

Two forms of scales exist, told apart by their shape, which copies keep: ``[..., 128]`` where every byte is at most 128
(all real weights), and ``[..., 64, 2]`` where one is larger, for which the kernel multiplies twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from mxfp4_core.arithmetic import BLOCK, Alignment, MxTensor
from mxfp4_core.errors import FormatError, ShapeError
from mxfp4_cuda_marlin import packing
from mxfp4_cuda_marlin.limits import LARGE_MAX, SMALL_MAX, TILE, Rows, layout_id

# Where the sign, the two exponent bits and the mantissa bit of each pair of codes stand in a word, first of the even
# code, then of the odd one. A bfloat16 wants them at 15, 8, 7 and 6 of its half: the places are those from which five
# masks and four shifts bring all eight there (``widen`` in the kernels); no other places need fewer than these nine.
_PLACES = (
    ((15, 8, 7, 6), (31, 24, 23, 22)),
    ((11, 4, 3, 2), (27, 20, 19, 18)),
    ((21, 14, 13, 12), (5, 30, 29, 28)),
    ((9, 10, 1, 0), (25, 26, 17, 16)),
)
_OnGpu = Callable[[Tensor, Tensor, Tensor, str], tuple[Tensor, Tensor]]
_STEP = 1 << 24  # codes handled at a time: bounds the temporaries of packing to some 200 MB


@cache
def _table(device: torch.device) -> Tensor:
    """Return int32 [4, 256]: what each canonical byte (two codes) adds to a word, by pair."""
    byte = torch.arange(256)
    rows = []
    for pair in _PLACES:
        word = torch.zeros(256, dtype=torch.int64)
        for half, places in enumerate(pair):
            for bit, place in zip((3, 2, 1, 0), places, strict=True):
                word |= ((byte >> (4 * half + bit)) & 1) << place
        rows.append(word)
    table = torch.stack(rows)
    return torch.where(table >= 1 << 31, table - (1 << 32), table).to(device, torch.int32)


def _pack_codes(codes: Tensor) -> Tensor:
    """uint8 [n, k/2] to uint8 [n/64, k/64, 2048]."""
    n, k = codes.shape[0], codes.shape[1] * 2
    # strip, warp, h, row, tile, step, g, column pair
    split = codes.view(n // TILE, 4, 2, 8, k // TILE, 4, 2, 4).permute(0, 4, 1, 3, 7, 5, 6, 2)
    table = _table(codes.device)
    word = torch.zeros(split.shape[:-2], dtype=torch.int32, device=codes.device)
    for pair in range(4):
        word |= table[pair][split[..., pair // 2, pair % 2].int()]
    return word.view(torch.uint8).reshape(n // TILE, k // TILE, 2048)


def _unpack_codes(tiles: Tensor) -> Tensor:
    """uint8 [strips, tiles, 2048] to uint8 [64 strips, 32 tiles]."""
    strips, across = tiles.shape[:2]
    word = tiles.contiguous().view(torch.int32).view(strips, across, 4, 8, 4, 4)
    split = torch.zeros((*word.shape, 2, 2), dtype=torch.uint8, device=tiles.device)
    for pair, both in enumerate(_PLACES):
        for half, places in enumerate(both):
            for bit, place in zip((3, 2, 1, 0), places, strict=True):
                one = ((word >> place) & 1) << (4 * half + bit)
                split[..., pair // 2, pair % 2] |= one.to(torch.uint8)
    # strip, tile, warp, row, column pair, step, g, h
    return split.permute(0, 2, 7, 3, 1, 5, 6, 4).reshape(strips * TILE, across * TILE // 2)


def _pack_scales(scales: Tensor) -> Tensor:
    """uint8 [..., n, k/32] to uint8 [..., n/64, k/64, 128]."""
    *lead, n, blocks = scales.shape
    split = scales.reshape(*lead, n // TILE, 4, 2, 8, blocks // 2, 2)  # strip, warp, h, row, tile, block
    dims = [*range(len(lead)), *(len(lead) + i for i in (0, 4, 1, 3, 2, 5))]
    return split.permute(dims).reshape(*lead, n // TILE, blocks // 2, 128)


def _unpack_scales(tiles: Tensor) -> Tensor:
    """uint8 [..., strips, tiles, 128] to uint8 [..., 64 strips, 2 tiles]."""
    *lead, strips, across, _ = tiles.shape
    split = tiles.reshape(*lead, strips, across, 4, 8, 2, 2)  # strip, tile, warp, row, h, block
    dims = [*range(len(lead)), *(len(lead) + i for i in (0, 2, 4, 3, 1, 5))]
    return split.permute(dims).reshape(*lead, strips * TILE, across * 2)


def row_order(rows: Rows, n: int, device: torch.device) -> Tensor | None:
    """Return int64 [n]: which canonical row stands at each packed row; None for the same order.

    Args:
        rows: ``gate-up`` for all gate rows and then all up rows, ``gate-up-interleaved`` for gate 0, up 0, gate 1, …
        n: number of rows, a multiple of 64.
        device: of the result.
    """
    if rows == "plain":
        return None
    place = torch.arange(n, device=device)
    feature = place // 16 * 8 + place % 8
    up = place % 16 // 8
    return 2 * feature + up if rows == "gate-up-interleaved" else feature + up * (n // 2)


@dataclass(frozen=True)
class Sm90Layout:
    """The layout of one weight for the SM90 kernels.

    Attributes:
        rows: what the rows are; gate and up rows change places.
    """

    rows: Rows = "plain"

    @property
    def id(self) -> str:
        """Return the name of the layout and its variant."""
        return layout_id(self.rows)

    @property
    def alignment(self) -> Alignment:
        """Return one tile; 32 gate rows and 32 up rows make one."""
        return Alignment(n=TILE if self.rows == "plain" else TILE // 2, k=TILE)

    def pack(self, weight: MxTensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        """Return ``codes`` uint8 [..., n/64, k/64, 2048], ``scales`` (see the module) and ``bias`` bfloat16 [..., n].

        Args:
            weight: canonical [(experts,) n, k].
            bias: [(experts,) n] or None; rounded to bfloat16, the dtype in which it is added.

        Raises:
            ShapeError: n or k is no multiple of 64.
            FormatError: a scale byte above 252 that is not 255.
        """
        return self._packed(weight, bias, packing.pack)

    def pack_in_place(self, weight: MxTensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        """Return what ``pack`` does; on a GPU with Triton in the memory of ``weight``, which is overwritten.

        Raises:
            ShapeError, FormatError: as ``pack``, before anything is written.
        """
        return self._packed(weight, bias, packing.pack_over)

    def _packed(self, weight: MxTensor, bias: Tensor | None, on_gpu: _OnGpu) -> dict[str, Tensor]:
        self._check(weight.shape)
        *lead, n, k = weight.shape
        large = self._is_large(weight.scales)
        codes, scales = weight.codes.reshape(-1, n, k // 2), weight.scales.reshape(-1, n, k // BLOCK)
        if packing.usable(codes):
            table = _table(codes.device)
            out, tiles = on_gpu(codes.contiguous(), scales.contiguous(), table, self.rows)
        else:
            order = row_order(self.rows, n, codes.device)
            out = self._pack_all(codes, order)
            tiles = _pack_scales(scales if order is None else scales[..., order, :])
        tiles = tiles.view(*lead, *tiles.shape[1:])
        packed = {
            "codes": out.view(*lead, *out.shape[1:]),
            "scales": tiles.unflatten(-1, (64, 2)) if large else tiles,
        }
        if bias is None:
            return packed
        order = row_order(self.rows, n, bias.device)
        moved = bias.to(torch.bfloat16) if order is None else bias.to(torch.bfloat16)[..., order]
        return packed | {"bias": moved.contiguous()}

    def _pack_all(self, codes: Tensor, order: Tensor | None) -> Tensor:
        _, n, half = codes.shape
        out = codes.new_empty((codes.shape[0], n // TILE, half * 2 // TILE, 2048))
        step = max(1, _STEP // (2 * half * TILE)) * TILE
        for expert in range(codes.shape[0]):
            for start in range(0, n, step):
                part = slice(start, start + step)
                some = codes[expert, part] if order is None else codes[expert, order[part]]
                out[expert, start // TILE : (start + step) // TILE] = _pack_codes(some.contiguous())
        return out

    def _check(self, shape: tuple[int, ...]) -> None:
        n, k = shape[-2:]
        if n % TILE or k % TILE:
            raise ShapeError(
                f"packing for {self.id}",
                seen=f"n = {n}, k = {k}",
                rule=f"n and k are multiples of {TILE}"
                + ("" if self.rows == "plain" else ", n counting gate and up rows"),
                fix="let mxfp4_core.backend.calls.pack pad the weight, which is exact",
            )

    def _is_large(self, scales: Tensor) -> bool:
        if not scales.numel():
            return False
        highest = int(scales.max())
        if highest == 255:
            highest = int(torch.where(scales == 255, 0, scales).max())
            large = True
        else:
            large = highest > SMALL_MAX
        if highest > LARGE_MAX:
            raise FormatError(
                f"packing for {self.id}",
                seen=f"scale byte {highest}",
                rule=f"scale bytes are at most {LARGE_MAX}, or 255 for NaN: the kernels widen weights to bfloat16, "
                f"which ends below 6 * 2^({LARGE_MAX + 1} - 127)",
                fix="keep this weight in high precision; a weight of 2^127 is hardly meant",
            )
        return large

    def unpack(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> MxTensor:
        """Give back the canonical bytes of ``shape`` [(experts,) n, k]; the inverse of ``pack``.

        Raises:
            FormatError: the tensors do not have the shapes that ``pack`` gives for ``shape``.
        """
        *lead, n, k = shape
        tiles = (*lead, n // TILE, k // TILE)
        codes, scales = tensors["codes"], tensors["scales"]
        if codes.shape != (*tiles, 2048) or scales.shape not in ((*tiles, 128), (*tiles, 64, 2)):
            raise FormatError(
                f"unpacking {self.id}",
                seen=f"codes {tuple(codes.shape)}, scales {tuple(scales.shape)}",
                rule=f"a weight of {tuple(shape)} has codes {(*tiles, 2048)} and scales {(*tiles, 128)} or "
                f"{(*tiles, 64, 2)}",
                fix="give the physical shape that was packed",
            )
        order = row_order(self.rows, n, codes.device)
        flat = codes.reshape(-1, n // TILE, k // TILE, 2048)
        out = codes.new_empty((flat.shape[0], n, k // 2))
        step = max(1, _STEP // (4 * k * TILE)) * TILE
        for expert in range(flat.shape[0]):
            for start in range(0, n, step):
                rows = _unpack_codes(flat[expert, start // TILE : (start + step) // TILE])
                index = slice(start, start + step) if order is None else order[start : start + step]
                out[expert, index] = rows
        plain = _unpack_scales(scales.reshape(*tiles, 128))
        if order is not None:
            moved = torch.empty_like(plain)
            moved[..., order, :] = plain
            plain = moved
        return MxTensor(out.view(*lead, n, k // 2), plain.reshape(*lead, n, k // BLOCK), torch.Size(shape))


__all__ = ["LARGE_MAX", "SMALL_MAX", "TILE", "Rows", "Sm90Layout", "row_order"]
