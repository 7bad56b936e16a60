"""Model providers: who is asked, what a broken one does, and what a resolver makes of the answer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mxfp4_core._plugins import Plugin
from mxfp4_core.config import Mxfp4Config
from mxfp4_core.errors import ConfigError, ModelError, PatternError
from mxfp4_core.naming import CheckpointTensor, ModelView, Parameter, Resolver, check_belongs, describe
from mxfp4_core.naming.orientation import k_first
from mxfp4_core.naming.providers import installed_providers

Install = Callable[..., None]
CONFIG = {"model_type": "toy"}


def view(provider: str = "toys 1.0") -> ModelView:
    """Return a model with an embedding by an odd name, a fused projection and experts under another name."""
    parameters = [
        Parameter("code.weight", "embedding", (96, 64), "Embedding"),
        Parameter("out.weight", "head", (96, 64), "Linear"),
        Parameter("layers.0.pick.weight", "router", (4, 64), "Router"),
        Parameter("layers.0.q.weight", "linear", (64, 64), "Linear"),
        Parameter("layers.0.k.weight", "linear", (64, 64), "Linear"),
        Parameter("layers.0.fused.weight", "linear", (128, 64), "Linear"),
        Parameter("layers.0.wo.weight", "linear", (64, 64), "Linear", keep="the model keeps it in float32"),
        Parameter("layers.0.mlp.experts.gate_up_proj", "experts", (4, 64, 64), "Experts"),
        Parameter("layers.0.turned.weight", "linear", (32, 64), "Conv1D", k_first=True),
        Parameter("layers.0.odd_stack", "experts", (4, 64, 64), "Experts"),
    ]
    same = ["code.weight", "out.weight", "layers.0.pick.weight", "layers.0.wo.weight", "layers.0.odd_stack"]
    tensors = [CheckpointTensor(name, (name,)) for name in same]
    tensors += [CheckpointTensor("layers.0.turned.weight", ("layers.0.turned.weight",), k_first=True)]
    tensors += [CheckpointTensor("layers.0.qk.weight", ("layers.0.q.weight", "layers.0.k.weight"))]
    tensors += [CheckpointTensor(f"layers.0.part{n}.weight", ("layers.0.fused.weight",)) for n in (1, 2)]
    tensors += [
        CheckpointTensor(f"layers.0.moe.experts.{n}.{part}.weight", ("layers.0.mlp.experts.gate_up_proj",))
        for n in range(4)
        for part in ("w1", "w3")
    ]
    return ModelView(
        provider, "Toy", {each.name: each for each in parameters}, {each.name: each for each in tensors}
    )


SHAPES: Mapping[str, tuple[int, ...]] = {
    "code.weight": (96, 64),
    "out.weight": (96, 64),
    "layers.0.pick.weight": (4, 64),
    "layers.0.qk.weight": (128, 64),
    "layers.0.part1.weight": (64, 64),
    "layers.0.part2.weight": (64, 64),
    "layers.0.wo.weight": (64, 64),
    "layers.0.turned.weight": (64, 32),
    "layers.0.odd_stack": (4, 64, 64),
    **{f"layers.0.moe.experts.{n}.{part}.weight": (32, 64) for n in range(4) for part in ("w1", "w3")},
}


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return a function that makes objects look like installed providers; what is not given is not installed."""
    found: dict[str, Plugin] = {}

    def one(name: str, provider: object, attribute: str = "provider") -> None:
        module = ModuleType(f"toy_provider_{name}_{len(found)}_{id(provider)}")
        module.provider = provider  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        point = EntryPoint(name, f"{module.__name__}:{attribute}", "mxfp4.models")
        found[name] = Plugin(name, (point,))

    monkeypatch.setattr("mxfp4_core.naming.providers.plugins", lambda group: found)
    return one


def provider(name: str, answer: Any = None) -> SimpleNamespace:
    def say(config: Mapping[str, Any], headers: object) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer if config.get("model_type") == "toy" else None

    return SimpleNamespace(name=name, describe=say)


def test_without_a_provider_the_names_decide_and_it_is_said(install: Install) -> None:
    found = describe(CONFIG, {})
    assert found.view is None
    assert found.source == "kinds by names: no provider for model type toy is installed"
    assert describe({}, {}).source == "kinds by names: there is no config.json"


def test_providers_that_do_not_know_the_model_are_named(install: Install) -> None:
    install("toys", provider("toys"))
    install("more", provider("more"))
    found = describe({"model_type": "other"}, {})
    assert found.source == "kinds by names: no class for model type other in toys, more"


