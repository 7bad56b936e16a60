"""What would happen to a checkpoint, from its headers alone: decisions, sizes, shards, peak memory, findings.

Nothing is read but headers and config.json, and without a backend to ask no torch is needed. A plan lists findings
instead of stopping at the first one; patterns that match nothing and damaged files are errors all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mxfp4_core.backend.device import Device
from mxfp4_core.backend.usual import settled
from mxfp4_core.checkpoint.reader import Checkpoint
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.errors import check_type
from mxfp4_core.jobs.described import describe_checkpoint, notes_of
from mxfp4_core.jobs.fit import Fit, biased, fits
from mxfp4_core.jobs.opened import open_high_precision
from mxfp4_core.jobs.output import Report, copied_weights, counted
from mxfp4_core.jobs.planned import chosen, decided, planned_as
from mxfp4_core.jobs.rows import Row, Rows
from mxfp4_core.naming.braces import collapse
from mxfp4_core.naming.by_family import advice
from mxfp4_core.naming.facts import ModelFacts
from mxfp4_core.naming.orientation import k_first
from mxfp4_core.naming.resolver import Resolver
from mxfp4_core.naming.view import ModelView
from mxfp4_core.naming.vocabulary import module_of
from mxfp4_core.parallel.shards import Parallel


@dataclass(frozen=True)
class Plan:
    """The plan for a checkpoint.

    Attributes:
        path: the checkpoint.
        model_type: as in config.json.
        config: the config that was planned with.
        parallel: sizes of the parallel groups.
        rows: one for each tensor, in the order of the files.
        fits: what the backend says about each shape that one rank runs; empty where no backend was named.
        view: what a model provider says about the weights; None where the names decided.
        kinds: that in words, with who says it.
        notes: what a reader should know though nothing stands against it.
        dialect: what would be written.
        why: why that dialect.
        copied: weight files that are taken over as they are.
        left: files of the checkpoint that the result would not have, and why.
    """

    path: str
    model_type: str
    config: Mxfp4Config
    parallel: Parallel
    rows: tuple[Row, ...]
    fits: tuple[Fit, ...] = ()
    view: ModelView | None = None
    kinds: str = ""
    notes: tuple[str, ...] = ()
    dialect: str = ""
    why: str = ""
    copied: tuple[str, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)

    @property
    def quantized(self) -> list[Row]:
        """Return the rows that become MXFP4."""
        return [row for row in self.rows if row.decision.quantize]

    @property
    def advised(self) -> list[str]:
        """Return patterns for ``ignore`` that keep what others keep of such a model beyond the defaults."""
        found = advice(self.model_type, (module_of(row.name) for row in self.quantized))
        return list(dict.fromkeys(text for texts in found.values() for text in texts))

    @property
    def bytes_before(self) -> int:
        """Return the bytes of all tensors in the checkpoint."""
        return sum(row.bytes_before for row in self.rows)

    @property
    def bytes_after(self) -> int:
        """Return the bytes of all tensors of the result."""
        return sum(row.bytes_after for row in self.rows)

    @property
    def padding_bytes(self) -> int:
        """Return what the backend's alignment adds on one rank."""
        return sum(fit.padding_bytes for fit in self.fits)

    @property
    def rank_bytes(self) -> int:
        """Return what one rank holds once everything is loaded."""
        return sum(row.rank_bytes for row in self.rows) + self.padding_bytes

    @property
    def largest_unit(self) -> Row | None:
        """Return the row whose unit is the largest in high precision."""
        return max(self.quantized, key=lambda row: row.unit_bytes, default=None)

    def peak_bytes(self, *, device_copy: bool = False) -> int:
        """Return the most that one rank holds while loading: everything quantised, and one unit in high precision.

        Args:
            device_copy: whether the unit exists twice for a moment, on the host and on the device.
        """
        unit = self.largest_unit.unit_bytes if self.largest_unit else 0
        return self.rank_bytes + unit * (2 if device_copy else 1)

    @property
    def findings(self) -> list[str]:
        """Return everything that stands against carrying out the plan; empty if nothing does."""
        by_text: dict[str, list[str]] = {}
        for row in self.rows:
            if row.finding:
                by_text.setdefault(row.finding.replace(row.name, "{}"), []).append(row.name)
        found = [text.replace("{}", ", ".join(collapse(names))) for text, names in by_text.items()]
        found += [fit.refusal for fit in self.fits if fit.refusal]
        if not self.quantized:
            found.append("nothing to quantise: every tensor is kept; see the reasons")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        unit = self.largest_unit
        return {
            "path": self.path,
            "model_type": self.model_type,
            "kinds": self.kinds,
            "dialect": {"name": self.dialect, "why": self.why},
            "config": self.config.to_dict(),
            "profile": self.config.resolved_profile(),
            "tp": self.parallel.tp,
            "ep": self.parallel.ep,
            "totals": {
                "tensors": len(self.rows),
                "quantized": len(self.quantized),
                "bytes_before": self.bytes_before,
                "bytes_after": self.bytes_after,
                "rank_bytes": self.rank_bytes,
                "padding_bytes": self.padding_bytes,
            },
            "peak": {
                "bytes": self.peak_bytes(),
                "bytes_with_device_copy": self.peak_bytes(device_copy=True),
                "largest_unit": unit and {"name": unit.name, "bytes": unit.unit_bytes},
            },
            "backend": [fit.to_dict() for fit in self.fits],
            "notes": list(self.notes),
            "copied": list(self.copied),
            "left": dict(self.left),
            "findings": self.findings,
            "tensors": [row.to_dict() for row in self.rows],
        }


