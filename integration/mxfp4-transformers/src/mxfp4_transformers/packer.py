"""Quantise the weights of one load into the targets of its session, a tensor of the checkpoint at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mxfp4_core.errors import LoadError, NonFiniteError
from mxfp4_core.loader import Key, LoadReportBuilder, QuantTarget, Region, quantize_rows
from mxfp4_transformers import compat
from mxfp4_transformers.feed import Feed, in_order, wait
from mxfp4_transformers.targets import Targets


@dataclass(frozen=True)
class Piece:
    """Some rows of a weight, as they come from the checkpoint.

    Attributes:
        expert: the expert that they belong to; None for a linear.
        row: where they begin.
        value: ``[rows, k]``.
        source: what messages call them.
    """

    expert: int | None
    row: int
    value: torch.Tensor
    source: str


@dataclass
class Packer:
    """Quantises the weights of one load.

    Attributes:
        targets: where the weights go.
        report: counts the time.
        feed: reads ahead what can be.
        sources: names in the checkpoint by name of the weight, for messages; it may lack some.
        bytes_read: bytes of each weight as it came from the checkpoint.
    """

    targets: Targets
    report: LoadReportBuilder
    feed: Feed = field(default_factory=Feed)
    sources: Mapping[str, list[str]] = field(default_factory=dict[str, list[str]])
    bytes_read: dict[str, int] = field(default_factory=dict[str, int])

    def __deepcopy__(self, memo: dict[int, Any]) -> Packer:
        # transformers copies a converter for every parameter; one load has one packer.
        return self

    def convert(self, tensors: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Quantise those of ``tensors`` that are to be, and return all of them, with all parts of the quantised ones.

        Args:
            tensors: by full name in the model, each a tensor or a list of one.
        """
        result: dict[str, torch.Tensor] = {}
        for name, entry in tensors.items():
            value = entry[0] if isinstance(entry, list) else entry
            if name not in self.targets.weights:
                result[name] = value
                continue
            target = self.targets.at(name, value.device)
            if target.transposed:
                value = value.transpose(-1, -2)
            names = self.sources.get(name, [])
            source = names[0] if len(names) == 1 else name
            if tuple(value.shape) != (shape := self.targets.shape(name)):
                raise _misfit(name, shape, source, f"{list(value.shape)}")
            if value.ndim == 2:
                result |= self._load(name, iter([Piece(None, 0, value, source)]))
            else:
                pieces = (Piece(e, 0, value[e], f"{source}[{e}]") for e in range(value.shape[0]))
                result |= self._load(name, pieces)
        return result

    def stack(
        self, name: str, columns: Sequence[list[Any]], names: Sequence[list[str]]
    ) -> dict[str, torch.Tensor]:
        """Quantise a stack of experts whose tensors are still to be read.

        Args:
            name: the weight.
            columns: for each part of an expert (gate, up), one entry of the loader per expert.
            names: the names in the checkpoint that belong to ``columns``.
        """
        experts = self.targets.weights[name].shape[0]
        for column, names_of_column in zip(columns, names, strict=True):
            if len(column) != experts:
                raise LoadError(
                    f"{name} cannot be stacked",
                    seen=f"{len(column)} tensors for one part of {experts} experts: {', '.join(names_of_column[:3])} …",
                    rule="the checkpoint has each part of every expert once",
                    fix="complete the checkpoint; a shard may be missing",
                )

        streamed = self._stream(name, in_order(names))
        if streamed is not None:
            return streamed

        def pieces() -> Iterator[Piece]:
            for expert in range(experts):
                row = 0
                for column, names_of_column in zip(columns, names, strict=True):
                    with self.report.timing("reading"):
                        value = compat.materialised(column[expert])
                    column[expert] = None
                    known = len(names_of_column) == experts
                    source = names_of_column[expert] if known else f"{name}[{expert}]"
                    yield Piece(expert, row, value, source)
                    row += value.shape[0]
                    del value

        return self._load(name, pieces())

    def single(self, name: str, entry: Any, source: str) -> dict[str, torch.Tensor]:
        """Quantise a weight that is one tensor of the checkpoint, still to be read.

        Args:
            name: the weight.
            entry: what the loader has for it.
            source: its name in the checkpoint.
        """
        streamed = self._stream(name, [source]) if name in self.targets.weights else None
        if streamed is not None:
            return streamed
        with self.report.timing("reading"):
            value = compat.materialised(entry)
        return self.convert({name: value})

    def _load(self, name: str, pieces: Iterator[Piece]) -> dict[str, torch.Tensor]:
        self.bytes_read[name] = 0
        target: QuantTarget | None = None
        for piece in pieces:
            value, expert = piece.value, piece.expert or 0
            target = target or self.targets.at(name, value.device)
            self._check(name, self.targets.shape(name), piece)
            self.bytes_read[name] += value.numel() * value.element_size()
            share = self.targets.shares.get(name)
            here = expert if share is None else share.expert(expert)
            found = [(piece.row, value)] if share is None else share.rows_of(piece.row, value)
            with self.report.timing("quantising"):
                for row, rows in found:
                    if here is None:
                        break
                    region = Region((here, here + 1), (row, row + rows.shape[0]), (0, rows.shape[1]))
                    source = (
                        piece.source if share is None else f"{piece.source}[the part from row {row} here]"
                    )
                    try:
                        target.quantize(rows, region, key=Key(None, piece.expert, source))
                    except NonFiniteError as error:
                        raise error.within(source) from None  # the piece is a tensor of the checkpoint
            self.report.sample()
            del piece, value, found
        return _filled(target or self.targets.at(name, torch.device("cpu")))

    def _stream(self, name: str, names: Sequence[str]) -> dict[str, torch.Tensor] | None:
        """Quantise a weight from what was read ahead, or return None where that is not possible."""
        fed = self.feed.rows(name, names)
        if fed is None:
            return None
        device, chunks = fed
        target, row = self.targets.at(name, device), 0
        try:
            for chunk in self.report.timed(chunks):
                with self.report.timing("quantising"):
                    value = chunk.to(device, non_blocking=True)
                    quantize_rows(target, value, row)
                    wait(device)  # before the memory of the chunk is filled again
                    row += value.shape[0]
                    del value
                self.report.sample()
        except NonFiniteError:
            return None  # read again the ordinary way, the error names the tensor and the index in it
        self.bytes_read[name] = target.shape.numel() * target.dtype.itemsize
        return _filled(target)

    @staticmethod
    def _check(name: str, shape: tuple[int, ...], piece: Piece) -> None:
        (n, k), value = shape[-2:], piece.value
        if value.ndim != 2 or value.shape[1] != k or piece.row + value.shape[0] > n:
            raise _misfit(name, shape, piece.source, f"{list(value.shape)} at row {piece.row}")
        if not value.is_floating_point():
            raise LoadError(
                f"{piece.source} cannot be quantised",
                seen=f"dtype {value.dtype}",
                rule="a weight in high precision is quantised; this one is not",
                fix="load the checkpoint in high precision from which this one was made",
            )


def _filled(target: QuantTarget) -> dict[str, torch.Tensor]:
    """Return the parts of a weight by their names in the model, once every row is there."""
    if findings := target.ledger.findings(subset=False):
        raise LoadError(
            f"{target.name} is not filled",
            seen="; ".join(findings[:5]),
            rule="the tensors of the checkpoint cover every row once",
            fix="complete the checkpoint; a shard may be missing",
        )
    return {f"{target.name}{part.suffix}": target.parts[part.name] for part in target.format.parts}


def _misfit(name: str, shape: tuple[int, ...], source: str, seen: str) -> LoadError:
    return LoadError(
        f"{source} does not fit into {name}",
        seen=seen,
        rule=f"the model has {list(shape)} there",
        fix="use the config.json that belongs to this checkpoint",
    )


__all__ = ["Packer", "Piece"]