def test_the_one_that_knows_the_model_answers(install: Install) -> None:
    install("toys", provider("toys", view()))
    install("others", provider("others"))
    assert describe(CONFIG, {}).source == "kinds by toys 1.0: Toy"
    assert describe(CONFIG, {}, "toys").view == view()
    assert describe(CONFIG, {}, "none").view is None
    assert installed_providers() == ("toys", "others")


def headers(**changes: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: ("BF16", shape) for name, shape in {**SHAPES, **changes}.items()}


@pytest.mark.parametrize("moved", [False, True])
def test_tensors_that_belong_to_a_model(moved: bool) -> None:
    check_belongs(view(), headers(), moved=moved)
    check_belongs(view(), headers(**{f"extra.{n}": (3,) for n in range(len(SHAPES))}), moved=moved)
    with pytest.raises(ModelError, match="most tensors of a checkpoint are loaded") as caught:
        check_belongs(view(), headers(**{f"extra.{n}": (3,) for n in range(len(SHAPES) + 1)}), moved=moved)
    assert "have no place in it, extra.0 first" in caught.value.seen


@pytest.mark.parametrize(
    ("name", "shape", "exact", "moved"),
    [
        ("out.weight", (97, 64), False, False),
        ("out.weight", (64, 96), False, True),
        ("layers.0.turned.weight", (32, 64), False, True),
        ("layers.0.turned.weight", (64, 33), False, False),
        ("layers.0.odd_stack", (4, 64), False, True),
        ("layers.0.qk.weight", (1, 2), True, True),
        ("layers.0.part1.weight", (1, 2), True, True),
    ],
)
def test_a_tensor_of_another_shape_belongs_to_another_model(
    name: str, shape: tuple[int, ...], exact: bool, moved: bool
) -> None:
    for lenient, fits in ((False, exact), (True, moved)):
        if fits:
            check_belongs(view(), headers(**{name: shape}), moved=lenient)
            continue
        with pytest.raises(ModelError, match="the checkpoint is not one of Toy") as caught:
            check_belongs(view(), headers(**{name: shape}), moved=lenient)
        assert caught.value.seen == f"{name} is {list(shape)}"


def test_two_that_claim_a_model_are_both_named(install: Install) -> None:
    install("toys", provider("toys", view()))
    install("games", provider("games", view("games 2")))
    with pytest.raises(ModelError, match=r"2 providers claim the model type toy") as caught:
        describe(CONFIG, {})
    assert (
        "toys" in caught.value.seen and "games" in caught.value.seen and "--models toys" in caught.value.fix
    )
    assert describe(CONFIG, {}, "games").view == view("games 2")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (provider("bad", RuntimeError("no such file")), r"RuntimeError: no such file"),
        (provider("bad", "llama"), r"returned str"),
        (provider("other"), r"its name is 'other'"),
        (SimpleNamespace(name="bad"), r"has no describe"),
        (ModelView, r"has no describe"),
    ],
)
def test_a_broken_provider_takes_nobody_with_it(install: Install, broken: object, reason: str) -> None:
    install("bad", broken)
    with pytest.raises(ModelError, match=reason) as caught:
        describe(CONFIG, {}, "bad")
    assert "--models none" in caught.value.fix
    alone = describe(CONFIG, {})
    assert alone.view is None and "provider 'bad' cannot say" in alone.source
    install("toys", provider("toys", view()))
    beside = describe(CONFIG, {})
    assert beside.view == view() and "provider 'bad' cannot say" in beside.source


def test_a_provider_that_cannot_be_imported_is_said(install: Install) -> None:
    install("bad", provider("bad"), "nothing")
    assert "provider 'bad' cannot say: importing" in describe(CONFIG, {}).source


