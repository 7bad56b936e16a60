"""Whether a backend takes the shapes that one rank runs: asked once for each distinct shape, before any load."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mxfp4_core.arithmetic.formats import registry as formats
from mxfp4_core.backend.device import Device
from mxfp4_core.backend.problem import SILU, Gate, Problem
from mxfp4_core.backend.select import explain, lacks_activation
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.errors import Mxfp4Error
from mxfp4_core.naming.decision import Decision
from mxfp4_core.naming.facts import ModelFacts
from mxfp4_core.naming.families import gate_of
from mxfp4_core.naming.view import ModelView, Parameter
from mxfp4_core.naming.vocabulary import ExpertName, module_of, operator_of, parse_expert
from mxfp4_core.parallel.shards import Shard


@dataclass(frozen=True)
class Fit:
    """What a backend says about one shape.

    Attributes:
        question: the operator with its sizes on one rank.
        modules: modules of the model that ask it.
        backend: who would run it, None if nobody.
        reason: why this backend.
        runs: whose kernels would run, and what the backend says about them; may be empty.
        n: output features after padding; the intermediate size for experts.
        k: input features after padding.
        padding_bytes: what padding adds on one rank, over all modules.
        refusal: why nobody runs it, with what to do; None if somebody does.
    """

    question: str
    modules: tuple[str, ...]
    backend: str | None
    reason: str
    runs: str = ""
    n: int = 0
    k: int = 0
    padding_bytes: int = 0
    refusal: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "question": self.question,
            "modules": list(self.modules),
            "backend": self.backend,
            "reason": self.reason,
            "runs": self.runs,
            "physical": {"n": self.n, "k": self.k} if self.backend else None,
            "padding_bytes": self.padding_bytes,
            "refusal": self.refusal,
        }


def biased(names: Iterable[str]) -> frozenset[str]:
    """Return the modules that have a bias; for stacked experts the ``experts`` module."""
    found = set()
    for name in names:
        module = name.removesuffix(".bias") if name.endswith(".bias") else name.removesuffix("_bias")
        if module != name:
            expert = parse_expert(module)
            found.add(expert.prefix if expert else module)
    return frozenset(found)


def fits(
    shards: Mapping[str, Shard | None],
    biases: frozenset[str],
    facts: ModelFacts,
    config: Mxfp4Config,
    backend: str,
    device: Device,
    decisions: Mapping[str, Decision],
    view: ModelView | None = None,
) -> Iterator[Fit]:
    """Ask a backend about every distinct shape.

    Args:
        shards: quantised weights by name, each with what one rank holds; None makes its module unasked.
        biases: modules with a bias, from ``biased``.
        facts: experts per token and the kind of model.
        config: the fallback, and options for backends.
        backend: who is asked.
        device: where it would run.
        decisions: what each weight becomes, and how its activations are to be quantised, by name.
        view: what a model provider says about gates and experts per token; the table of families and config.json
            where none does.

    Raises:
        BackendError: no backend has that name.
    """
    questions: dict[Problem, list[str]] = {}
    operators = _operators(shards, biases, decisions, view)
    for module, problem in _problems(operators, facts, device):
        questions.setdefault(problem, []).append(module)
    asked: dict[str, Any] = {
        "backend": backend,
        "fallback": config.fallback,
        "backend_options": config.backend_options,
    }
    for problem, modules in questions.items():
        selection = explain(problem, **asked)
        fit = Fit(str(problem), tuple(modules), None, selection.reason)
        if selection.choice is None and view is not None and (words := lacks_activation(problem, **asked)):
            own = f"{backend!r} does not offer {words}"
            yield replace(fit, reason=own, runs="widened in each call, by the code of the library")
            continue
        if selection.choice is None:
            where = modules[0] if len(modules) == 1 else f"{modules[0]} and {len(modules) - 1} more"
            verdict = next((line for line in selection.trace if line.name == backend), None)
            why = verdict.reason if verdict and verdict.reason else selection.reason
            yield replace(
                fit, refusal=f"{where}: backend {backend!r} refuses {problem}: {why}; {selection.fix}"
            )
            continue
        from mxfp4_core.backend.calls import alignment

        try:
            n, k = alignment(selection.choice, selection.problem).physical(problem.n, problem.k)
        except Mxfp4Error as error:
            yield replace(fit, refusal=f"{modules[0]}: {error.what}: {error.seen}; {error.rule}; {error.fix}")
            continue
        extra = _nbytes(problem, n, k) - _nbytes(problem, problem.n, problem.k)
        name, answer = selection.choice.name, selection.answer
        said = [] if answer is None else [answer.provider, answer.reason.removeprefix("only when named; ")]
        yield replace(
            fit,
            backend=name,
            runs=": ".join(filter(None, said)),
            n=n,
            k=k,
            padding_bytes=extra * len(modules),
        )


def _nbytes(problem: Problem, n: int, k: int) -> int:
    form = formats.get(problem.format)
    if problem.op != "moe":
        return form.nbytes((n, k))
    return form.nbytes((problem.experts, problem.gate.rows * n, k)) + form.nbytes((problem.experts, k, n))


def _gate(facts: ModelFacts, told: Gate | None) -> Gate:
    """Return the gate of the family's experts; a clamp that config.json states replaces that of the table."""
    if told is not None:
        return told
    known = gate_of(facts.model_type)
    if known is None:
        return SILU if facts.limit is None else replace(SILU, limit=facts.limit)
    return replace(known, limit=known.limit and (facts.limit or known.limit))


