"""The real tensors that a load fills: the parts of one parameter, allocated once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from mxfp4_core.arithmetic.formats.base import Format, Part, Parts
from mxfp4_core.arithmetic.formats.mxfp4 import MXFP4
from mxfp4_core.arithmetic.tensor import MxTensor
from mxfp4_core.errors import FormatError, LoadError
from mxfp4_core.loader.checks import check_cut, check_given, check_inside, check_target, sized
from mxfp4_core.loader.how import Arithmetic
from mxfp4_core.loader.keys import THE_WEIGHT, Key
from mxfp4_core.loader.ledger import Ledger
from mxfp4_core.loader.regions import Region
from mxfp4_core.loader.storage import Storage, Tensors
from mxfp4_core.parallel.ranges import shard_ranges


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
        storage: where the parts are, instead of ``device`` and ``parts``.
        exact: the weight comes quantised, by `put` alone, so K may end inside a block whatever ``arithmetic`` says.
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
        storage: Storage | None = None,
        exact: bool = False,
        transposed: bool = False,
        tp: int | None = None,
        kind: str | None = None,
        reason: str = "",
    ) -> None:
        self.name, self.shape, self.dtype = name, torch.Size(shape), dtype
        self.arithmetic, self.transposed, self.format = arithmetic, transposed, format
        check_target(self.shape, dtype, name)
        k = self.shape[-1]
        if arithmetic.tail == "refuse" and not exact:
            shard_ranges(k * (tp or 1), tp or 1, multiple=format.block, tensor=name, dim="k")
        self.k_physical = format.physical_k(k)
        if storage is None:
            given = None if parts is None else check_given(parts, format, self.shape, name)
            storage = Tensors(format, given or format.empty(self.shape, device))
        self.storage: Storage = storage
        self.exact = exact
        self.kind = kind or ("experts" if self.stacked else "linear")
        self.reason = reason
        inputs = tuple(part.name for part in format.parts if part.operand == "input")
        names = tuple(part.name for part in format.weight_parts)
        self.ledger = Ledger(self.box, self.stacked, names, inputs)

    @property
    def device(self) -> torch.device:
        """Where the parts are."""
        return self.storage.device

    @property
    def parts(self) -> Parts:
        """The tensors that are written, by name of the part."""
        return self.storage.open()

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
    def whole(self) -> Region:
        """The region that is the whole weight."""
        return Region(*((0, size) for size in self.box))

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
                seen="; ".join(self.ledger.findings(subset=True)),
                rule="every row of every expert is loaded before the weight is used",
                fix="load the missing ranges, and call LoadSession.close before using the weights",
            )
        return MxTensor.from_parts(self.format, self.parts, self.shape, self.arithmetic.profile)

    def quantize(self, source: torch.Tensor, region: Region | None = None, *, key: Key = THE_WEIGHT) -> None:
        """Quantise a piece into its place and count it, for adapters that have no loader to wrap.

        Args:
            source: ``[experts, rows, cols]`` of the region's sizes, or ``[rows, cols]`` of one expert; any float dtype,
                strides and device.
            region: where it goes; the whole weight if None.
            key: what the account calls the piece.

        Raises:
            ShapeError: the region cuts a block, or the source has other sizes.
            NonFiniteError: NaN or infinity in the source, by the target's policy.
            LoadError: the region ends beyond the weight.
        """
        region = region or self.whole
        with self._counted(key, region):
            check_inside(region, self.box, self.name)
            columns = region.cols[1] - region.cols[0]
            self.store(sized(source, region, columns, f"the piece of {self.name}"), region)

    def put(self, parts: Parts, region: Region | None = None, *, key: Key = THE_WEIGHT) -> None:
        """Put parts that are quantised already into their place, byte for byte, and count them.

        Parts may come one by one. `LoadSession.close` wants all parts of every range; where any came this way, also
        those of the input.

        Args:
            parts: tensors by name of the part, any device; those of the weight ``[experts, rows, cols / values]``, or
                without the first axis for one expert; those of the input ``[cols / values]``.
            region: where they go, in elements of the weight; the whole weight if None.
            key: what the account calls the piece.

        Raises:
            ShapeError: the region cuts a block, or a part has other sizes.
            FormatError: a part that the format does not have, or of another dtype.
            LoadError: the region ends beyond the weight.
        """
        region = region or self.whole
        for name, given in parts.items():
            part = self.format.part(name)
            tensor = part.raw(given)
            with self._counted(key, region, name):
                check_inside(region, self.box, self.name)
                check_cut(region, self.shape, self.format, f"{name} of {self.name}")
                if tensor.dtype != getattr(torch, part.dtype):
                    raise FormatError(
                        f"{name} of {self.name} cannot be put",
                        seen=f"{given.dtype} {tuple(given.shape)}",
                        rule=f"{name} of {self.format.name} are {part.dtype}, and are never converted",
                        fix="give the bytes as they are in the checkpoint, or quantise from high precision",
                    )
                start, stop = region.cols[0], self.format.physical_k(region.cols[1])
                columns, role = (stop - start) // part.values, f"{name} of {self.name}"
                if part.operand == "input":
                    row = Region((0, 1), (0, 1), region.cols)
                    place = self.parts[name][start // part.values : stop // part.values]
                    place.copy_(sized(tensor, row, columns, role)[0, 0])
                    continue
                pieces = sized(tensor, region, columns, role)
                for index, expert in enumerate(range(*region.experts)):
                    self._slice(part, expert, slice(*region.rows), start, stop).copy_(pieces[index])

    def store(
        self, source: torch.Tensor, region: Region, *, zero_tail: bool = False, loaded_k: int = 0
    ) -> None:
        """Cast `source` to the target's dtype, quantise it and put it at `region`, without counting it.

        Args:
            source: ``[experts, rows, cols]`` of the region's sizes, any float dtype, strides and device.
            region: where it goes; begins at a block, ends at a block or at the end of K.
            zero_tail: the region may end inside a block whose rest is known to be zero.
            loaded_k: k of the tensor in the checkpoint, if known; only for messages.

        Raises:
            ShapeError: the region cuts a block.
            NonFiniteError: NaN or infinity in the source, by the target's policy.
        """
        check_cut(region, self.shape, self.format, self.name, zero_tail=zero_tail, loaded_k=loaded_k)
        start, stop = region.cols
        rows, how = slice(*region.rows), self.arithmetic
        end = self.format.physical_k(stop)
        for index, expert in enumerate(range(*region.experts)):
            places = {
                part.name: self._slice(part, expert, rows, start, end) for part in self.format.weight_parts
            }
            axis = f"{expert}, " if self.stacked else ""
            how.quantizers.fill(
                source[index],
                places,
                profile=how.profile,
                format=self.format,
                dtype=self.dtype,
                nonfinite=how.nonfinite,
                threads=how.threads,
                # An index in an error counts from the piece, so the piece is named as the slice that it is.
                name=f"{self.name}[{axis}{rows.start}:{rows.stop}, {start}:{stop}]",
            )

    def _slice(self, part: Part, expert: int, rows: slice, start: int, stop: int) -> torch.Tensor:
        """Return the view of a part that belongs to whole blocks of some rows of one expert."""
        whole = self.parts[part.name]
        return (whole[expert] if self.stacked else whole)[rows, start // part.values : stop // part.values]

    @contextmanager
    def _counted(self, key: Key, region: Region, part: str = "") -> Iterator[None]:
        write = self.ledger.begin(key, region, part=part)
        try:
            yield
        except BaseException as error:
            self.ledger.fail(key, error)
            raise
        self.ledger.commit(key, [write])

    def __getattr__(self, name: str) -> torch.Tensor:
        if "storage" in self.__dict__ and any(part.name == name for part in self.format.parts):
            return self.parts[name]
        raise AttributeError(f"a QuantTarget has no attribute {name!r}, and its format no such part")


__all__ = ["QuantTarget"]
