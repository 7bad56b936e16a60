"""The real tensors that a load fills: codes and scales of one parameter, allocated once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch.nn.functional import pad

from mxfp4_core.arithmetic.fast.blocks import WEIGHT_DTYPES
from mxfp4_core.arithmetic.format import BLOCK
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

    ``codes`` and ``scales`` keep their identity and address for the life of the target, so a second load refreshes
    what CUDA graphs and engines already point to.

    Args:
        name: name of the parameter, for messages.
        shape: logical shape on this rank, ``[N, K]`` or ``[E, N, K]``, whatever the engine's own order of axes.
        dtype: precision of the parameter that the engine believes to fill; pieces are cast to it before they are
            quantised, as the engine's own copy would.
        arithmetic: rule, tail and NaN policy.
        device: where codes and scales live.
        codes: existing uint8 ``[..., N, Kp / 2]`` to fill, Kp being K padded to whole blocks; allocated if None.
        scales: existing uint8 ``[..., N, Kp / 32]``; allocated if None.
        transposed: the engine's parameter is ``[..., K, N]``.
        tp: over how many ranks K is cut, if known; only for messages.
        kind: type of the layer, for the report.
        reason: why it is quantised, for the report; empty for the default.

    Raises:
        ShapeError: not two or three axes, K ends inside a block and padding was not asked for, or codes and scales
            of another shape.
        FormatError: a dtype that cannot be quantised, or codes and scales that are no uint8 on the device.
    """

    def __init__(
        self,
        name: str,
        shape: Sequence[int],
        *,
        dtype: torch.dtype,
        arithmetic: Arithmetic,
        device: torch.device | str = "cpu",
        codes: torch.Tensor | None = None,
        scales: torch.Tensor | None = None,
        transposed: bool = False,
        tp: int | None = None,
        kind: str | None = None,
        reason: str = "",
    ) -> None:
        self.name, self.shape, self.dtype = name, torch.Size(shape), dtype
        self.arithmetic, self.transposed = arithmetic, transposed
        self._check()
        k = self.shape[-1]
        if arithmetic.tail == "refuse":
            shard_ranges(k * (tp or 1), tp or 1, multiple=BLOCK, tensor=name, dim="k")
        self.k_physical = padded(k, BLOCK)
        self.codes = self._storage("codes", codes, self.k_physical // 2, device)
        self.scales = self._storage("scales", scales, self.k_physical // BLOCK, self.codes.device)
        self.device = self.codes.device
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
        """Bytes of codes and scales."""
        return self.codes.nbytes + self.scales.nbytes

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
        return MxTensor(self.codes, self.scales, self.shape, self.arithmetic.profile)

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
        as_it_is = source.dtype == self.dtype and source.device == self.device and stop % BLOCK == 0
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
        if stop % BLOCK:
            piece = pad(piece, (0, -stop % BLOCK))
            stop = padded(stop, BLOCK)
        at = (expert, rows) if self.stacked else (rows,)
        how = self.arithmetic
        how.quantizers.of(how.profile, piece.dtype, piece.device).into(
            piece,
            self.codes[at][:, start // 2 : stop // 2],
            self.scales[at][:, start // BLOCK : stop // BLOCK],
            nonfinite=how.nonfinite,
            threads=how.threads,
            name=name,
        )

    def _check_blocks(self, region: Region, zero_tail: bool, loaded_k: int) -> None:
        start, stop = region.cols
        k = self.shape[-1]
        if start % BLOCK == 0 and (stop % BLOCK == 0 or stop == k or zero_tail):
            return
        width = stop - start
        near = sorted({width // BLOCK * BLOCK, padded(width, BLOCK)} - {0})
        parts, rest = divmod(loaded_k, width)
        cut = f"; the source has k = {loaded_k}, so TP size {parts} cuts it" if parts > 1 and not rest else ""
        legal = ", ".join(map(str, legal_parts(loaded_k, BLOCK))) if cut else ""
        raise ShapeError(
            f"{self.name} cannot be quantised from this shard",
            seen=f"the loader fills {region.describe(self.stacked)} of k = {k}{cut}",
            rule=f"a shard begins and ends between blocks of {BLOCK} along k, or ends where k ends",
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

    def _storage(
        self, role: str, given: torch.Tensor | None, width: int, device: torch.device | str
    ) -> torch.Tensor:
        shape = (*self.shape[:-1], width)
        if given is None:
            return torch.empty(shape, dtype=torch.uint8, device=device)
        if given.shape != shape:
            raise ShapeError(
                f"{role} of {self.name} do not fit",
                seen=f"shape {tuple(given.shape)}",
                rule=f"{role} of a weight {tuple(self.shape)} are {shape}",
                fix="allocate them in that shape, or let the target allocate them",
            )
        if given.dtype != torch.uint8 or given.is_meta:
            raise FormatError(
                f"{role} of {self.name} cannot be filled",
                seen=f"{given.dtype} on {given.device}",
                rule="codes and scales are torch.uint8 on a real device",
                fix="materialise them before the load, or let the target allocate them",
            )
        return given


__all__ = ["Arithmetic", "QuantTarget"]
