"""The real tensors that a load fills: the parts of one parameter, allocated once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch.nn.functional import pad

from mxfp4_core.arithmetic.fast.blocks import WEIGHT_DTYPES
from mxfp4_core.arithmetic.formats.base import Format, Part, Parts
from mxfp4_core.arithmetic.formats.mxfp4 import MXFP4
from mxfp4_core.arithmetic.shapes import padded
from mxfp4_core.arithmetic.tensor import MxTensor
from mxfp4_core.backend.quantizers import DeviceQuantizers
from mxfp4_core.errors import FormatError, LoadError, ShapeError
from mxfp4_core.loader.ledger import Ledger
from mxfp4_core.loader.regions import Region
from mxfp4_core.parallel.ranges import legal_parts, shard_ranges

# What is cast, moved, padded or quantised on a device at once: 8 MiB of bfloat16.
_CHUNK_ELEMS = 1 << 22


@dataclass(frozen=True)
class Arithmetic:
    """How a target turns numbers into bytes.

    Args:
        profile: name of a resolved profile.
        tail: whether K may end inside a block, which zeros then fill.
        nonfinite: what NaN and infinity get.
        threads: CPU threads for one piece; torch's number if None.
        quantizers: who quantises on which device; the core if nobody else.
    """

    profile: str
    tail: Literal["refuse", "pad"] = "refuse"
    nonfinite: Literal["refuse", "nan"] = "refuse"
    threads: int | None = None
    quantizers: DeviceQuantizers = field(default_factory=DeviceQuantizers)


class QuantTarget:
    """One parameter of a rank: where its pieces go, in which precision the engine believes to load them.

    The parts keep their identity and address for the life of the target, so a second load refreshes what CUDA graphs
    and engines already point to. Each is an attribute, too: ``target.codes``.

    Args:
        name: name of the parameter, for messages.
        shape: logical shape on this rank, ``[N, K]`` or ``[E, N, K]``, whatever the engine's own order of axes.
        dtype: precision of the parameter that the engine believes to fill; pieces are cast to it before they are
            quantised, as the engine's own copy would.
        arithmetic: rule, tail and NaN policy.
        device: where the parts live.
        format: which parts there are.
        parts: existing tensors to fill, by name of the part, in the shapes that `Format.shapes` says; allocated if
            None.
        transposed: the engine's parameter is ``[..., K, N]``.
        tp: over how many ranks K is cut, if known; only for messages.
        kind: type of the layer, for the report.
        reason: why it is quantised, for the report; empty for the default.

    Raises:
        ShapeError: not two or three axes, K ends inside a block and padding was not asked for, or parts of another
            shape.
        FormatError: a dtype that cannot be quantised, or parts that are not those of the format, on a real device.
    """

    def __init__(
        self,
        name: str,
        shape: Sequence[int],
        *,
        dtype: torch.dtype,
        arithmetic: Arithmetic,
        device: torch.device | str = "cpu",
        format: Format = MXFP4,
        parts: Parts | None = None,
        transposed: bool = False,
        tp: int | None = None,
        kind: str | None = None,
        reason: str = "",
    ) -> None:
        self.name, self.shape, self.dtype = name, torch.Size(shape), dtype
        self.arithmetic, self.transposed, self.format = arithmetic, transposed, format
        self._check()
        k = self.shape[-1]
        if arithmetic.tail == "refuse":
            shard_ranges(k * (tp or 1), tp or 1, multiple=format.block, tensor=name, dim="k")
        self.k_physical = format.physical_k(k)
        self.parts: Parts = format.empty(self.shape, device) if parts is None else self._given(parts)
        self.device = next(iter(self.parts.values())).device
        self.kind = kind or ("experts" if self.stacked else "linear")
        self.reason = reason
        self.ledger = Ledger(self.box, self.stacked)

    @property
    def stacked(self) -> bool:
        """Whether the first axis counts experts."""
        return len(self.shape) == 3

    @property
    def box(self) -> tuple[int, int, int]:
        """Experts, rows and cols; one expert for a linear layer."""
        n, k = self.shape[-2:]
        return (self.shape[0] if self.stacked else 1, n, k)

    @property
    def engine_shape(self) -> torch.Size:
        """The shape that the engine believes its parameter to have."""
        return torch.Size((*self.shape[:-2], *reversed(self.shape[-2:]))) if self.transposed else self.shape

    @property
    def physical_shape(self) -> torch.Size:
        """The logical shape with K padded to whole blocks."""
        return torch.Size((*self.shape[:-1], self.k_physical))

    @property
    def bytes_before(self) -> int:
        """Bytes of the parameter in high precision."""
        return self.shape.numel() * self.dtype.itemsize

    @property
    def bytes_after(self) -> int:
        """Bytes of all parts."""
        return self.format.nbytes(self.shape)

    def mx_tensor(self) -> MxTensor:
        """Return the loaded weight; it shares the memory of the target.

        Raises:
            LoadError: some range was never loaded, or its last load failed.
        """
        if not self.ledger.complete():
            raise LoadError(
                f"{self.name} is not complete",
                seen="; ".join(self.ledger.problems(subset=True)),
                rule="every row of every expert is loaded before the weight is used",
                fix="load the missing ranges, and call LoadSession.close before using the weights",
            )
        return MxTensor.from_parts(self.format, self.parts, self.shape, self.arithmetic.profile)

    def store(
        self, source: torch.Tensor, region: Region, *, zero_tail: bool = False, loaded_k: int = 0
    ) -> None:
        """Cast `source` to the target's dtype, quantise it and put it at `region`.

        Args:
            source: ``[experts, rows, cols]`` of the region's sizes, any float dtype, strides and device.
            region: where it goes; begins at a block, ends at a block or at the end of K.
            zero_tail: the region may end inside a block whose rest is known to be zero.
            loaded_k: k of the tensor in the checkpoint, if known; only for messages.

        Raises:
            ShapeError: the region cuts a block.
            NonFiniteError: NaN or infinity in the source, by the target's policy.
        """
        self._check_blocks(region, zero_tail, loaded_k)
        start, stop = region.cols
        first, last = region.rows
        as_it_is = (
            source.dtype == self.dtype and source.device == self.device and stop % self.format.block == 0
        )
        # Only the kernels of the CPU need no temporaries.
        whole = as_it_is and self.device.type == "cpu"
        step = last - first if whole else max(1, _CHUNK_ELEMS // (stop - start))
        for index, expert in enumerate(range(*region.experts)):
            for row in range(first, last, step):
                rows = slice(row, min(row + step, last))
                self._put(source[index, row - first : rows.stop - first], expert, rows, start)

    def _put(self, piece: torch.Tensor, expert: int, rows: slice, start: int) -> None:
        """Quantise ``piece [rows, cols]`` into one expert, its first column being k = `start`."""
        stop = start + piece.shape[1]
        # An index in an error counts from the piece, so the piece is named as the slice that it is.
        axis = f"{expert}, " if self.stacked else ""
        name = f"{self.name}[{axis}{rows.start}:{rows.stop}, {start}:{stop}]"
        piece = piece.to(self.device, self.dtype)
        if stop % self.format.block:
            piece = pad(piece, (0, -stop % self.format.block))
            stop = self.format.physical_k(stop)
        how = self.arithmetic
        how.quantizers.of(how.profile, piece.dtype, piece.device, self.format).into(
            piece,
            {part.name: self._slice(part, expert, rows, start, stop) for part in self.format.weight_parts},
            nonfinite=how.nonfinite,
            threads=how.threads,
            name=name,
        )

    def _slice(self, part: Part, expert: int, rows: slice, start: int, stop: int) -> torch.Tensor:
        """Return the view of a part that belongs to whole blocks of some rows of one expert."""
        whole = self.parts[part.name]
        return (whole[expert] if self.stacked else whole)[rows, start // part.values : stop // part.values]

    def _check_blocks(self, region: Region, zero_tail: bool, loaded_k: int) -> None:
        start, stop = region.cols
        k, block = self.shape[-1], self.format.block
        if start % block == 0 and (stop % block == 0 or stop == k or zero_tail):
            return
        width = stop - start
        near = sorted({width // block * block, padded(width, block)} - {0})
        parts, rest = divmod(loaded_k, width)
        cut = f"; the source has k = {loaded_k}, so TP size {parts} cuts it" if parts > 1 and not rest else ""
        legal = ", ".join(map(str, legal_parts(loaded_k, block))) if cut else ""
        raise ShapeError(
            f"{self.name} cannot be quantised from this shard",
            seen=f"the loader fills {region.describe(self.stacked)} of k = {k}{cut}",
            rule=f"a shard begins and ends between blocks of {block} along k, or ends where k ends",
            fix=f"use shards of k = {' or '.join(map(str, near))}{f' (TP size {legal})' if legal else ''}, "
            "or keep this weight in high precision",
        )

    def _check(self) -> None:
        if len(self.shape) not in (2, 3) or 0 in self.shape:
            raise ShapeError(
                f"{self.name} cannot be a target",
                seen=f"shape {tuple(self.shape)}",
                rule="a weight is [N, K], or [E, N, K] for stacked experts, and not empty",
                fix="keep it in high precision, or reshape the parameter",
            )
        if self.dtype not in WEIGHT_DTYPES:
            raise FormatError(
                f"{self.name} cannot be a target",
                seen=str(self.dtype),
                rule=f"the engine's parameter is one of {', '.join(map(str, WEIGHT_DTYPES))}",
                fix="pass the dtype in which the model would run without quantisation",
            )

    def _given(self, parts: Mapping[str, torch.Tensor]) -> Parts:
        shapes = self.format.shapes(self.shape)
        if parts.keys() != shapes.keys():
            raise FormatError(
                f"the parts of {self.name} do not fit",
                seen=f"parts {', '.join(parts) or 'none'}",
                rule=f"format {self.format.name} has {', '.join(shapes)}",
                fix="pass all of them, or let the target allocate them",
            )
        device = parts[self.format.parts[0].name].device
        for part in self.format.parts:
            tensor, shape = parts[part.name], shapes[part.name]
            if tuple(tensor.shape) != shape:
                raise ShapeError(
                    f"{part.name} of {self.name} do not fit",
                    seen=f"shape {tuple(tensor.shape)}",
                    rule=f"{part.name} of a weight {tuple(self.shape)} are {shape}",
                    fix="allocate them in that shape, or let the target allocate them",
                )
            if tensor.dtype != getattr(torch, part.dtype) or tensor.is_meta or tensor.device != device:
                raise FormatError(
                    f"{part.name} of {self.name} cannot be filled",
                    seen=f"{tensor.dtype} on {tensor.device}",
                    rule=f"{part.name} are {part.dtype} on a real device, all parts on the same one",
                    fix="materialise them before the load, or let the target allocate them",
                )
        return dict(parts)

    def __getattr__(self, name: str) -> torch.Tensor:
        parts: Parts = self.__dict__.get("parts", {})
        if name in parts:
            return parts[name]
        raise AttributeError(f"a QuantTarget has no attribute {name!r}; its parts are {', '.join(parts)}")


__all__ = ["Arithmetic", "QuantTarget"]
