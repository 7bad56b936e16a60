"""What vLLM finds a compiled graph by: other settings are another graph."""

from __future__ import annotations

import pytest

from mxfp4_core.config import Mxfp4Config

config = pytest.importorskip("vllm.config", reason="the engine is not installed: nox -s engines -- vllm")

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the engine


def found_by(settings: Mxfp4Config) -> str:
    from mxfp4_vllm import compat

    engine = config.VllmConfig()
    with config.set_current_vllm_config(engine):
        compat.compiled_for(settings)
    return str(engine.compute_hash())


def test_a_compiled_graph_is_not_taken_for_other_settings() -> None:
    settings = [
        Mxfp4Config(),
        Mxfp4Config(ignore=["layers.0"]),
        Mxfp4Config(backend="reference"),
        Mxfp4Config(activation="mxfp4"),
    ]
    assert len({found_by(each) for each in settings}) == len(settings)
    assert found_by(Mxfp4Config()) == found_by(Mxfp4Config())
