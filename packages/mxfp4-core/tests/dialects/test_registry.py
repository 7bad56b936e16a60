"""Dialects of other packages: found by entry point, isolated, and named when something is wrong with them."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch

from mxfp4_core import _plugins, dialects
from mxfp4_core.checkpoint.reader import open_checkpoint
from mxfp4_core.dialects.base import Contents, Entry
from mxfp4_core.dialects.quark import QuarkDialect
from mxfp4_core.dialects.source import Source
from mxfp4_core.errors import ConfigError, DialectError

Save = Callable[..., Path]
CODES, SCALES = torch.zeros(4, 32, dtype=torch.uint8), torch.full((4, 2), 127, dtype=torch.uint8)
PAIR = {"a.weight": CODES, "a.weight_scale": SCALES}
TOY = {"quantization_config": {"quant_method": "toy"}}


class Toy(QuarkDialect):
    """Recognises ``quant_method: toy``, and reads as Quark does."""

    name = "toy"

    def recognise(self, source: Source) -> Any:
        return "quant_method is toy" if source.described.get("quant_method") == "toy" else None


class Raises(Toy):
    def recognise(self, source: Source) -> Any:
        return source.config["nothing of that name"]


class RaisesLater(Toy):
    def read(self, source: Source) -> Contents:
        raise IndexError("row 3")


class TakesAll(Toy):
    def recognise(self, source: Source) -> Any:
        return "everything is mine"


class SaysTrue(Toy):
    def recognise(self, source: Source) -> Any:
        return True


class ReadsNothing(Toy):
    def read(self, source: Source) -> Any:
        return None


class RaisesOurs(Toy):
    def recognise(self, source: Source) -> Any:
        raise DialectError("dialect 'toy' is lost", seen="a", rule="b", fix="c")


class ReadsHalf(Toy):
    def read(self, source: Source) -> Contents:
        contents = super().read(source)
        entry = contents.entries["a.weight"]
        half: dict[str, Entry] = {"a.weight": replace(entry, shape=(2, 64))}
        return replace(contents, entries=half)


class ReadsAnotherName(Toy):
    def read(self, source: Source) -> Contents:
        contents = super().read(source)
        return replace(contents, entries={"b.weight": contents.entries["a.weight"]})


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Add entry points to the installed ones: name to an object, or to the value of an entry point."""
    real = _plugins.entry_points
    added: list[EntryPoint] = []

    def add(name: str, found: object) -> None:
        value = str(found)
        if not isinstance(found, str):
            module = types.ModuleType(f"toy_{name}_{len(added)}")
            vars(module)["made"] = found
            monkeypatch.setitem(sys.modules, module.__name__, module)
            value = f"{module.__name__}:made"
        added.append(EntryPoint(name, value, "mxfp4.dialects"))
        _plugins.refresh()

    monkeypatch.setattr(_plugins, "entry_points", lambda group: [*real(group=group), *added])
    yield add
    monkeypatch.undo()
    _plugins.refresh()


def test_a_dialect_of_another_package_is_one_of_them(save: Save, install: Callable[..., None]) -> None:
    install("toy", Toy())
    assert dialects.names()[0] == "mxfp4-core" and "toy" in dialects.names()
    assert repr(dialects.get("toy")) == "<dialect toy>"
    found = dialects.read(open_checkpoint(save(PAIR, config=TOY)))
    assert found is not None and found[0].name == "toy"


@pytest.mark.parametrize(
    ("made", "seen"),
    [
        (Raises(), "KeyError: 'nothing of that name'"),
        (RaisesLater(), "IndexError: row 3"),
        (SaysTrue(), "recognise returned True"),
        (ReadsNothing(), "read returned NoneType"),
        (ReadsAnotherName(), "entry 'a.weight' under the name 'b.weight'"),
    ],
)
def test_a_dialect_that_fails_is_named(
    save: Save, install: Callable[..., None], made: object, seen: str
) -> None:
    install("toy", made)
    with pytest.raises(DialectError, match="dialect 'toy' failed on") as caught:
        dialects.read(open_checkpoint(save(PAIR, config=TOY)))
    assert seen in caught.value.seen
    assert "update or uninstall it" in caught.value.fix


@pytest.mark.parametrize("made", [Raises(), RaisesOurs(), SaysTrue()])
def test_a_dialect_that_fails_stops_no_other_checkpoint(
    save: Save, install: Callable[..., None], made: object, caplog: pytest.LogCaptureFixture
) -> None:
    install("toy", made)
    native = {"quantization_config": {"quant_method": "mxfp4-core"}}
    found = dialects.identify(open_checkpoint(save(PAIR, config=native)))
    assert found is not None and found[0] == "mxfp4-core"
    plain = {"a.weight": torch.zeros(4, 64, dtype=torch.bfloat16)}
    assert dialects.identify(open_checkpoint(save(plain, config={"model_type": "llama"}))) is None
    assert len(caplog.messages) == 2 and all("'toy'" in message for message in caplog.messages)