def plan_checkpoint(
    source: str | Path,
    config: Mxfp4Config | None = None,
    *,
    tp: int = 1,
    ep: int = 1,
    backend: str | None = None,
    device: Device | None = None,
    models: str = "auto",
    progress: Report | None = None,
) -> Plan:
    """Plan the quantisation of a checkpoint in high precision.

    Args:
        source: folder with safetensors files, or one such file.
        config: what to quantise and how.
        tp: tensor-parallel size.
        ep: expert-parallel size.
        backend: name of the backend to ask about the shapes of one rank; that of the config if None.
        device: device to ask about; the current one if None.
        models: who says what the weights are: ``auto`` asks the installed model providers, ``none`` goes by names, a
            name asks that provider.
        progress: called with the bytes of the tensors that are planned and their total; none of them is read.

    Returns:
        The plan; its ``findings`` are empty if it can be carried out.

    Raises:
        CheckpointError: a damaged or hostile checkpoint.
        DialectError: the checkpoint is quantised already.
        PatternError: a pattern matches nothing or splits a fused module.
        ConfigError: parallel sizes that do not go together, or no model provider has that name.
        ModelError: two model providers claim the model, or the named one cannot say.
        BackendError: no backend has that name.
    """
    config, parallel = config or Mxfp4Config(), Parallel(tp, ep)
    check_type(config, Mxfp4Config, "config")
    checkpoint = open_high_precision(source)
    facts, described = ModelFacts.read(checkpoint.config), describe_checkpoint(checkpoint, models)
    infos, view = list(checkpoint.tensors.values()), described.view
    decisions = decided(Resolver.for_model(config, checkpoint.config, view=view), infos)
    entries = [
        planned_as(
            info, decision, k_first(info.name, info.shape, facts, view), facts.model_type, config, view
        )
        if decision.quantize
        else None
        for info, decision in zip(infos, decisions, strict=True)
    ]
    dialect, why = chosen(checkpoint, config, [entry for entry in entries if entry is not None])
    done = counted(sum(info.nbytes for info in infos), progress)
    made, rows = Rows(config, dialect, parallel, facts), []
    for info, decision, entry in zip(infos, decisions, entries, strict=True):
        rows.append(made.of(info, decision, entry))
        done(info.nbytes)
    result = Plan(
        str(source),
        facts.model_type,
        config,
        parallel,
        tuple(rows),
        view=view,
        dialect=dialect.name,
        why=why,
        kinds=described.source,
        notes=notes_of(checkpoint, view, decisions),
        copied=copied_weights(checkpoint.other_files),
        left=checkpoint.left,
    )
    name = backend or config.backend
    return result if name is None else replace(result, fits=_fits(result, checkpoint, facts, name, device))


def _fits(
    plan: Plan, checkpoint: Checkpoint, facts: ModelFacts, backend: str, device: Device | None
) -> tuple[Fit, ...]:
    """Ask a backend about the shapes of one rank."""
    config, view, where = plan.config, plan.view, device or Device.current()
    shards = {row.name: row.shard for row in plan.quantized}
    how = {row.name: row.decision for row in plan.quantized}
    running = settled(config.model_copy(update={"backend": backend}), [where])
    if running.activation != config.activation:  # nobody said it, and the backend usually does something
        resolver = Resolver.for_model(running, checkpoint.config, view=view)
        found = decided(resolver, list(checkpoint.tensors.values()))
        how = {each.name: each for each in found if each.name in how}
    return tuple(fits(shards, biased(checkpoint.tensors), facts, config, backend, where, how, view))


__all__ = ["Plan", "plan_checkpoint"]
