"""The layout of the portable kernels: the codes of a tile of K change places, scales stay.

A word has two halves, and each half four places for codes. The codes of places i = 0, 1, 2 lie as in bfloat16, 3i bits
to the right: sign at bit 15 - 3i, magnitude from bit 6 - 3i on. That of i = 3 takes what is left: sign at 14, the bits
of the magnitude at 13, 11 and 10. Which codes share a word depends on the variant:

* a tile of 256 columns: word j holds column j of each block, block i in the lower half, block i + 4 in the upper half;
* ``pairs``, a tile of 128: word j holds column 2j of each block in the lower half, column 2j + 1 in the upper half.

Codes of 8 bits (``wide``, the format ``mxfp8``) are moved whole. A word has two halves of two bytes: the lower byte of
a half is of an even block i, the upper one of block i + 1, and a tile has the words of blocks 0 and 1 before those of
2 and 3. The halves are as above: block i and i + 4, or column 2j and 2j + 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import torch
from torch import Tensor

from mxfp4_core import MxTensor
from mxfp4_core.arithmetic import BLOCK, MXFP8, Alignment
from mxfp4_core.errors import ShapeError
from mxfp4_petit.portable.sizes import EXTREME, folded_bytes, layout_id, tile_of

_BLOCKS: Final = 8  # in a word, and in a tile of 256
_HALF: Final = _BLOCKS // 2
_NAN: Final = 0x7F  # magnitude of a code of E4M3
_PIECE: Final = (
    1 << 22
)  # bytes of codes that are moved at a time; moving takes forty times as many beside them


class PortableLayout:
    """Tiles of 256 or of 128 columns.

    ``codes`` is int32 [(experts,) n, k/8], or k/4 if ``wide``; ``scales`` is int32 [(experts,) n, k/128], the canonical
    bytes. These are called ``extreme_scales`` where one is not within `folded_bytes` (but lower ones in blocks of
    zeros) or a code is NaN, so that a call knows by the name that they cannot be multiplied into operands, which takes
    longer.

    Args:
        pairs: the variant for NVIDIA's devices.
        wide: for ``mxfp8`` instead of ``mxfp4``.
    """

    def __init__(self, pairs: bool = False, wide: bool = False) -> None:
        self.pairs, self.wide = pairs, wide
        self.id = layout_id(pairs, wide)
        self.alignment = Alignment(n=1, k=tile_of(pairs))

    def pack(self, weight: MxTensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        """Move the nibbles; see ``Layout.pack``. Takes every scale byte."""
        self._check(weight)
        name, codes = self._scales_name(weight), weight.codes.contiguous().view(torch.uint8)
        moved = torch.empty_like(codes)
        for target, source in zip(_pieces(moved), _pieces(codes), strict=True):
            target.copy_(self._moved(source))
        return self._named(moved, name, weight, bias)

    def pack_in_place(self, weight: MxTensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        """Move the nibbles in their own memory; see ``InPlaceLayout.pack_in_place``."""
        if not weight.codes.is_contiguous():
            return self.pack(weight, bias)
        self._check(weight)
        name, codes = self._scales_name(weight), weight.codes.view(torch.uint8)
        for piece in _pieces(codes):
            piece.copy_(self._moved(piece))
        return self._named(codes, name, weight, bias)

    def unpack(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> MxTensor:
        """Undo ``pack``; see ``Layout.unpack``."""
        words = tensors["codes"].contiguous().view(torch.uint8)
        codes = torch.empty_like(words)
        for target, source in zip(_pieces(codes), _pieces(words), strict=True):
            target.copy_(self._moved_back(source))
        scales = tensors["scales"] if "scales" in tensors else tensors[EXTREME]
        scales = scales.contiguous().view(torch.uint8)
        if self.wide:
            parts = {"codes": codes.view(torch.float8_e4m3fn), "scales": scales}
            return MxTensor.from_parts(MXFP8, parts, torch.Size(shape))
        return MxTensor(codes, scales, torch.Size(shape))

    def _moved(self, codes: Tensor) -> Tensor:
        return _bytes_moved(codes, self.pairs) if self.wide else _nibbles_moved(codes, self.pairs)

    def _moved_back(self, words: Tensor) -> Tensor:
        return _bytes_moved_back(words, self.pairs) if self.wide else _nibbles_moved_back(words, self.pairs)

    def _scales_name(self, weight: MxTensor) -> str:
        """Say by a name whether the scales can be multiplied into numbers of bfloat16; one look at load time."""
        least, most = folded_bytes(self.wide)
        scales, codes = weight.scales, weight.codes.view(torch.uint8)
        if int(scales.max()) > most:
            return EXTREME
        if self.wide and any(bool(((piece & _NAN) == _NAN).any()) for piece in _pieces(codes)):
            return EXTREME
        if int(scales.min()) >= least:
            return "scales"
        low = codes.unflatten(-1, (-1, BLOCK if self.wide else BLOCK // 2))[scales < least]
        return EXTREME if bool((low & (_NAN if self.wide else 0x77)).any()) else "scales"

    def _check(self, weight: MxTensor) -> None:
        if weight.shape[-1] % tile_of(self.pairs):
            raise ShapeError(
                f"packing for {self.id}",
                seen=f"k = {weight.shape[-1]}",
                rule=f"k is a multiple of {tile_of(self.pairs)}, the columns of a tile",
                fix="let mxfp4_core.backend.calls.pack pad the weight",
            )

    @staticmethod
    def _named(moved: Tensor, name: str, weight: MxTensor, bias: Tensor | None) -> dict[str, Tensor]:
        packed = {"codes": _as_words(moved), name: _as_words(weight.scales)}
        return packed if bias is None else packed | {"bias": bias}


def _as_words(tensor: Tensor) -> Tensor:
    """View bytes as int32, four scales or eight codes at a time; only a slice at an odd address is copied."""
    whole = tensor.contiguous()
    return (whole.clone() if whole.storage_offset() % 4 else whole).view(torch.int32)


def _pieces(codes: Tensor) -> Iterator[Tensor]:
    """Cut bytes of codes into runs of rows."""
    rows = codes.reshape(-1, codes.shape[-1])
    yield from rows.split(max(1, _PIECE // rows.shape[-1]))


def _nibbles_moved(codes: Tensor, pairs: bool) -> Tensor:
    """Return bytes [rows, k/2] in the order of the layout."""
    each = torch.stack((codes & 0x0F, codes >> 4), dim=-1).flatten(-2).to(torch.int32)  # [rows, k]
    if pairs:  # [rows, tiles, blocks, words, halves] to [rows, halves, blocks, words]
        places = each.view(len(each), -1, _HALF, BLOCK // 2, 2).permute(0, 4, 2, 1, 3)
    else:  # [rows, tiles, halves, blocks, words]
        places = each.view(len(each), -1, 2, _HALF, BLOCK).permute(0, 2, 3, 1, 4)
    sign, magnitude = places >> 3, places & 7
    words = torch.zeros_like(places[:, 0, 0])
    for half in range(2):
        for i in range(_HALF):
            s, v = sign[:, half, i], magnitude[:, half, i]
            if i < _HALF - 1:
                words |= (s << (15 - 3 * i) | v << (6 - 3 * i)) << 16 * half
            else:
                words |= (s << 14 | v >> 2 << 13 | (v & 3) << 10) << 16 * half
    return words.contiguous().view(torch.uint8).view(codes.shape)


def _nibbles_moved_back(words: Tensor, pairs: bool) -> Tensor:
    whole = words.view(torch.int32).view(
        len(words), -1, BLOCK // 2 if pairs else BLOCK
    )  # [rows, tiles, words]
    shape = (len(words), 2, _HALF, *whole.shape[1:])
    places = torch.empty(shape, dtype=torch.uint8, device=words.device)
    for half in range(2):
        part = whole >> 16 * half
        for i in range(_HALF):
            if i < _HALF - 1:
                places[:, half, i] = part >> (12 - 3 * i) & 8 | part >> (6 - 3 * i) & 7
            else:
                places[:, half, i] = part >> 11 & 8 | part >> 11 & 4 | part >> 10 & 3
    each = places.permute(0, 3, 2, 4, 1) if pairs else places.permute(0, 3, 1, 2, 4)
    each = each.reshape(len(words), -1)
    return (each[:, 0::2] | each[:, 1::2] << 4).view(words.shape)


def _bytes_moved(codes: Tensor, pairs: bool) -> Tensor:
    """Return bytes [rows, k] in the order of the layout."""
    if pairs:  # [rows, tiles, words of two blocks, block, word, half] to [.., word, half, block]
        return codes.view(len(codes), -1, 2, 2, BLOCK // 2, 2).permute(0, 1, 2, 4, 5, 3).reshape(codes.shape)
    # [rows, tiles, half, words of two blocks, block, word] to [.., words of two blocks, word, half, block]
    return codes.view(len(codes), -1, 2, 2, 2, BLOCK).permute(0, 1, 3, 5, 2, 4).reshape(codes.shape)


def _bytes_moved_back(words: Tensor, pairs: bool) -> Tensor:
    if pairs:
        return words.view(len(words), -1, 2, BLOCK // 2, 2, 2).permute(0, 1, 2, 5, 3, 4).reshape(words.shape)
    return words.view(len(words), -1, 2, BLOCK, 2, 2).permute(0, 1, 4, 2, 5, 3).reshape(words.shape)


__all__ = ["PortableLayout"]
