"""Choose a backend, and say why: every choice comes with the verdict of every backend, installed or known.

The order is fixed:

1. A backend that the caller names is taken if it accepts, wherever it runs.
2. Otherwise, of those that accept and may be chosen unnamed (``automatic_on`` a device, or as their ``Yes`` says), one
   that computes on the codes comes before one that widens the weights (``numerics.emulated``), then the larger
   ``Yes.rank`` wins. Two that stand equal are an error that asks to name one.
3. Otherwise the backend that the caller named as ``fallback`` is taken if it accepts and its memory fits.
4. Otherwise it is an error, which prints the whole table. Nothing is ever taken silently instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mxfp4_core._text import did_you_mean, size_text
from mxfp4_core.arithmetic.formats.registry import get
from mxfp4_core.backend.answers import No, Yes
from mxfp4_core.backend.asking import check_options, verdict
from mxfp4_core.backend.device import free_bytes
from mxfp4_core.backend.options import Options
from mxfp4_core.backend.problem import PLAIN, SILU, Problem
from mxfp4_core.backend.protocol import Backend
from mxfp4_core.backend.registry import Plugin, installed
from mxfp4_core.backend.selection import Candidate, Selection
from mxfp4_core.config.known import KNOWN, Known
from mxfp4_core.errors import BackendError, ConfigError

Accepted = tuple[Backend, Candidate]
BackendOptions = Mapping[str, Mapping[str, object]]
"""Options by the name of the backend that they are for."""


def default_problem() -> Problem:
    """Return the question asked where none is given: an ordinary bfloat16 linear on the current device."""
    return Problem(op="linear", n=4096, k=4096)


def select_backend(
    problem: Problem | None = None,
    *,
    backend: str | None = None,
    fallback: str | None = None,
    backend_options: BackendOptions | None = None,
) -> Selection:
    """Choose the backend for ``problem`` by the order in this module's first lines.

    Args:
        problem: what is to be computed; an ordinary linear on the current device if None.
        backend: take this backend or fail (or use ``fallback``).
        fallback: the backend to take, knowingly, if no other does.
        backend_options: options by the name of the backend that they are for. Options for one backend that is not
            chosen are an error; who lists several means those of the others to wait for another machine.

    Returns:
        A selection whose ``choice`` is a backend.

    Raises:
        BackendError: none accepts, or two stand equal; the message holds the verdict of each.
        ConfigError: options that their backend does not take, or whose backend is not chosen.
    """
    selection = explain(problem, backend=backend, fallback=fallback, backend_options=backend_options)
    if selection.choice is None:
        raise selection.error()
    return selection


def explain(
    problem: Problem | None = None,
    *,
    backend: str | None = None,
    fallback: str | None = None,
    backend_options: BackendOptions | None = None,
) -> Selection:
    """Do the same as ``select_backend``, but return a selection without a choice instead of raising.

    Raises:
        BackendError: ``backend`` or ``fallback`` is no backend that is installed or known.
        ConfigError: as ``select_backend``.
    """
    problem = default_problem() if problem is None else problem
    options = {key: Options(values) for key, values in (backend_options or {}).items()}
    plugins = installed()
    for asked in filter(None, (backend, fallback, *options)):
        if asked not in plugins and asked not in KNOWN:
            raise unknown_name(asked, [*plugins, *KNOWN])
    format = problem.format if problem.format == PLAIN else get(problem.format).of_weight
    answers = [_ask(plugin, problem, options.get(name)) for name, plugin in plugins.items()]
    absent = [
        missing_line(key, known, format)
        for key, known in KNOWN.items()
        if key not in plugins
        and (known.fits(problem.device.type, problem.device.arch, format) or key in (backend, fallback))
    ]
    trace = tuple(sorted([*(line for _, line in answers), *absent], key=lambda line: line.name))
    accepted = {line.name: (found, line) for found, line in answers if found is not None}
    selection = _decide(accepted, absent, trace, problem, backend, fallback)
    if selection.choice is None:
        return selection
    chosen = selection.choice.name
    if len(options) == 1 and not options.keys() & {chosen, backend, fallback}:
        raise _unused_options(next(iter(options)), selection)
    if given := options.get(chosen):
        selection = replace(selection, problem=replace(problem, options=given))
    if problem.activation == "auto" and selection.numerics is not None:
        reason = f"{selection.reason}; activation auto is {selection.numerics.activation}"
        selection = replace(selection, reason=reason)
    return selection


def lacks_activation(problem: Problem, **asked: Any) -> str:
    """Say which words of the activation of experts keep a problem from every backend that would take it with SiLU.

    Where a model has code of its own for its experts, that code can go on then.

    Args:
        problem: a question that `explain` found no backend for.
        **asked: as for `explain`.

    Returns:
        The words; empty where nobody would take it with SiLU either, or where a backend has to round activations.
    """
    if problem.op != "moe" or problem.gate.is_silu or problem.activation not in ("none", "auto"):
        return ""
    usual = replace(problem, gate=replace(SILU, interleaved=problem.gate.interleaved))
    if explain(usual, **asked).choice is None:
        return ""
    return ", ".join(sorted(problem.gate.words - {"rows:interleaved"}))


def _decide(
    accepted: Mapping[str, Accepted],
    absent: Sequence[Candidate],
    trace: tuple[Candidate, ...],
    problem: Problem,
    backend: str | None,
    fallback: str | None,
) -> Selection:
    if backend is not None and backend in accepted:
        return Selection(accepted[backend][0], trace, problem, "named by the caller")
    if backend is not None:
        line = next(line for line in trace if line.name == backend)
        why, fix = f"{backend!r} was named and is {line.status}", line.fix
    else:
        automatic = [pair for pair in accepted.values() if pair[1].automatic]
        if automatic:
            return _first(automatic, trace, problem)
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


def _first(automatic: Sequence[Accepted], trace: tuple[Candidate, ...], problem: Problem) -> Selection:
    order = sorted(automatic, key=lambda pair: pair[1].order, reverse=True)
    best, *rest = order
    equal = [line.name for _, line in order if line.order == best[1].order]
    if len(equal) > 1:
        names = " and ".join(map(repr, equal))
        why = f"{names} accept and have the same rank {best[1].rank}"
        fix = "name one: " + " or ".join(f"backend={name!r}" for name in equal)
        return Selection(None, trace, problem, why, fix)
    others = ", ".join(line.name for _, line in rest)
    why = f"before {others}" if others else f"the only one that is automatic on {problem.device.type}"
    return Selection(best[0], trace, problem, why)


def missing_line(name: str, known: Known, format: str = PLAIN) -> Candidate:
    """Return the line of the trace for a backend of this project that is not installed."""
    made = " ".join(filter(None, ("made for", known.device, "/".join(known.archs))))
    if format in known.others:
        made = f"takes {format} on {' and '.join(known.others[format])}"
    # By name alone pip would take whatever a stranger has put under it on PyPI.
    advice = f"install {known.distribution}, which is not on PyPI yet: see docs/backends.md"
    return Candidate(name, "not installed", made, advice)


def _fall_back(
    pair: Accepted | None,
    name: str,
    trace: tuple[Candidate, ...],
    problem: Problem,
    why: str,
    fix: str,
) -> Selection:
    if pair is None:
        return Selection(None, trace, problem, f"{why}; the fallback {name!r} does not accept either", fix)
    need, free = pair[1].temporary_bytes, free_bytes(problem.device)
    cost = f"costs {size_text(need)} of temporary memory in each call"
    if free is not None:
        cost += f", {size_text(free)} is free"
        if need > free:
            return Selection(
                None, trace, problem, f"{why}; the fallback {name!r} {cost}: it does not fit", fix
            )
    reason = f"{why}; fallback to {name!r}, which {cost}"
    return Selection(pair[0], trace, problem, reason, fallback=True)


def _ask(plugin: Plugin, problem: Problem, options: Options | None) -> Accepted | tuple[None, Candidate]:
    loaded = plugin.load()
    if isinstance(loaded, No):
        return None, Candidate(plugin.name, "broken", loaded.reason, loaded.fix, plugin.distribution)
    device = problem.device
    line = Candidate(
        plugin.name,
        "accepted",
        distribution=plugin.distribution,
        automatic=bool({device.type, f"{device.type}:{device.arch}"} & loaded.automatic_on),
    )
    try:
        if options:
            _check_options(loaded, options)
            problem = replace(problem, options=options)
        answer = verdict(loaded, problem)
        if not isinstance(answer, Yes | No):
            raise TypeError(f"supports returned {type(answer).__name__}, neither Yes nor No")
    except _Refused as refused:
        raise refused.error from None
    except Exception as error:  # one broken plug-in must not take the choice away from the others
        reason = f"supports raised {type(error).__name__}: {error} ({plugin.distribution})"
        return None, replace(line, status="broken", reason=reason, fix=plugin.advice)
    if isinstance(answer, No):
        return None, replace(line, status="rejected", reason=answer.reason, fix=answer.fix)
    if answer.automatic is not None:
        line = replace(line, automatic=answer.automatic)
    note = answer.note if line.automatic else f"only when named; {answer.note}".removesuffix("; ")
    return loaded, replace(
        line,
        reason=note,
        emulated=answer.numerics is not None and answer.numerics.emulated,
        temporary_bytes=answer.temporary_bytes,
        rank=answer.rank or 0,
        provider=answer.provider,
        layout=answer.layout,
        numerics=answer.numerics,
    )


class _Refused(Exception):
    """Options that are the caller's mistake, so that they are not taken for a defect of the plug-in."""

    def __init__(self, error: ConfigError) -> None:
        super().__init__()
        self.error = error


def _check_options(backend: Backend, options: Options) -> None:
    try:
        check_options(backend, options)
    except ConfigError as error:
        raise _Refused(error) from None


def _unused_options(name: str, selection: Selection) -> ConfigError:
    return ConfigError(
        f"backend_options of {name!r}",
        seen=f"{selection.backend.name!r} is chosen: {selection.reason}",
        rule="options for one backend are for the one that runs; who lists options for several means each for its own "
        "machine",
        fix=f"drop them, or name backend={name!r}",
    )


def unknown_name(name: str, names: Sequence[str]) -> BackendError:
    """Build the error for a name that is none of ``names``, with a near miss."""
    return BackendError(
        f"backend {name!r}",
        seen=f"installed or known: {', '.join(sorted(set(names)))}",
        rule="a backend is named as its package registers it in the entry-point group mxfp4.backends",
        fix=did_you_mean(
            name, names, "run `mxfp4 doctor` to see the backends, or install its package", cutoff=0.6
        ),
    )


__all__ = ["KNOWN", "BackendOptions", "Known", "default_problem", "explain", "select_backend"]
