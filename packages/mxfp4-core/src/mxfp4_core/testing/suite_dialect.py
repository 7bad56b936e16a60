"""The conformance suite of a dialect: subclass it, name the dialect, and run pytest.

    class TestMine(DialectConformance):
        dialect_name = "mine"

Weights are written as the dialect wants them and read back: every byte of every part returns. ``weights`` and ``model``
say what is written, where the linears of an ordinary model are not what the dialect stores. ``folders`` names
checkpoints that somebody else made, and is what proves that this is their dialect.
"""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mxfp4_core import MxTensor, dialects, quantize
from mxfp4_core.checkpoint import Checkpoint, open_checkpoint
from mxfp4_core.config import Mxfp4Config
from mxfp4_core.dialects import Contents, Description, Dialect, Entry, Source
from mxfp4_core.errors import DialectError, Mxfp4Error
from mxfp4_core.testing.counted import Counted

STRANGE: tuple[Mapping[str, Any], ...] = (
    {},
    {"quantization_config": None},
    {"quantization_config": []},
    {"quantization_config": {}},
    {"quantization_config": {"quant_method": 7}},
    {"quantization_config": {"quant_method": "a method of the future", "config_groups": "none"}},
    {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
)
"""Configs of no dialect."""


@dataclass(frozen=True)
class Stored:
    """A weight that is written and read.

    Attributes:
        name: canonical name.
        shape: logical shape, K last.
        transposed: as in `Entry`.
        interleaved: as in `Entry`.
    """

    name: str
    shape: tuple[int, ...]
    transposed: bool = False
    interleaved: bool = False


LINEARS = tuple(
    Stored(f"model.layers.0.{name}.weight", shape)
    for name, shape in (
        ("self_attn.q_proj", (64, 64)),
        ("mlp.up_proj", (96, 64)),
        ("mlp.down_proj", (64, 96)),
    )
)
STACKS = (Stored("model.layers.0.mlp.experts.down_proj", (3, 64, 96)),)
OTHERS = {"model.norm.weight": (64,), "lm_head.weight": (48, 64)}


class DialectConformance:
    """Everything that a dialect must be right about.

    Attributes:
        dialect_name: name of the entry point.
        model: ``config.json`` of a model that it can describe.
        weights: what is written; linears, and experts where it stores more than linears, if empty.
        folders: checkpoints that others made.
        formats: formats that are tried; those that the dialect lists, if empty.
        settings: what a config must say beside the dialect, so that it can be described.
    """

    dialect_name: ClassVar[str]
    model: ClassVar[Mapping[str, Any]] = {"model_type": "llama", "hidden_size": 64}
    weights: ClassVar[tuple[Stored, ...]] = ()
    folders: ClassVar[tuple[Path, ...]] = ()
    formats: ClassVar[tuple[str, ...]] = ()
    settings: ClassVar[Mapping[str, Any]] = {}

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run the tests of a format for each that the dialect stores."""
        if "format" in metafunc.fixturenames:
            metafunc.parametrize("format", self.formats or sorted(dialects.get(self.dialect_name).formats))

    @pytest.fixture
    def dialect(self) -> Dialect:
        """The dialect under test, from its entry point."""
        return dialects.get(self.dialect_name)

    def entries(
        self, dialect: Dialect, where: Path, format: str
    ) -> tuple[list[Entry], Checkpoint, dict[str, MxTensor]]:
        """Quantise weights, store their parts under plain names, and return entries that read them."""
        chosen = self.weights or (LINEARS if dialect.linear_only else LINEARS + STACKS)
        made, parts = {}, {}
        for seed, stored in enumerate(chosen):
            generator = torch.Generator().manual_seed(seed)
            weight = torch.randn(stored.shape, generator=generator).to(torch.bfloat16)
            made[stored.name] = quantize(weight, format=format, tail="pad")
            parts.update({f"{stored.name}/{part}": raw for part, raw in made[stored.name].parts.items()})
        where.mkdir()
        save_file(parts, where / "model.safetensors")
        source = open_checkpoint(where)
        seen = Source.of(source)
        entries = [
            Entry(
                stored.name,
                stored.shape,
                {part: seen.tensor(f"{stored.name}/{part}") for part in made[stored.name].parts},
                format=format,
                transposed=stored.transposed,
                interleaved=stored.interleaved,
            )
            for stored in chosen
        ]
        return entries, source, made

    def write(self, dialect: Dialect, where: Path, format: str) -> tuple[Path, dict[str, MxTensor]]:
        """Write a checkpoint of this dialect beside weights in high precision."""
        entries, source, made = self.entries(dialect, where / "parts", format)
        tensors: dict[str, Tensor] = {}
        for entry in entries:
            dialect.check(entry)
            written = dialect.write(entry)
            assert written and not set(written) & set(tensors), (
                f"{entry.weight} is written over another weight"
            )
            tensors.update({name: recipe.load(source) for name, recipe in written.items()})
        plain = {name: torch.ones(shape, dtype=torch.bfloat16) for name, shape in OTHERS.items()}
        save_file(plain, where / "others.safetensors")
        beside = open_checkpoint(where / "others.safetensors")
        others = {name: Source.of(beside).tensor(name) for name in plain}
        high = {
            name: recipe.load(beside) for name, recipe in dialect.write_others(others, self.model).items()
        }
        assert not set(high) & set(tensors)
        target = where / "written"
        target.mkdir()
        config = Mxfp4Config.from_dict({"dialect": dialect.name, **self.settings})
        description = Description(
            dict(self.model), config, entries, ["lm_head"], "even/even", others=list(OTHERS)
        )
        metadata = {"format": "pt", **dialect.metadata(description)}
        save_file({**high, **tensors}, target / "model.safetensors", metadata)
        for name, document in dialect.documents(description).items():
            (target / name).write_text(json.dumps(document), encoding="utf-8")
        return target, made

    def test_members(self, dialect: Dialect) -> None:
        """It describes itself, and is one object, in other processes too."""
        assert dialect.name == self.dialect_name and dialect.formats and dialect.readers
        for line in (
            dialect.how_to_load("some/folder"),
            dialect.how_to_load("some/folder", "T5EncoderModel"),
        ):
            assert "some/folder" in line
        assert pickle.loads(pickle.dumps(dialect)).name == dialect.name

    def test_what_is_written_is_read_back(self, dialect: Dialect, tmp_path: Path, format: str) -> None:
        """It is recognised, by this dialect alone, and every byte of every part returns, in whole and in pieces."""
        target, made = self.write(dialect, tmp_path, format)
        checkpoint = open_checkpoint(target)
        found = dialects.read(checkpoint)
        assert found is not None and found[0].name == dialect.name
        contents = found[1]
        assert set(contents.entries) == set(made)
        for name, weight in made.items():
            entry = contents.entries[name]
            assert (entry.shape, entry.format) == (tuple(weight.shape), format), name
            for part, raw in weight.parts.items():
                self.returns(checkpoint, entry, part, raw)
        stored = {one.name: one for one in self.weights or LINEARS + STACKS}
        for name, entry in contents.entries.items():
            assert (entry.transposed, entry.interleaved) == (
                stored[name].transposed,
                stored[name].interleaved,
            )
        self.nothing_is_lost(checkpoint, contents)
        assert set(contents.tensors) >= set(OTHERS), "weights in high precision keep their names"

    def returns(self, checkpoint: Checkpoint, entry: Entry, part: str, raw: Tensor) -> None:
        """Compare one part with what was written."""
        whole = entry.parts[part].load(checkpoint)
        want = raw.contiguous().view(torch.uint8)
        assert torch.equal(whole.contiguous().view(torch.uint8), want), f"{entry.weight}: {part} differs"
        if whole.dim() > 1 and len(whole) > 1:
            piece = entry.parts[part].load(checkpoint, 1, len(whole)).contiguous().view(torch.uint8)
            assert torch.equal(piece, want[1:]), f"{entry.weight}: rows of {part} differ"

    def nothing_is_lost(self, checkpoint: Checkpoint, contents: Contents) -> None:
        """Say that every stored tensor has its place, and only one."""
        places = [name for entry in contents.entries.values() for name in entry.names]
        places += [
            name
            for recipe in (*contents.tensors.values(), *contents.static.values())
            for name in recipe.names
        ]
        places += [name for one in contents.beside.values() for name in one.names]
        assert sorted(set(places)) == sorted(checkpoint.tensors), "a stored tensor has no place"

    def test_reading_changes_nothing(self, dialect: Dialect, tmp_path: Path) -> None:
        """The same question has the same answer, and the config stays as it was."""
        target, _ = self.write(dialect, tmp_path, min(dialect.formats))
        source = Source.of(open_checkpoint(target))
        config = copy.deepcopy(dict(source.config))
        assert dialect.recognise(source) and dialect.recognise(source) == dialect.recognise(source)
        assert dialect.read(source) == dialect.read(source)
        assert source.config == config

    def test_a_range_reads_no_more_than_it_needs(self, dialect: Dialect, tmp_path: Path, format: str) -> None:
        """One expert of a stack, or the first half of the rows, is read without the rest: memory is bounded."""
        target, _ = self.write(dialect, tmp_path, format)
        checkpoint = open_checkpoint(target)
        counted = Counted(checkpoint)
        for name, entry in dialect.read(Source.of(checkpoint)).entries.items():
            counted.nbytes, rows = 0, entry.shape[0]
            for recipe in entry.parts.values():
                if len(recipe.shape) > 1:
                    recipe.load(counted, 0, 1 if len(entry.shape) > 2 else -(-rows // 2))
            most = entry.nbytes * (2 / rows if len(entry.shape) > 2 else 3 / 4)
            assert counted.nbytes <= most, (
                f"{name}: a part of it reads {counted.nbytes} of {entry.nbytes} bytes"
            )

    def test_recipes_are_plain_data(self, dialect: Dialect, tmp_path: Path) -> None:
        """A worker in another process gets entries by pickle."""
        target, _ = self.write(dialect, tmp_path, min(dialect.formats))
        contents = dialect.read(Source.of(open_checkpoint(target)))
        assert pickle.loads(pickle.dumps(contents.entries)) == contents.entries

    @pytest.mark.parametrize("config", STRANGE, ids=lambda config: json.dumps(config)[:60])
    def test_strangers_are_left_to_others(self, dialect: Dialect, config: Mapping[str, Any]) -> None:
        """A checkpoint of no dialect is not recognised, and never an exception."""
        tensors = {"a.weight": ("BF16", (64, 64)), "b.weight": ("F32", (64,))}
        assert dialect.recognise(Source(config, tensors)) is None

    def test_parts_that_are_missing_or_wrong_are_refused(self, dialect: Dialect, tmp_path: Path) -> None:
        """Without one of its tensors, or with one of another shape or dtype, a weight is an error of ours."""
        target, _ = self.write(dialect, tmp_path, min(dialect.formats))
        whole = Source.of(open_checkpoint(target))
        entry = next(iter(dialect.read(whole).entries.values()))

        def refused(changed: dict[str, tuple[str, tuple[int, ...]]], without: str = "") -> None:
            tensors = {key: one for key, one in {**whole.tensors, **changed}.items() if key != without}
            with pytest.raises(DialectError):
                dialect.read(Source(whole.config, tensors))

        for name in entry.names:
            dtype, shape = whole.tensors[name]
            refused({}, without=name)
            refused({name: (dtype, (*shape[:-1], shape[-1] + 1))})
            refused({name: ("I64", shape)})

    def test_what_it_cannot_store_is_refused_before(self, dialect: Dialect, tmp_path: Path) -> None:
        """A format that it does not list, and experts where it stores linears, are errors that name the weight."""
        entries, _, _ = self.entries(dialect, tmp_path / "parts", min(dialect.formats))
        entry = entries[0]
        strange = Entry(entry.weight, entry.shape, entry.parts, format="a format of the future")
        wrong = [strange]
        if dialect.linear_only:
            wrong.append(Entry(entry.weight, (2, *entry.shape), entry.parts))
        for one in wrong:
            with pytest.raises(Mxfp4Error, match=entry.weight.rsplit(".", 1)[0]):
                dialect.check(one)

    def test_folders_of_others_are_read(self, dialect: Dialect) -> None:
        """They are of this dialect and no other, and every part can be made."""
        for folder in self.folders:
            checkpoint = open_checkpoint(folder)
            found = dialects.read(checkpoint)
            assert found is not None and found[0].name == dialect.name and found[1].entries, folder
            for entry in found[1].entries.values():
                for recipe in entry.parts.values():
                    assert tuple(recipe.load(checkpoint).shape) == recipe.shape
            self.nothing_is_lost(checkpoint, found[1])


__all__ = ["LINEARS", "STACKS", "DialectConformance", "Stored"]
