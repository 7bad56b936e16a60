"""What a whole session says at its end: what is not complete, or what was done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mxfp4_core.errors import LoadError
from mxfp4_core.loader.report import LoadReportBuilder
from mxfp4_core.loader.target import QuantTarget

_MOST_FINDINGS = 20


def check_targets(targets: Iterable[QuantTarget], *, subset: bool) -> None:
    """Check that every range of every target was loaded once.

    Args:
        targets: all of a session.
        subset: accept what an earlier load wrote where this one wrote nothing.

    Raises:
        LoadError: ranges are missing, duplicate or overlapping; the message names parameter, rows and shard.
    """
    findings = [
        f"{target.name}: {finding}" for target in targets for finding in target.ledger.findings(subset=subset)
    ]
    if not findings:
        return
    shown = findings[:_MOST_FINDINGS]
    if len(findings) > len(shown):
        shown.append(f"and {len(findings) - len(shown)} more")
    raise LoadError(
        f"the load is not complete: {len(findings)} finding{'s' if len(findings) > 1 else ''}",
        seen="\n        ".join(shown),
        rule="each range of each quantised weight is loaded exactly once, and its loader returns",
        fix="check the checkpoint's index and the engine's name mapping; to refresh some weights only, use "
        "begin(subset=True)",
    )


def count(
    report: LoadReportBuilder,
    targets: Iterable[QuantTarget],
    kept: Mapping[str, tuple[str, str, int]],
    profile: str,
) -> None:
    """Tell a report about every target that this load wrote, and about what stays in high precision.

    Args:
        report: of the load.
        targets: all of a session.
        kept: kind, reason and bytes of what is not quantised, by name.
        profile: what to report where nothing was quantised.
    """
    written = [target for target in targets if target.ledger.touched]
    for one in written:
        before, after = one.bytes_before, one.bytes_after
        report.quantised(one.name, kind=one.kind, bytes_before=before, bytes_after=after, reason=one.reason)
    for name, (kind, reason, nbytes) in kept.items():
        report.kept(name, kind=kind, reason=reason, nbytes=nbytes)
    used = {one.arithmetic.profile: None for one in written if one.arithmetic.profile} or {profile: None}
    report.profile = report.profile or ", ".join(used)


__all__ = ["check_targets", "count"]
