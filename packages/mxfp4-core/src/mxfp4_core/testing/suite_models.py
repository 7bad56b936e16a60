"""The conformance suite of model providers: subclass it, name the provider, give it examples, and run pytest.

    class TestMine(ModelProviderConformance):
        provider_name = "mine"
        examples = {
            "toy": ModelExample(
                {"model_type": "toy"},
                {"emb.weight": ("BF16", (96, 64)), "up.weight": ("BF16", (128, 64))},
                {"emb.weight": "embedding", "up.weight": "linear"},
            )
        }

An example is a config.json, the headers of a checkpoint that belongs to it, and what some of its tensors are.
"""

from __future__ import annotations

import copy
import pickle
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn

import pytest

from mxfp4_core.config import Mxfp4Config
from mxfp4_core.naming import Headers, ModelProvider, ModelView, Resolver, load_provider

KEPT = ("embedding", "norm", "convolution", "other")
"""Kinds that can never be MXFP4."""

STRANGERS: Mapping[str, Mapping[str, Any]] = {
    "empty": {},
    "unknown type": {"model_type": "mxfp4_suite_no_such_model", "architectures": ["NoSuchModel"]},
    "type of numbers": {"model_type": 7, "architectures": 7},
    "no type": {"model_type": None, "architectures": []},
    "odd sections": {"model_type": ["a"], "text_config": "none", "architectures": [None]},
}
"""Configs that no provider knows."""


@dataclass(frozen=True)
class ModelExample:
    """A model that the provider must know.

    Attributes:
        config: contents of config.json.
        headers: the tensors of a checkpoint in high precision that belongs to it.
        kinds: what some of these tensors are, by name.
        k_first: names of tensors that the checkpoint holds with K before N, all of them.
    """

    config: Mapping[str, Any]
    headers: Headers
    kinds: Mapping[str, str]
    k_first: frozenset[str] = field(default_factory=frozenset[str])