def test_two_packages_with_one_name_are_no_provider(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = tuple(EntryPoint("toys", f"toys{number}:provider", "mxfp4.models") for number in (1, 2))
    monkeypatch.setattr("mxfp4_core.naming.providers.plugins", lambda group: {"toys": Plugin("toys", points)})
    with pytest.raises(ModelError, match="more than one distribution registers the name 'toys'"):
        describe(CONFIG, {}, "toys")
    assert "more than one distribution" in describe(CONFIG, {}).source


def test_unknown_names_and_named_providers_that_do_not_know(install: Install) -> None:
    install("toys", provider("toys"))
    with pytest.raises(ConfigError, match="did you mean 'toys'"):
        describe(CONFIG, {}, "toy")
    with pytest.raises(ModelError, match="does not know this model"):
        describe(CONFIG, {}, "toys")


def decided(names: Mapping[str, tuple[int, ...]], **config: Any) -> dict[str, bool]:
    resolver = Resolver.for_model(Mxfp4Config.from_dict(config), CONFIG, view=view())
    return {found.name: found.quantize for found in resolver.decide_all(names.items())}


def test_kinds_decide_where_names_say_nothing() -> None:
    kept = {name for name, quantize in decided(SHAPES).items() if not quantize}
    assert kept == {"code.weight", "out.weight", "layers.0.pick.weight", "layers.0.wo.weight"}
    resolver = Resolver.for_model(Mxfp4Config(), CONFIG, view=view())
    reasons = {name: resolver.decide(name, shape).reason for name, shape in SHAPES.items()}
    assert reasons["code.weight"] == "an embedding is looked up, not multiplied"
    assert reasons["out.weight"] == "the output head of the model, kept by default"
    assert reasons["layers.0.wo.weight"] == "the model keeps it in float32"
    assert resolver.decide("foreign.weight", (64, 64)).reason == "Toy does not load it, kept by default"


def test_an_override_outranks_a_default_and_not_the_nature() -> None:
    forced = {"overrides": [{"pattern": "out", "keep": False}]}
    assert decided(SHAPES, **forced)["out.weight"]
    with pytest.raises(PatternError, match="all that it matches is kept"):
        decided(SHAPES, overrides=[{"pattern": "code", "keep": False}])


@pytest.mark.parametrize(
    "pattern", ["layers.0.moe.experts", "layers.0.mlp.experts", "layers.0.mlp.experts.gate_up_proj"]
)
def test_patterns_hit_in_the_words_of_the_model_and_of_the_file(pattern: str) -> None:
    found = decided(SHAPES, ignore=[pattern])
    assert not any(quantize for name, quantize in found.items() if ".experts." in name)
    assert found["layers.0.qk.weight"]
    model = {name: each.shape for name, each in view().parameters.items()}
    assert not decided(model, ignore=[pattern])["layers.0.mlp.experts.gate_up_proj"]


def test_what_one_side_of_the_file_divides_is_decided_as_one() -> None:
    model = {name: each.shape for name, each in view().parameters.items()}
    for names in (SHAPES, model):
        with pytest.raises(PatternError, match="would be split"):
            decided(names, ignore=["layers.0.q"])
        with pytest.raises(PatternError, match="would be split"):
            decided(names, ignore=["layers.0.part1"])
    assert not decided(SHAPES, ignore=["layers.0.q", "layers.0.k"])["layers.0.qk.weight"]
    assert not decided(model, ignore=["layers.0.qk"])["layers.0.q.weight"]
    assert not decided(SHAPES, ignore=["layers.0.fused"])["layers.0.part2.weight"]


def test_a_stack_by_any_name_is_quantised_under_its_own_name() -> None:
    assert decided(SHAPES)["layers.0.odd_stack"]


def test_the_view_says_which_axis_is_k() -> None:
    assert k_first("layers.0.turned.weight", (64, 32), CONFIG, view())
    assert not k_first("layers.0.qk.weight", (128, 64), CONFIG, view())


def test_a_view_that_does_not_fit_together_is_refused() -> None:
    one = Parameter("a.weight", "linear", (32, 32))
    with pytest.raises(ModelError, match="listed as 'b'"):
        ModelView("toys", "Toy", {"b": one})
    with pytest.raises(ModelError, match="becomes c"):
        ModelView("toys", "Toy", {"a.weight": one}, {"b": CheckpointTensor("b", ("c",))})
    with pytest.raises(ModelError, match="kind 'matrix'"):
        Parameter("a.weight", "matrix", (32, 32))  # type: ignore[arg-type]


def test_a_provider_that_refuses_a_model_of_its_own_is_told_from_a_broken_one(install: Install) -> None:
    def refuse(config: Mapping[str, Any], headers: Any) -> ModelView:
        raise ModelError("it cannot be built", seen="layers = 'two'", rule="a number", fix="correct it")

    install("toys", SimpleNamespace(name="toys", describe=refuse))
    assert describe(CONFIG, {}).refused
    install("toys", SimpleNamespace(name="toys", describe=lambda config, headers: 1 / 0))
    assert not describe(CONFIG, {}).refused