def _ungated(expert: ExpertName, known: Sequence[Parameter]) -> bool:
    """Say whether a weight is the first of experts without a gate, as the model's library says it."""
    gates = [each.gate for each in known] if "up_proj" in expert.parts else []
    return any(gate is not None and not gate.gated for gate in gates)


@dataclass
class _Operator:
    """What was found of the weights of a module that an engine runs as one operator.

    Attributes:
        decision: about its weights.
        bias: whether it has one.
        cut: whether a weight of it cannot be cut for the ranks, so that nothing is asked.
        linear: of a linear: all rows that are fused into it.
        first: of experts: the first weight.
        parts: how many weights of an expert the first one holds.
        known: of experts: what a model provider says about the first weight.
    """

    decision: Decision
    bias: bool = False
    cut: bool = False
    linear: Shard | None = None
    first: Shard | None = None
    parts: int = 1
    known: Parameter | None = None


def _operators(
    shards: Mapping[str, Shard | None],
    biases: frozenset[str],
    decisions: Mapping[str, Decision],
    view: ModelView | None,
) -> dict[str, _Operator]:
    """Gather weights by the module that an engine runs as one operator."""
    found: dict[str, _Operator] = {}
    for name, shard in shards.items():
        known = view.find(name) if view is not None else ()
        if any(each.held for each in known):
            continue  # the library's own code computes with it, so no backend is asked
        module = module_of(name)
        expert = parse_expert(module)
        whole = operator_of(module)
        operator = found.setdefault(whole, _Operator(decisions[name]))
        operator.decision = decisions[name]
        operator.bias |= module in biases or whole in biases
        if shard is None:
            operator.cut = True
        elif expert is None:
            before = operator.linear
            operator.linear = replace(shard, n=shard.n + before.n) if before else shard
        elif operator.first is None and ("gate_proj" in expert.parts or _ungated(expert, known)):
            operator.first, operator.parts = shard, len(expert.parts)
            operator.known = known[0] if known else None
    return {module: operator for module, operator in found.items() if not operator.cut}


def _problems(
    operators: Mapping[str, _Operator], facts: ModelFacts, device: Device
) -> Iterator[tuple[str, Problem]]:
    """Yield every module that an engine runs as one operator, with what it asks: linears, then experts."""
    for module, operator in operators.items():
        if (shard := operator.linear) is not None:
            yield (
                module,
                Problem(
                    op="linear",
                    n=shard.n,
                    k=shard.k,
                    bias=operator.bias,
                    activation=operator.decision.activation,
                    device=device,
                    format=operator.decision.format,
                ),
            )
    for prefix, operator in operators.items():
        if (shard := operator.first) is None:
            continue
        known = operator.known
        total = facts.experts or shard.experts or 1
        held = shard.experts or max(total // shard.ranks, 1)
        top_k = (known.top_k if known else 0) or facts.top_k or 1
        yield (
            prefix,
            Problem(
                op="moe",
                n=shard.n // operator.parts,
                k=shard.k,
                experts=held,
                total_experts=max(total, held),
                top_k=min(top_k, max(total, held)),
                gate=_gate(facts, known.gate if known else None),
                bias=operator.bias,
                activation=operator.decision.activation,
                device=device,
                format=operator.decision.format,
            ),
        )


__all__ = ["Fit", "biased", "fits"]
