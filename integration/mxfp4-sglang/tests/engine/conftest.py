"""Tests inside SGLang's own environment (``nox -s engines``): its real classes, on a CPU, without a server.

Importing SGLang takes seconds, and each process registers our plug-in once, as SGLang does.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.plugins import load_plugins

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of SGLang's imports: one that is raised would keep our plug-in out
    load_plugins()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let CI run all that lies here: no engine is started, so it takes seconds."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.smoke)


@pytest.fixture(autouse=True)
def _bfloat16() -> None:
    """Build layers as SGLang does: in the dtype of the model."""
    torch.set_default_dtype(torch.bfloat16)


class Settings(SimpleNamespace):
    """Stands for the settings of an engine: what is not said is None."""

    def __getattr__(self, name: str) -> None:
        return None


@pytest.fixture
def parallel(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stand for the groups of ranks, which an engine makes when it starts."""
    # Here, where warnings of SGLang's imports are no errors any more.
    from sglang.srt.layers.moe.fused_moe_triton import layer as moe_layer
    from sglang.srt.layers.moe.token_dispatcher import standard

    def set_to(ep: int = 1, tp: int = 1, rank: int = 0) -> None:
        sizes = {
            "moe_ep_size": ep,
            "moe_ep_rank": rank if ep > 1 else 0,
            "moe_tp_size": tp,
            "moe_tp_rank": rank if tp > 1 else 0,
        }
        groups = SimpleNamespace(**sizes, tp_group=None, elastic_ep_initial_size=None)
        settings = Settings(moe=Settings(moe_runner_backend="auto"))
        for module in (moe_layer, standard):
            monkeypatch.setattr(module, "get_parallel", lambda: groups, raising=False)
        monkeypatch.setattr(moe_layer, "get_exec", lambda: settings, raising=False)
        monkeypatch.setattr(moe_layer, "get_server_args", lambda: SimpleNamespace(kt_weight_path=None))
        monkeypatch.setattr(moe_layer, "create_kt_config_from_server_args", lambda *_: None)
        monkeypatch.setattr(moe_layer, "get_global_expert_location_metadata", lambda: None)
        monkeypatch.setattr(moe_layer, "get_tp_group", lambda: None, raising=False)  # up to 0.5.18
        monkeypatch.setattr(standard, "get_device", lambda: "cpu", raising=False)

    set_to()
    return set_to
