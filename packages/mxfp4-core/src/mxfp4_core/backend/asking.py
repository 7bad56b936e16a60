"""How the core asks a backend: with the checks and the defaults that the backend need not repeat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mxfp4_core.backend.answers import No, Numerics, Rank, Verdict, Yes
from mxfp4_core.backend.choices import Choice
from mxfp4_core.backend.compiled import Kernels
from mxfp4_core.backend.options import Value, check_keys
from mxfp4_core.backend.problem import Problem, missing_words
from mxfp4_core.backend.protocol import Backend
from mxfp4_core.errors import BackendError


def verdict(backend: Backend, problem: Problem) -> Verdict:
    """Ask a backend about a problem, after the check that it knows every word of it.

    Returns:
        Its answer. A `Yes` is complete: it has numerics, with the activation that is used, and a rank.

    Raises:
        BackendError: it answers with another activation than the problem asks for.
        Exception: whatever a broken ``supports`` raises; ``select.py`` turns it into a line of the trace.
    """
    if unknown := missing_words(problem, backend.features):
        return No(f"does not offer {', '.join(unknown)}", "name another backend, or ask without it")
    answer = backend.supports(problem)
    if not isinstance(answer, Yes):
        return answer
    numerics = answer.numerics or backend.numerics
    asked = None if problem.activation == "auto" else problem.activation
    used = numerics.activation or asked or "none"
    if asked is not None and used != asked:
        raise BackendError(
            f"backend {backend.name!r}",
            seen=f"activation {used!r} in its answer to {problem}",
            rule="an answer has the activation that the problem asks for; only 'auto' leaves the choice to the backend",
            fix="leave Numerics.activation out where the problem names one, or refuse the problem",
        )
    if numerics.activation is None:
        numerics = replace(numerics, activation=used)
    rank = answer.rank
    if rank is None:
        rank = Rank.EMULATED if numerics.emulated else Rank.NATIVE
    return replace(answer, numerics=numerics, rank=int(rank))


def numerics_for(backend: Backend, problem: Problem) -> Numerics:
    """Return what a backend computes for a problem that it accepts, with the activation that is used.

    Raises:
        BackendError: it does not accept.
    """
    answer = verdict(backend, problem)
    if isinstance(answer, No) or answer.numerics is None:
        refused = answer if isinstance(answer, No) else No("no numerics", "report this")
        raise BackendError(
            f"numerics of {backend.name!r}",
            seen=refused.reason,
            rule=f"the backend accepts {problem}",
            fix=refused.fix,
        )
    return answer.numerics


def check_options(backend: Backend, options: Mapping[str, Value]) -> None:
    """Let a backend check the options that a config gives it; one without this member has none.

    Raises:
        ConfigError: an option or a value that it does not know.
    """
    member = getattr(backend, "check_options", None)
    if member is None:
        check_keys(backend.name, options, ())
    else:
        member(options)


def packages_of(backend: Backend) -> tuple[str, ...]:
    """Return the packages whose versions matter to a backend; empty if it was written without this member."""
    return tuple(getattr(backend, "packages", ()))


def kernels_of(backend: Backend) -> Kernels | None:
    """Return what a backend compiles on this machine, None if nothing, or if it was written without this member.

    Raises:
        BackendError: the compiler is missing.
    """
    member = getattr(backend, "kernels", None)
    found: Kernels | None = None if member is None else member()
    return found


def choices_of(backend: Backend, problem: Problem) -> tuple[Choice, ...]:
    """Return the table of choices of a backend for a problem that it accepts; empty if it has none."""
    member = getattr(backend, "choices", None)
    return () if member is None else tuple(member(problem))


__all__ = ["check_options", "choices_of", "kernels_of", "numerics_for", "packages_of", "verdict"]