def test_a_dialect_that_fails_is_the_error_where_nobody_else_knows(
    save: Save, install: Callable[..., None]
) -> None:
    install("toy", Raises())
    other = {"quantization_config": {"quant_method": "another"}}
    with pytest.raises(DialectError, match="dialect 'toy' failed on"):
        dialects.read(open_checkpoint(save(PAIR, config=other)))


def test_parts_that_are_not_those_of_the_format(save: Save, install: Callable[..., None]) -> None:
    install("toy", ReadsHalf())
    with pytest.raises(DialectError, match="not a valid toy checkpoint") as caught:
        dialects.read(open_checkpoint(save(PAIR, config=TOY)))
    assert caught.value.seen == "'a.weight' [2, 64] with codes U8 [4, 32], scales U8 [4, 2]"


def test_two_dialects_recognise_one_checkpoint(save: Save, install: Callable[..., None]) -> None:
    install("toy", TakesAll())
    checkpoint = open_checkpoint(save(PAIR, config={"quantization_config": {"quant_method": "mxfp4-core"}}))
    with pytest.raises(DialectError, match="it is not clear") as caught:
        dialects.read(checkpoint)
    assert "mxfp4-core: quant_method is mxfp4-core" in caught.value.seen
    assert "toy: everything is mine" in caught.value.seen


def test_two_packages_of_one_name(save: Save, install: Callable[..., None]) -> None:
    install("quark", Toy())
    with pytest.raises(ConfigError, match="'quark' cannot be used") as caught:
        dialects.get("quark")
    assert "more than one distribution registers the name 'quark'" in caught.value.seen


def test_a_checkpoint_of_a_dialect_that_two_packages_provide(
    save: Save, install: Callable[..., None]
) -> None:
    install("quark", Toy())
    with pytest.raises(DialectError, match="cannot read") as caught:
        dialects.read(open_checkpoint(save(PAIR, config={"quantization_config": {"quant_method": "quark"}})))
    assert "quark cannot be used: more than one distribution" in caught.value.seen
    assert "quark" not in caught.value.rule
    assert caught.value.fix.startswith(
        "if it is of quark: uninstall all but one of them; use the checkpoint in high"
    )


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        ("no_such_module:made", "No module named 'no_such_module'"),
        (object(), "not a Dialect of that name"),
        (QuarkDialect(), "not a Dialect of that name"),
    ],
)
def test_a_dead_plugin_harms_nobody_else(
    save: Save, install: Callable[..., None], value: object, seen: str
) -> None:
    install("toy", value)
    with pytest.raises(ConfigError, match="'toy' cannot be used") as caught:
        dialects.get("toy")
    assert seen in caught.value.seen
    native = open_checkpoint(save(PAIR, config={"quantization_config": {"quant_method": "mxfp4-core"}}))
    assert dialects.read(native) is not None
    with pytest.raises(DialectError, match="cannot read the quantised weights") as refused:
        dialects.read(open_checkpoint(save(PAIR, config=TOY, name="unread")))
    assert "toy cannot be used" in refused.value.seen and seen in refused.value.seen


CLAIMS: dict[str, tuple[dict[str, torch.Tensor], dict[str, Any], str]] = {
    "quark, but compressed-tensors": (
        {"a.weight_packed": CODES, "b.weight": torch.ones(2, 2)},
        {
            "quant_method": "quark",
            "global_quant_config": {"weight": {"dtype": "fp4", "group_size": 32, "scale_format": "e8m0"}},
        },
        "is a name of compressed-tensors",
    ),
    "ours, but gpt-oss": (
        {"experts.down_proj_blocks": torch.zeros(2, 4, 2, 16, dtype=torch.uint8)},
        {"quant_method": "mxfp4-core"},
        "is a name of gpt-oss MXFP4",
    ),
    "gpt-oss, but pairs": (PAIR, {"quant_method": "mxfp4"}, "is a name of packed weights with scales"),
}


@pytest.mark.parametrize(("tensors", "described", "seen"), CLAIMS.values(), ids=CLAIMS.keys())
def test_a_config_that_claims_one_dialect_over_another(
    save: Save, tensors: dict[str, torch.Tensor], described: dict[str, Any], seen: str
) -> None:
    checkpoint = open_checkpoint(save(tensors, config={"quantization_config": described}))
    with pytest.raises(DialectError, match="this is not a valid") as caught:
        dialects.read(checkpoint)
    assert seen in caught.value.seen


def test_dtypes_of_torch_are_read_as_the_bytes_they_are(save: Save) -> None:
    tensors = {"a.weight": CODES.view(torch.int8), "a.weight_scale": SCALES.view(torch.float8_e8m0fnu)}
    checkpoint = open_checkpoint(
        save(tensors, config={"quantization_config": {"quant_method": "mxfp4-core"}})
    )
    found = dialects.read(checkpoint)
    assert found is not None
    parts = found[1].entries["a.weight"].parts
    assert torch.equal(parts["scales"].load(checkpoint), SCALES)
    assert parts["codes"].load(checkpoint).dtype == torch.uint8
