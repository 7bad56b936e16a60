"""Quantise the weights of one load, a tensor of the checkpoint at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mxfp4_core.arithmetic import Alignment, pad_weight
from mxfp4_core.backend import DeviceQuantizers
from mxfp4_core.errors import LoadError, NonFiniteError
from mxfp4_core.loader import LoadReportBuilder
from mxfp4_core.modules import Weight
from mxfp4_transformers import compat
from mxfp4_transformers.feed import Feed, in_order, wait


@dataclass(frozen=True)
class Part:
    """Some rows of a weight, as they come from the checkpoint.

    Attributes:
        index: the expert that they belong to; empty for a linear.
        row: where they begin.
        value: ``[rows, k]``.
        source: what messages call them.
    """

    index: tuple[int, ...]
    row: int
    value: torch.Tensor
    source: str


@dataclass
class Packer:
    """Quantises the weights of one load.

    Attributes:
        weights: the weights to quantise, by name.
        nonfinite: what happens to NaN and infinity, as in the config.
        report: counts the time.
        feed: reads ahead what can be.
        quantizers: who quantises on which device.
        sources: names in the checkpoint by name of the weight, for messages; it may lack some.
        bytes_read: bytes of each weight as it came from the checkpoint.
    """

    weights: Mapping[str, Weight]
    nonfinite: Any
    report: LoadReportBuilder
    feed: Feed = field(default_factory=Feed)
    quantizers: DeviceQuantizers = field(default_factory=DeviceQuantizers)
    sources: Mapping[str, list[str]] = field(default_factory=dict[str, list[str]])
    bytes_read: dict[str, int] = field(default_factory=dict[str, int])

    def __deepcopy__(self, memo: dict[int, Any]) -> Packer:
        # transformers copies a converter for every parameter; one load has one packer.
        return self

    def convert(self, tensors: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Quantise those of ``tensors`` that are to be, and return all of them with the scales added.

        Args:
            tensors: by full name in the model, each a tensor or a list of one.
        """
        result: dict[str, torch.Tensor] = {}
        for name, entry in tensors.items():
            value = entry[0] if isinstance(entry, list) else entry
            if name not in self.weights:
                result[name] = value
                continue
            weight = self.weights[name]
            if weight.transposed:
                value = value.transpose(-1, -2)
            names = self.sources.get(name, [])
            source = names[0] if len(names) == 1 else name
            if tuple(value.shape) != weight.shape:
                raise _misfit(weight, source, f"{list(value.shape)}")
            if value.ndim == 2:
                result |= self._pack(weight, iter([Part((), 0, value, source)]))
            else:
                parts = (Part((e,), 0, value[e], f"{source}[{e}]") for e in range(value.shape[0]))
                result |= self._pack(weight, parts)
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
        weight = self.weights[name]
        experts = weight.shape[0]
        for column, names_of_column in zip(columns, names, strict=True):
            if len(column) != experts:
                raise LoadError(
                    f"{name} cannot be stacked",
                    seen=f"{len(column)} tensors for one part of {experts} experts: {', '.join(names_of_column[:3])} …",
                    rule="the checkpoint has each part of every expert once",
                    fix="complete the checkpoint; a shard may be missing",
                )

        streamed = self._stream(weight, in_order(names))
        if streamed is not None:
            return streamed

        def parts() -> Iterator[Part]:
            for expert in range(experts):
                row = 0
                for column, names_of_column in zip(columns, names, strict=True):
                    with self.report.timing("reading"):
                        value = compat.materialised(column[expert])
                    column[expert] = None
                    known = len(names_of_column) == experts
                    source = names_of_column[expert] if known else f"{name}[{expert}]"
                    yield Part((expert,), row, value, source)
                    row += value.shape[0]
                    del value

        return self._pack(weight, parts())

    def single(self, name: str, entry: Any, source: str) -> dict[str, torch.Tensor]:
        """Quantise a weight that is one tensor of the checkpoint, still to be read.

        Args:
            name: the weight.
            entry: what the loader has for it.
            source: its name in the checkpoint.
        """
        streamed = self._stream(self.weights[name], [source]) if name in self.weights else None
        if streamed is not None:
            return streamed
        with self.report.timing("reading"):
            value = compat.materialised(entry)
        return self.convert({name: value})

    def _pack(self, weight: Weight, parts: Iterator[Part]) -> dict[str, torch.Tensor]:
        parts_of: dict[str, torch.Tensor] = {}
        rows_seen = 0
        self.bytes_read[weight.name] = 0
        for part in parts:
            value = part.value
            if not rows_seen:
                parts_of = weight.empty(value.device)
            self._check(weight, part)
            rows = slice(part.row, part.row + value.shape[0])
            rows_seen += value.shape[0]
            self.bytes_read[weight.name] += value.numel() * value.element_size()
            with self.report.timing("quantising"):
                self.quantizers.of(weight.profile, value.dtype, value.device, weight.kind).into(
                    pad_weight(value, Alignment()),
                    {key: tensor[part.index][rows] for key, tensor in parts_of.items()},
                    nonfinite=self.nonfinite,
                    name=part.source,
                )
            self.report.sample()
            del part, value
        _check_filled(weight, rows_seen)
        return {weight.names[part]: tensor for part, tensor in parts_of.items()}

    def _stream(self, weight: Weight, names: Sequence[str]) -> dict[str, torch.Tensor] | None:
        """Quantise a weight from what was read ahead, or return None where that is not possible."""
        fed = self.feed.rows(weight, names)
        if fed is None:
            return None
        device, chunks = fed
        parts = weight.empty(device)
        flat = {part: tensor.view(-1, tensor.shape[-1]) for part, tensor in parts.items()}
        row = 0
        try:
            for chunk in self.report.timed(chunks):
                with self.report.timing("quantising"):
                    value = chunk.to(device, non_blocking=True)
                    rows = slice(row, row + value.shape[0])
                    quantizer = self.quantizers.of(weight.profile, value.dtype, value.device, weight.kind)
                    into = {key: tensor[rows] for key, tensor in flat.items()}
                    quantizer.into(value, into, nonfinite=self.nonfinite)
                    wait(device)  # before the memory of the chunk is filled again
                    row = rows.stop
                    del value
                self.report.sample()
        except NonFiniteError:
            return None  # read again the ordinary way, the error names the tensor and the index in it
        _check_filled(weight, row)
        self.bytes_read[weight.name] = torch.Size(weight.shape).numel() * self.feed.dtype.itemsize
        return {weight.names[part]: tensor for part, tensor in parts.items()}

    @staticmethod
    def _check(weight: Weight, part: Part) -> None:
        (n, k), value = weight.shape[-2:], part.value
        if value.ndim != 2 or value.shape[1] != k or part.row + value.shape[0] > n:
            raise _misfit(weight, part.source, f"{list(value.shape)} at row {part.row}")
        if not value.is_floating_point():
            raise LoadError(
                f"{part.source} cannot be quantised",
                seen=f"dtype {value.dtype}",
                rule="a weight in high precision is quantised; this one is not",
                fix="load the checkpoint in high precision from which this one was made",
            )


def _check_filled(weight: Weight, rows: int) -> None:
    wanted = torch.Size(weight.shape[:-1]).numel()
    if rows != wanted:
        raise LoadError(
            f"{weight.name} is not filled",
            seen=f"{rows} of {wanted} rows",
            rule="the tensors of the checkpoint cover every row once",
            fix="complete the checkpoint; a shard may be missing",
        )


def _misfit(weight: Weight, source: str, seen: str) -> LoadError:
    return LoadError(
        f"{source} does not fit into {weight.name}",
        seen=seen,
        rule=f"the model has {list(weight.shape)} there",
        fix="use the config.json that belongs to this checkpoint",
    )
