"""The weights of one load: each module is bound to the session where its first piece arrives."""

from __future__ import annotations

import threading
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from mxfp4_core.arithmetic import MxTensor
from mxfp4_core.dialects import Entry
from mxfp4_core.errors import LoadError
from mxfp4_core.loader import LoadReportBuilder, LoadSession, QuantTarget, fill_target, read_rows
from mxfp4_core.modules import ModelPlan, Site, Weight
from mxfp4_diffusers.folder import Folder


@dataclass
class Targets:
    """Where the weights of one load go.

    Attributes:
        session: what the targets belong to.
        model: with the empty modules in place.
        plan: which modules those are.
        dtype: of the model.
        report: counts time and bytes.
        folder: the checkpoint, where the weights come quantised.
        widened: weights that the folder has quantised and that the model is to hold in high precision, by name.
        bytes_read: bytes of each weight as it came from the checkpoint.
    """

    session: LoadSession
    model: Any
    plan: ModelPlan
    dtype: torch.dtype
    report: LoadReportBuilder
    folder: Folder | None = None
    widened: Mapping[str, Weight] = field(default_factory=dict[str, Weight])
    bytes_read: dict[str, int] = field(default_factory=dict[str, int])
    _made: dict[str, QuantTarget] = field(default_factory=dict[str, QuantTarget])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @cached_property
    def _sites(self) -> dict[str, Site]:
        return {site.name(name): site for site in self.plan.sites for name in site.weights}

    def take(self, name: str, state: MutableMapping[str, torch.Tensor], device: torch.device) -> None:
        """Load one weight, and let go of it in what diffusers has read.

        Args:
            name: of the weight.
            state: what diffusers has read of a file; the weight has the dtype of the file there, so that nothing is
                rounded before it is quantised.
            device: where its module will be.

        Raises:
            LoadError: it is no weight in high precision.
            NonFiniteError: NaN or infinity in it.
            CheckpointError: a file of a quantised folder cannot be read.
        """
        if self.folder is not None:
            self._fill(self.folder.contents.entries[name], device)
            return
        value = state[name]
        if not value.is_floating_point():
            raise LoadError(
                f"{name} cannot be quantised",
                seen=f"dtype {value.dtype}",
                rule="a weight in high precision is quantised; this one is not",
                fix="load the checkpoint in high precision from which this one was made",
            )
        target = self._at(name, value.dtype, device)
        with self.report.timing("quantising"):
            target.quantize(value.transpose(-1, -2) if self._sites[name].transposed else value)
        self.bytes_read[name] = value.nbytes
        state[name] = value.new_empty(0)
        self.report.sample()

    def check(self) -> None:
        """Check that every range of every weight was loaded once.

        Raises:
            LoadError: as `LoadSession.check`.
        """
        for name in self.plan.weights:
            self._at(name, self.dtype, torch.device("cpu"))
        self.session.check()

    def _fill(self, entry: Entry, device: torch.device) -> None:
        name, folder = entry.weight, self.folder
        if folder is None:
            return
        if name in self.widened:
            weight = self.widened[name]
            parts = weight.empty(device)
            for part, start, piece in read_rows(entry.parts, folder.checkpoint, self.report):
                parts[part][start : start + len(piece)].copy_(piece.view(parts[part].dtype))
            values = MxTensor.from_parts(weight.kind, parts, weight.shape).dequantize(self.dtype)
            values = values.transpose(-1, -2).contiguous() if weight.transposed else values
            path, _, last = name.rpartition(".")
            module = self.model.get_submodule(path)
            setattr(module, last, torch.nn.Parameter(values, requires_grad=False))
            return
        target = self._at(name, self.dtype, device)
        fill_target(target, entry.parts, folder.checkpoint, self.report)
        self.bytes_read[name] = entry.nbytes

    def _at(self, name: str, dtype: torch.dtype, device: torch.device) -> QuantTarget:
        with self._lock:
            if name not in self._made:
                site = self._sites[name]
                self._made |= self.session.bind(
                    self.model.get_submodule(site.path),
                    prefix=site.path,
                    dtype=dtype,
                    device=device,
                    exact=self.folder is not None,
                    prepare=False,
                    transposed=site.transposed,
                    reason=self.plan.reasons[site.path],
                )
            return self._made[name]


__all__ = ["Targets"]
