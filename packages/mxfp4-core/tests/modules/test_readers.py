"""Which weights the code of a model reads itself; and the dialect that is written where it does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mxfp4_core import Mxfp4Config
from mxfp4_core.dialects import default_for
from mxfp4_core.dialects.base import Description, Entry
from mxfp4_core.dialects.pairs import DTYPES
from mxfp4_core.dialects.recipes import Read
from mxfp4_core.modules import describe_parameters, weight_readers


class Called(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(32, 32)
        self.up.weight.data.zero_()  # what makes the module reads what is there

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(x)


class Cast(Called):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(x.to(self.up.weight.dtype))


class Derived(Cast):
    pass


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Called(), Called()])

    @property
    def dtype(self) -> torch.dtype:
        return self.blocks[0].up.weight.dtype


class Begins(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.other = Called(), Deep()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Called):
            nn.init.zeros_(module.up.weight)


class Writes(Called):
    def tie(self, other: nn.Linear) -> None:
        self.up.weight = other.weight


@pytest.mark.parametrize(
    ("model", "read"),
    [
        (Called(), {}),
        (Writes(), {}),
        (Cast(), {"up": "Cast"}),
        (Derived(), {"up": "Derived"}),
        (Deep(), {"blocks.0.up": "Deep", "blocks.1.up": "Deep"}),
        (nn.ModuleDict({"a": Cast(), "b": Called()}), {"a.up": "Cast"}),
        (
            Begins(),
            {"inner.up": "Called", "other.blocks.0.up": "Deep", "other.blocks.1.up": "Deep"},
        ),
    ],
    ids=lambda given: type(given).__name__,
)
def test_what_reads_a_weight_is_found_in_the_source(model: nn.Module, read: dict[str, str]) -> None:
    assert weight_readers(model) == read
    said = describe_parameters(model, readers=True)
    assert {name: each.reader for name, each in said.items() if each.reader} == {
        f"{name}.weight": by for name, by in read.items()
    }
    assert not any(each.reader for each in describe_parameters(model).values())


def test_a_class_without_a_source_reads_nothing() -> None:
    made = type("Made", (nn.Module,), {})
    assert weight_readers(made()) == {}


def test_a_folder_whose_weights_are_read_is_written_for_ours() -> None:
    parts = {
        "codes": Read(DTYPES["uint8"], (32, 16), "codes"),
        "scales": Read(DTYPES["uint8"], (32, 1), "scales"),
    }
    plain = Entry("up.weight", (32, 32), parts)
    read = Entry("wo.weight", (32, 32), parts, reader="T5DenseActDense")
    config = Mxfp4Config()
    dialect, why = default_for(Description({}, config, [plain], []))
    assert dialect.name == "compressed-tensors", why
    dialect, why = default_for(Description({}, config, [plain, read], []))
    assert dialect.name == "mxfp4-core"
    assert "T5DenseActDense reads wo.weight itself" in why