class ModelProviderConformance:
    """Everything that a model provider must be right about.

    Attributes:
        provider_name: name of its entry point in the group ``mxfp4.models``.
        examples: models that it must know, by any name.
    """

    provider_name: ClassVar[str]
    examples: ClassVar[Mapping[str, ModelExample]]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run the tests of an example for each of them."""
        if "example" in metafunc.fixturenames:
            metafunc.parametrize("example", self.examples.values(), ids=list(self.examples))

    @pytest.fixture
    def provider(self) -> ModelProvider:
        """The provider under test, from its entry point."""
        return load_provider(self.provider_name)

    @pytest.mark.parametrize("stranger", STRANGERS)
    def test_provider_leaves_strangers_to_others(self, provider: ModelProvider, stranger: str) -> None:
        """A config that is not its own gives None, and no error."""
        assert provider.describe(STRANGERS[stranger], {"a.weight": ("BF16", (64, 64))}) is None

    def test_provider_knows_its_examples(self, provider: ModelProvider, example: ModelExample) -> None:
        """Each tensor is what it is, and its axes are where they are."""
        view = known(provider, example)
        assert view.provider and view.model
        unknown = [name for name in example.headers if name not in view.tensors]
        assert not unknown, f"tensors with no place in the model: {unknown[:5]}"
        found = {name: [each.kind for each in view.find(name)] for name in example.kinds}
        lost = [name for name, kinds in found.items() if not kinds]
        assert not lost, f"weights of the model that the view does not know: {lost[:5]}"
        assert {name: kinds[0] for name, kinds in found.items()} == dict(example.kinds)
        assert {name for name, stored in view.tensors.items() if stored.k_first} == example.k_first

    def test_provider_gives_logical_shapes(self, provider: ModelProvider, example: ModelExample) -> None:
        """A tensor that is a whole parameter has its values, with K last but where the file holds K first."""
        view = known(provider, example)
        pieces: dict[str, int] = {}
        for stored in view.tensors.values():
            for name in stored.parameters:
                pieces[name] = pieces.get(name, 0) + 1
        for stored in view.tensors.values():
            shape, parameter = example.headers[stored.name][1], view.parameters[stored.parameters[0]]
            if len(stored.parameters) > 1 or pieces[parameter.name] > 1 or len(shape) != len(parameter.shape):
                continue
            turned = (*shape[:-2], shape[-1], shape[-2]) if stored.k_first else shape
            assert parameter.shape == turned, f"{stored.name}: {parameter.shape}, the file has {shape}"

    def test_provider_lists_what_is_there(self, provider: ModelProvider, example: ModelExample) -> None:
        """No tensor is listed that the checkpoint has not, nor one that the model does not load."""
        view = provider.describe(
            example.config, {**example.headers, "mxfp4_suite.stranger.weight": ("BF16", (64, 64))}
        )
        assert view is not None and set(view.tensors) <= set(example.headers)

    def test_provider_is_deterministic(self, provider: ModelProvider, example: ModelExample) -> None:
        """The same question gives the same answer, whatever the order of the tensors; nothing given is changed."""
        config, headers = copy.deepcopy(dict(example.config)), dict(example.headers)
        first = provider.describe(config, headers)
        assert config == example.config and headers == example.headers, "describe() changed what it was given"
        assert provider.describe(config, dict(reversed(headers.items()))) == first

    def test_provider_gives_plain_data(self, provider: ModelProvider, example: ModelExample) -> None:
        """A view survives pickling: workers and reports get it."""
        view = known(provider, example)
        assert pickle.loads(pickle.dumps(view)) == view

    def test_provider_ties_both_ways(self, provider: ModelProvider, example: ModelExample) -> None:
        """What is tied names another parameter, which is tied as well and has the same shape."""
        view = known(provider, example)
        for name, parameter in view.parameters.items():
            if parameter.tied_to:
                other = view.parameters.get(parameter.tied_to)
                assert other is not None and other.name != name, f"{name} is tied to {parameter.tied_to}"
                assert other.tied_to and other.shape == parameter.shape, f"{name} and {other.name} are tied"

    def test_provider_needs_no_network_and_no_foreign_code(
        self,
        provider: ModelProvider,
        example: ModelExample,
        tmp_path: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """It describes a model without a connection, and code that a config.json names is not run."""

        def refuse(*args: object, **keywords: object) -> NoReturn:
            raise AssertionError("describe() opened a connection")

        proof = tmp_path / "run"
        (tmp_path / "mxfp4_suite_code.py").write_text(f"open({str(proof)!r}, 'w').close()\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.chdir(tmp_path)
        for function in ("connect", "connect_ex"):
            monkeypatch.setattr(socket.socket, function, refuse)
        code = {"auto_map": {"AutoModel": "mxfp4_suite_code.Model", "AutoConfig": "mxfp4_suite_code.Config"}}
        view = provider.describe({**example.config, **code, "trust_remote_code": True}, example.headers)
        assert view is not None and view.tensors == known(provider, example).tensors
        assert not proof.exists(), "describe() ran code that config.json names"

    def test_provider_decides_for_the_resolver(self, provider: ModelProvider, example: ModelExample) -> None:
        """By the defaults its linears and experts can become MXFP4, and nothing that is no matrix can."""
        view = known(provider, example)
        resolver = Resolver.for_model(Mxfp4Config(), example.config, view=view)
        decisions = resolver.decide_all((name, shape) for name, (_, shape) in example.headers.items())
        quantized = {found.name for found in decisions if found.quantize}
        kinds = {name: [each.kind for each in view.find(name)] for name in example.headers}
        wrong = [name for name in quantized if any(kind in KEPT for kind in kinds[name])]
        assert not wrong, f"kept kinds that became MXFP4: {wrong[:5]}"
        assert quantized or not any(
            kind in ("linear", "experts") for each in kinds.values() for kind in each
        ), "linears, and none of them becomes MXFP4"


def known(provider: ModelProvider, example: ModelExample) -> ModelView:
    """Return the view of an example."""
    view = provider.describe(example.config, example.headers)
    assert view is not None, f"{provider.name} does not know {example.config.get('model_type')!r}"
    return view


__all__ = ["KEPT", "STRANGERS", "ModelExample", "ModelProviderConformance"]
