"""Names of profiles, and the registry."""

import pytest
import torch

from mxfp4_core.arithmetic.profiles import profiles, resolve
from mxfp4_core.errors import ConfigError

PUBLIC = [
    "compressed-tensors",
    "quark",
    "torchao-floor",
    "torchao-ceil",
    "torchao-even",
    "torchao-rceil",
    "aiter-triton",
    "aiter-triton-0.1.7",
    "aiter-hip",
    "vllm",
    "triton-kernels",
    "triton-kernels-old",
    "modelopt",
    "deepgemm",
    "tilekernels",
    "gguf",
    "msmodelslim",
    "auto-round",
]


def test_public_names() -> None:
    assert list(profiles()) == PUBLIC


def test_the_registry_is_read_only() -> None:
    with pytest.raises(TypeError):
        profiles()["mine"] = resolve()  # type: ignore[index]


@pytest.mark.parametrize("name", [*PUBLIC, "even/even", "ceil_d(7.25)/away", "floor/zero"])
def test_names_resolve_to_themselves(name: str) -> None:
    assert resolve(name).name == name


def test_pairs_and_options_agree() -> None:
    assert resolve("rceil/zero") == resolve(rule="rceil", ties="zero")
    assert resolve() == resolve("even/even")


@pytest.mark.parametrize("name", ["even", "Quark", "quark/even", "even/up", "/", "even/", "torchao"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(ConfigError):
        resolve(name)


def test_near_misses() -> None:
    with pytest.raises(ConfigError, match="did you mean 'torchao-floor'"):
        resolve("torchao-flor")
    with pytest.raises(ConfigError, match="did you mean rule='even'"):
        resolve("even")


@pytest.mark.parametrize("name", PUBLIC)
def test_peers_say_who_they_are(name: str) -> None:
    assert profiles()[name].peer


def test_own_profiles_stay_between_1_and_254() -> None:
    extremes = torch.tensor([2.0**-149, 3.4028234663852886e38], dtype=torch.float64)
    for rule, largest in (("floor", 252), ("even", 253), ("rceil", 253), ("ceil", 253)):
        assert resolve(rule=rule).scale(extremes, torch.float32)[0].tolist() == [1, largest]
