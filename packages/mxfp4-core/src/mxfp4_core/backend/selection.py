"""The result of a choice: the backend, and the verdict of every other one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from mxfp4_core.backend.answers import Numerics
from mxfp4_core.backend.problem import Problem
from mxfp4_core.backend.protocol import Backend
from mxfp4_core.errors import BackendError

Status = Literal["accepted", "rejected", "broken", "not installed"]


@dataclass(frozen=True)
class Candidate:
    """One line of the trace.

    Attributes:
        name: name of the backend.
        status: accepted, rejected, broken (the plug-in failed) or not installed.
        reason: why, or for an accepted one what it would run; may be empty.
        fix: what to do about it; empty if accepted.
        distribution: name and version of the package that provides it.
        automatic: it may be chosen on this device without being named.
        emulated: it widens the weights before an ordinary matmul.
        temporary_bytes: memory that one call needs; 0 unless accepted.
        rank: larger first among the automatic ones; 0 unless accepted.
        provider: whose kernels run, where the backend has several.
        layout: variant of the layout, where it depends on the problem.
        numerics: what is computed for this problem; None unless accepted.
    """

    name: str
    status: Status
    reason: str = ""
    fix: str = ""
    distribution: str = ""
    automatic: bool = False
    emulated: bool = False
    temporary_bytes: int = 0
    rank: int = 0
    provider: str = ""
    layout: str = ""
    numerics: Numerics | None = None

    @property
    def order(self) -> tuple[bool, int]:
        """What is compared between automatic backends, larger first."""
        return not self.emulated, self.rank

    @property
    def details(self) -> str:
        """What is true for this problem, in words; empty unless accepted."""
        if self.numerics is None:
            return ""
        plain = Numerics(emulated=self.emulated)
        said = [f"rank {self.rank}"]
        said += [f"{key} {value}" for key in ("provider", "layout") if (value := getattr(self, key))]
        skipped = {"profiles", "emulated"}
        if self.numerics.activation == "none":
            skipped |= {"activation_profile", "hidden"}
        for field in fields(Numerics):
            value, usual = getattr(self.numerics, field.name), getattr(plain, field.name)
            if value != usual and field.name not in skipped:
                text = " to ".join(map(str, value)) if isinstance(value, tuple) else value
                said.append(f"{field.name.replace('_', ' ')} {text}")
        return ", ".join(said)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        numerics = None if self.numerics is None else asdict(self.numerics)
        if numerics is not None:
            numerics["profiles"] = sorted(numerics["profiles"])
            numerics["scale_bytes"] = list(numerics["scale_bytes"])
        return asdict(self) | {"numerics": numerics}

    def __str__(self) -> str:
        line = f"{self.name:<12} {self.status:<13} {self.reason}"
        return line.rstrip() + (f" -> {self.fix}" if self.fix else "")


@dataclass(frozen=True)
class Selection:
    """The choice and everything that led to it.

    Attributes:
        choice: the backend, None if there is none (only from ``explain``).
        trace: the verdict on each backend, by name.
        problem: what was asked, with the options of the choice.
        reason: why this one, or why none.
        fix: what to do where there is no choice.
        fallback: the choice is the one that was named as ``fallback``.
    """

    choice: Backend | None
    trace: tuple[Candidate, ...]
    problem: Problem
    reason: str
    fix: str = ""
    fallback: bool = False

    @property
    def backend(self) -> Backend:
        """The choice. Raises BackendError, with the trace, if there is none."""
        if self.choice is None:
            raise self.error()
        return self.choice

    @property
    def answer(self) -> Candidate | None:
        """The line of the choice, None if there is none."""
        name = None if self.choice is None else self.choice.name
        return next((line for line in self.trace if line.name == name), None)

    @property
    def temporary_bytes(self) -> int:
        """Memory that one call of the choice needs; 0 if there is none."""
        return 0 if self.answer is None else self.answer.temporary_bytes

    @property
    def numerics(self) -> Numerics | None:
        """What the choice computes for this problem, ``activation`` never open; None if there is no choice."""
        return None if self.answer is None else self.answer.numerics

    def error(self) -> BackendError:
        """Build the error that says why there is no choice."""
        return BackendError(
            f"no backend for {self.problem}",
            seen="\n        ".join([self.reason, *map(str, self.trace)]),
            rule="a backend must accept the problem, and be named, or be the first that is automatic on the device",
            fix=self.fix,
        )

    def to_dict(self) -> dict[str, object]:
        """Return plain data for JSON."""
        return {
            "problem": str(self.problem),
            "choice": self.choice.name if self.choice else None,
            "reason": self.reason,
            "fallback": self.fallback,
            "temporary_bytes": self.temporary_bytes,
            "trace": [candidate.to_dict() for candidate in self.trace],
        }

    def __str__(self) -> str:
        return "\n".join([f"{self.problem}: {self.reason}", *(f"  {line}" for line in self.trace)])


__all__ = ["Candidate", "Selection", "Status"]
