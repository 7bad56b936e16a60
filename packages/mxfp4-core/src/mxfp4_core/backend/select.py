"""Choose a backend, and say why: every choice comes with the verdict of every backend, installed or known.

The order is fixed:

1. A backend that the caller names is taken if it accepts, wherever it runs.
2. Otherwise, of those that accept and may be chosen unnamed on this type of device (``automatic_on``), one
   that computes on the codes comes before one that widens the weights (``numerics.emulated``), then the names
   decide, in alphabetical order.
3. Otherwise the backend that the caller named as ``fallback`` is taken if it accepts and its memory fits.
4. Otherwise it is an error, which prints the whole table. Nothing is ever taken silently instead.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from mxfp4_core.backend.answers import No, Yes
from mxfp4_core.backend.device import Device, free_bytes
from mxfp4_core.backend.problem import Problem
from mxfp4_core.backend.protocol import Backend, verdict
from mxfp4_core.backend.registry import Plugin, installed
from mxfp4_core.errors import BackendError

Status = Literal["accepted", "rejected", "broken", "not installed"]


@dataclass(frozen=True)
class Known:
    """A backend of this project that may not be installed, and the devices it is for."""

    distribution: str
    device: str
    archs: tuple[str, ...]

    def fits(self, device: Device) -> bool:
        """Say whether installing it could help on ``device``; an unknown architecture counts as possible."""
        known_arch = device.arch != "unknown"
        return device.type == self.device and (not known_arch or device.arch.lower().startswith(self.archs))


KNOWN = {
    "cuda-marlin": Known("mxfp4-cuda-marlin", "cuda", ("sm_90",)),
    "npu": Known("mxfp4-npu", "npu", ("",)),
    "petit": Known("mxfp4-petit", "hip", ("gfx90a", "gfx942")),
    "rocm": Known("mxfp4-rocm", "hip", ("gfx95",)),
}


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
    """

    name: str
    status: Status
    reason: str = ""
    fix: str = ""
    distribution: str = ""
    automatic: bool = False
    emulated: bool = False
    temporary_bytes: int = 0

    def __str__(self) -> str:
        line = f"{self.name:<12} {self.status:<13} {self.reason}"
        return line.rstrip() + (f" -> {self.fix}" if self.fix else "")


@dataclass(frozen=True)
class Selection:
    """The choice and everything that led to it.

    Attributes:
        choice: the backend, None if there is none (only from ``explain``).
        trace: the verdict on each backend, by name.
        problem: what was asked.
        reason: why this one, or why none.
        fix: what to do where there is no choice.
        fallback: the choice is the one that was named as ``fallback``.
        temporary_bytes: memory that one call of the choice needs.
    """

    choice: Backend | None
    trace: tuple[Candidate, ...]
    problem: Problem
    reason: str
    fix: str = ""
    fallback: bool = False
    temporary_bytes: int = 0

    @property
    def backend(self) -> Backend:
        """The choice. Raises BackendError, with the trace, if there is none."""
        if self.choice is None:
            raise self.error()
        return self.choice

    def error(self) -> BackendError:
        """Build the error that says why there is no choice."""
        return BackendError(
            f"no backend for {self.problem}",
            seen="\n        ".join([self.reason, *map(str, self.trace)]),
            rule="a backend must accept the problem, and be automatic on the device or named",
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
            "trace": [asdict(candidate) for candidate in self.trace],
        }

    def __str__(self) -> str:
        return "\n".join([f"{self.problem}: {self.reason}", *(f"  {line}" for line in self.trace)])


def default_problem() -> Problem:
    """Return the question asked where none is given: an ordinary bfloat16 linear on the current device."""
    return Problem(op="linear", n=4096, k=4096)


def select_backend(
    problem: Problem | None = None, *, name: str | None = None, fallback: str | None = None
) -> Selection:
    """Choose the backend for ``problem`` by the order in this module's first lines.

    Args:
        problem: what is to be computed; an ordinary linear on the current device if None.
        name: take this backend or fail (or use ``fallback``).
        fallback: the backend to take, knowingly, if no other does.

    Returns:
        A selection whose ``choice`` is a backend.

    Raises:
        BackendError: none accepts; the message holds the verdict of each.
    """
    selection = explain(problem, name=name, fallback=fallback)
    if selection.choice is None:
        raise selection.error()
    return selection


