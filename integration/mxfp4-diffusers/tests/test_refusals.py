"""What cannot work is refused with an error that says what to do, before a weight is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import components
import pytest
import torch
from diffusers.quantizers import auto
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin

from mxfp4_core.errors import BackendError, ConfigError, LoadError, Mxfp4Error, NonFiniteError, PatternError
from mxfp4_diffusers import METHOD, Mxfp4Config, Mxfp4Quantizer, compat

Edit = Callable[[Path, dict[str, torch.Tensor | None]], Path]
TO_Q = "transformer_blocks.0.attn.to_q"


def check_parts(error: Mxfp4Error) -> None:
    assert all([error.what, error.seen, error.rule, error.fix])


@pytest.fixture
def _nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Mxfp4Quantizer, "create_quantized_param", lambda *args, **kwargs: pytest.fail("a weight was read")
    )


@pytest.mark.usefixtures("_nothing_is_read")
def test_the_config_of_another_library_is_refused(checkpoints: dict[str, Path]) -> None:
    class Other(QuantizationConfigMixin):  # of mxfp4_transformers, which need not be installed here
        quant_method = METHOD

    Other.__module__ = "mxfp4_transformers.config"
    with pytest.raises(ConfigError, match="mxfp4_diffusers cannot load with this") as found:
        components.load(checkpoints["sd3"], Other(quant_method=METHOD))
    check_parts(found.value)
    assert "pass mxfp4_diffusers.Mxfp4Config" in found.value.fix


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"ignore": ["transformer_blocks.7"]}, PatternError, "match nothing"),
        ({"backend": "cuda-marlin"}, BackendError, "cuda-marlin"),
        ({"ignore": ["transformer_blocks"]}, ConfigError, "nothing is left"),
        ({"rul": "even"}, ConfigError, "rule"),
    ],
)
@pytest.mark.usefixtures("_nothing_is_read")
def test_a_config_that_cannot_be_carried_out(
    settings: dict[str, Any], error: type[Mxfp4Error], match: str, checkpoints: dict[str, Path]
) -> None:
    with pytest.raises(error, match=match) as found:
        components.load(checkpoints["sd3"], Mxfp4Config(**settings))
    check_parts(found.value)


@pytest.mark.usefixtures("_nothing_is_read")
def test_no_backend_shows_the_verdicts_of_all(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(BackendError) as found:
        components.load(checkpoints["sd3"], Mxfp4Config(backend="cuda-marlin"))
    assert "cuda-marlin" in found.value.seen and "reference" in found.value.seen


@pytest.mark.parametrize("last", ["weight", "bias"])
@pytest.mark.usefixtures("_nothing_is_read")
def test_a_checkpoint_that_lacks_something(last: str, checkpoints: dict[str, Path], edited: Edit) -> None:
    with pytest.raises(LoadError, match="lacks tensors") as found:
        components.load(edited(checkpoints["sd3"], {f"{TO_Q}.{last}": None}), Mxfp4Config())
    check_parts(found.value)
    assert f"{TO_Q}.{last}" in found.value.seen


@pytest.mark.usefixtures("_nothing_is_read")
def test_weights_that_are_no_floats(checkpoints: dict[str, Path], edited: Edit) -> None:
    folder = edited(checkpoints["sd3"], {f"{TO_Q}.weight": torch.zeros(64, 64, dtype=torch.uint8)})
    with pytest.raises(LoadError, match="cannot be quantised") as found:
        components.load(folder, Mxfp4Config())
    check_parts(found.value)


def test_a_weight_that_is_not_finite_names_tensor_and_index(
    checkpoints: dict[str, Path], edited: Edit
) -> None:
    weight = torch.zeros(64, 64, dtype=torch.bfloat16)
    weight[3, 5] = float("nan")
    with pytest.raises(NonFiniteError, match=f"{TO_Q}.weight") as found:
        components.load(edited(checkpoints["sd3"], {f"{TO_Q}.weight": weight}), Mxfp4Config())
    check_parts(found.value)


@pytest.mark.usefixtures("_nothing_is_read")
def test_a_device_map_that_offloads(checkpoints: dict[str, Path]) -> None:
    places = {"transformer_blocks": "cuda:0", "": "cpu"}
    with pytest.raises(ConfigError, match="device_map offloads modules") as found:
        components.load(checkpoints["sd3"], Mxfp4Config(), device_map=places)
    check_parts(found.value)


def test_a_name_that_another_package_has(monkeypatch: pytest.MonkeyPatch) -> None:
    class Theirs(DiffusersQuantizer):
        pass

    monkeypatch.setitem(auto.AUTO_QUANTIZER_MAPPING, METHOD, Theirs)
    with pytest.raises(ConfigError, match="cannot be registered") as found:
        compat.register(METHOD, Mxfp4Config, Mxfp4Quantizer)
    check_parts(found.value)
    assert auto.AUTO_QUANTIZER_MAPPING[METHOD] is Theirs
    assert not compat.register_free(METHOD, Mxfp4Config, Mxfp4Quantizer)


def test_methods_that_diffusers_has_stay_its_own() -> None:
    ours = {name for name, kind in auto.AUTO_QUANTIZER_MAPPING.items() if kind is Mxfp4Quantizer}
    assert {METHOD, "compressed-tensors", "quark"} <= ours
    assert not ours & {"modelopt", "torchao", "auto-round", "bitsandbytes_4bit", "gguf"}


def test_a_release_without_the_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(DiffusersQuantizer, "maybe_update_loaded_keys")
    with pytest.raises(ConfigError, match="cannot be used with this diffusers") as found:
        compat.check_version()
    check_parts(found.value)
    assert "pip install" in found.value.fix


def test_a_cast_of_a_quantised_model_is_refused_by_diffusers(checkpoints: dict[str, Path]) -> None:
    loaded = components.load(checkpoints["sd3"], Mxfp4Config())
    with pytest.raises(ValueError, match="Casting a quantized model"):
        loaded.to(torch.float16)