def explain(
    problem: Problem | None = None, *, name: str | None = None, fallback: str | None = None
) -> Selection:
    """Do the same as ``select_backend``, but return a selection without a choice instead of raising.

    Raises:
        BackendError: ``name`` or ``fallback`` is no backend that is installed or known.
    """
    problem = default_problem() if problem is None else problem
    plugins = installed()
    for asked in filter(None, (name, fallback)):
        if asked not in plugins and asked not in KNOWN:
            raise unknown_name(asked, [*plugins, *KNOWN])
    answers = [_ask(plugin, problem) for plugin in plugins.values()]
    absent = [
        missing_line(key, known)
        for key, known in KNOWN.items()
        if key not in plugins and (known.fits(problem.device) or key in (name, fallback))
    ]
    trace = tuple(sorted([*(line for _, line in answers), *absent], key=lambda line: line.name))
    accepted = {line.name: (backend, line) for backend, line in answers if backend is not None}

    if name in accepted:
        return _chosen(accepted[name], trace, problem, "named by the caller")
    if name is not None:
        line = next(line for line in trace if line.name == name)
        why, fix = f"{name!r} was named and is {line.status}", line.fix
    else:
        automatic = sorted((pair for pair in accepted.values() if pair[1].automatic), key=_order)
        if automatic:
            rest = ", ".join(line.name for _, line in automatic[1:])
            why = f"before {rest}" if rest else f"the only one that is automatic on {problem.device.type}"
            return _chosen(automatic[0], trace, problem, why)
        why = "; ".join(
            [
                "none accepts that may be chosen unnamed",
                *(f"{key!r} would if it were named" for key in accepted),
            ]
        )
        fixes = [line.fix for line in absent] + [f"name one: {key!r}" for key in accepted]
        fix = ", or ".join(fixes) or next(
            (line.fix for line in trace if line.fix), "install a backend for this device"
        )
    if fallback is None:
        return Selection(None, trace, problem, why, fix)
    return _fall_back(accepted.get(fallback), fallback, trace, problem, why, fix)


def missing_line(name: str, known: Known) -> Candidate:
    """Return the line of the trace for a backend of this project that is not installed."""
    made = " ".join(filter(None, ("made for", known.device, "/".join(known.archs))))
    # By name alone pip would take whatever a stranger has put under it on PyPI.
    advice = f"install {known.distribution}, which is not on PyPI yet: see docs/backends.md"
    return Candidate(name, "not installed", made, advice)


def _fall_back(
    pair: tuple[Backend, Candidate] | None,
    name: str,
    trace: tuple[Candidate, ...],
    problem: Problem,
    why: str,
    fix: str,
) -> Selection:
    if pair is None:
        return Selection(None, trace, problem, f"{why}; the fallback {name!r} does not accept either", fix)
    need, free = pair[1].temporary_bytes, free_bytes(problem.device)
    cost = f"costs {_size(need)} of temporary memory in each call"
    if free is not None:
        cost += f", {_size(free)} is free"
        if need > free:
            return Selection(
                None, trace, problem, f"{why}; the fallback {name!r} {cost}: it does not fit", fix
            )
    chosen = _chosen(pair, trace, problem, f"{why}; fallback to {name!r}, which {cost}")
    return replace(chosen, fallback=True)


def _ask(plugin: Plugin, problem: Problem) -> tuple[Backend, Candidate] | tuple[None, Candidate]:
    loaded = plugin.load()
    if isinstance(loaded, No):
        return None, Candidate(plugin.name, "broken", loaded.reason, loaded.fix, plugin.distribution)
    line = Candidate(
        plugin.name,
        "accepted",
        distribution=plugin.distribution,
        automatic=problem.device.type in loaded.automatic_on,
        emulated=loaded.numerics.emulated,
    )
    try:
        answer = verdict(loaded, problem)
        if not isinstance(answer, Yes | No):
            raise TypeError(f"supports returned {type(answer).__name__}, neither Yes nor No")
    except Exception as error:  # one broken plug-in must not take the choice away from the others
        reason = f"supports raised {type(error).__name__}: {error} ({plugin.distribution})"
        return None, replace(line, status="broken", reason=reason, fix=plugin.advice)
    if isinstance(answer, No):
        return None, replace(line, status="rejected", reason=answer.reason, fix=answer.fix)
    note = answer.note if line.automatic else f"only when named; {answer.note}".removesuffix("; ")
    return loaded, replace(line, reason=note, temporary_bytes=answer.temporary_bytes)


def _chosen(
    pair: tuple[Backend, Candidate], trace: tuple[Candidate, ...], problem: Problem, why: str
) -> Selection:
    return Selection(pair[0], trace, problem, why, temporary_bytes=pair[1].temporary_bytes)


def _order(pair: tuple[Backend, Candidate]) -> tuple[bool, str]:
    return pair[1].emulated, pair[1].name


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def unknown_name(name: str, names: Sequence[str]) -> BackendError:
    """Build the error for a name that is none of ``names``, with a near miss."""
    near = difflib.get_close_matches(name, names, n=1)
    return BackendError(
        f"backend {name!r}",
        seen=f"installed or known: {', '.join(sorted(set(names)))}",
        rule="a backend is named as its package registers it in the entry-point group mxfp4.backends",
        fix=f"did you mean {near[0]!r}?"
        if near
        else "run `mxfp4 doctor` to see the backends, or install its package",
    )


__all__ = ["KNOWN", "Candidate", "Known", "Selection", "default_problem", "explain", "select_backend"]
