"""One reader for each kind of file that is read: good inputs, and what reads a mutated one."""

from __future__ import annotations

import hashlib
import json
import os
import random
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from safetensors import safe_open

from fuzzing.foreign import described, gguf, tokenizer
from fuzzing.reader import File, Reader, Wrong, with_length
from mxfp4_core import dialects
from mxfp4_core.checkpoint import open_checkpoint, read_header
from mxfp4_core.checkpoint.header import parse_json
from mxfp4_core.checkpoint.journal import Journal
from mxfp4_core.checkpoint.manifest import read_manifest
from mxfp4_core.checkpoint.staging import STAGING, Destination
from mxfp4_core.config import Mxfp4Config
from mxfp4_core.dialects import Source
from mxfp4_core.dialects.narrow import narrow_kind, read_narrow
from mxfp4_core.errors import Mxfp4Error
from mxfp4_core.jobs.convert import settings_of
from mxfp4_core.jobs.output import loading_class
from mxfp4_core.jobs.planned import chosen, decided, planned
from mxfp4_core.naming import Resolver
from mxfp4_core.naming.braces import collapse
from mxfp4_core.naming.facts import ModelFacts
from mxfp4_core.naming.providers import Described
from mxfp4_core.parallel import Parallel, shard_of
from mxfp4_core.report.naming import group_of, kind_of, layer_of, natural_key


def header(made: dict[str, Path], room: Path) -> Reader:
    """Headers of weight files; what is accepted, the library of safetensors accepts with the same names."""
    files = [min(found) for folder in made.values() if (found := list(folder.glob("*.safetensors")))]
    seeds = []
    for raw in (path.read_bytes() for path in files):
        length = int.from_bytes(raw[:8], "little")
        seeds.append(raw[: 8 + length] + raw[8 + length :][:4096])
    seeds.append(with_length(b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"F4","shape":[4],'
                              b'"data_offsets":[2,4]},"__metadata__":{"format":"pt"}}') + b"abcd")  # fmt: skip
    file = File(room / "model.safetensors")

    def read(_: int, data: bytes) -> None:
        tensors = read_header(file.put(data))[0]
        with safe_open(file.path, "pt") as opened:
            if set(opened.keys()) != tensors.keys():
                raise Wrong("safetensors reads other names")

    def mend(rng: random.Random, data: bytes) -> bytes:
        start, end = data.find(b"{"), data.rfind(b"}")
        if rng.random() < 0.3 or not 0 <= start < end:
            return data
        return with_length(data[start : end + 1]) + data[end + 1 :].lstrip(b" ")

    return Reader(tuple(seeds), read, mend)


def config(made: dict[str, Path], room: Path) -> Reader:
    """``config.json`` of each dialect, down to the dialect's contents, the settings and the decisions."""
    opened = [open_checkpoint(path) for path in made.values()]
    seeds = tuple(json.dumps(each.config).encode() for each in opened)
    bare = [replace(each, path=next(iter(each.files))) for each in opened]  # no manifest, no other documents

    def read(number: int, data: bytes) -> None:
        checkpoint = replace(bare[number], config=parse_json(data, room / "config.json", constants=True))
        json.dumps(checkpoint.config)
        loading_class(checkpoint.config, Described(None, ""))
        source = Source.of(checkpoint)
        if kind := narrow_kind(source):
            read_narrow(source, kind)
        if found := dialects.read(checkpoint):
            settings_of(checkpoint, *found)
            return
        facts = ModelFacts.read(checkpoint.config)
        infos = list(checkpoint.tensors.values())
        made = decided(Resolver.for_model(Mxfp4Config(), checkpoint.config), infos)
        entries = [
            planned(info.name, info.shape, False, facts.model_type)
            for info, decision in zip(infos, made, strict=True)
            if decision.quantize
        ]
        dialect, _ = chosen(checkpoint, Mxfp4Config(), entries)
        json.dumps(dialect.name)

    return Reader(seeds, read)


def settings(made: dict[str, Path], room: Path) -> Reader:
    """Our own config files, JSON and TOML, down to decisions about names."""
    whole = Mxfp4Config(
        rule="floor", ties="away", ignore=["lm_head", "re:.*q_proj"], targets=["layers.*.mlp"], activation="mxfp8",
        overrides=[{"pattern": "=model.layers.0.mlp.up_proj", "profile": "quark"}], tail="pad", backend="reference",
    )  # fmt: skip
    texts = [json.dumps(whole.to_dict()), "{}", '{"profile": "quark", "nonfinite": "nan"}']
    toml = 'rule = "floor"\nignore = ["o_proj"]\n[[overrides]]\npattern = "up_proj"\nkeep = true\n'
    toml += '[[overrides]]\npattern = "lm_head"\nformat = "mxfp8"\nkeep = false\n'
    files = File(room / "config.json"), File(room / "config.toml")
    names = [
        (name, (32, 64))
        for name in ("model.layers.0.mlp.up_proj.weight", "lm_head.weight", "a.q_proj.weight")
    ]

    def read(number: int, data: bytes) -> None:
        found = Mxfp4Config.from_file(files[number >= len(texts)].put(data))
        found.fingerprint()
        Mxfp4Config.from_dict(found.to_dict())
        Resolver(found).decide_all(names)

    return Reader((*(text.encode() for text in texts), toml.encode()), read)


def index(made: dict[str, Path], room: Path) -> Reader:
    """Index files, in a folder with the shards of the first."""
    folder = room / "index"
    folder.mkdir(parents=True)
    small = made["small"]
    for path in small.glob("*.safetensors"):
        (folder / path.name).write_bytes(path.read_bytes())
    raw = (small / "model.safetensors.index.json").read_bytes()
    file = File(folder / "model.safetensors.index.json")

    def read(_: int, data: bytes) -> None:
        file.put(data)
        found = open_checkpoint(folder)
        if found.tensors.keys() != json.loads(data)["weight_map"].keys():
            raise Wrong("other tensors than the index lists")

    shuffled = json.loads(raw)
    shuffled["weight_map"] = dict(reversed(shuffled["weight_map"].items()))
    return Reader((raw, json.dumps(shuffled).encode()), read)


def manifest(made: dict[str, Path], room: Path) -> Reader:
    """Manifests, half of them with a hash that fits, down to the settings that they say."""
    found = [(made[name], made[name] / "mxfp4_manifest.json") for name in ("small", "gpt-oss")]
    opened = [open_checkpoint(path) for path, _ in found]
    contents = [dialects.read(each) for each in opened]
    file = File(room / "mxfp4_manifest.json")
    moved = [replace(each, path=room) for each in opened]

    def read(number: int, data: bytes) -> None:
        file.put(data)
        if read_manifest(room) is not None and (inside := contents[number]):
            settings_of(moved[number], *inside)

    def mend(rng: random.Random, data: bytes) -> bytes:
        at = data.find(b'"sha256": "')
        if rng.random() < 0.5 or at < 0:
            return data
        plain = data[: at + 11] + b"0" * 64 + data[at + 75 :]
        return data[: at + 11] + hashlib.sha256(plain).hexdigest().encode() + data[at + 75 :]

    return Reader(tuple(path.read_bytes() for _, path in found), read, mend)


def journal(made: dict[str, Path], room: Path) -> Reader:
    """Journals: no line that was not written is taken from one, and no fact by a run that goes on."""
    folder = room / "journal"
    (folder / STAGING).mkdir(parents=True)
    shards = sorted(made["small"].glob("*.safetensors"))[:2]
    run = {"release": "1", "config": "2", "source": "3", "layout": "4"}
    path = folder / STAGING / "journal.jsonl"
    written, lines = Journal(path), {}
    written.open()
    written.append({"run": run, "seen": ""})
    for shard in shards:
        raw = shard.read_bytes()
        lines[shard.name] = {"shard": shard.name, "size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
        lines[shard.name]["tensors"] = {"a": hashlib.sha256(raw[8:]).hexdigest()}
        written.append(lines[shard.name])
    written.close()
    file, good = File(path), path.read_bytes()
    names = [*lines, "config.json"]
    whole = written.read()
    told: set[tuple[int, ...]] = set()

    def read(_: int, data: bytes) -> None:
        file.put(data)
        found = Journal(path).read()
        if any(line not in whole for line in found):
            raise Wrong("lines that were not written")
        # What a run makes of these lines is known, once it was seen with something damaged behind them.
        kept = tuple(whole.index(line) for line in found)
        if kept in told and zlib.crc32(data) % 64:
            return
        told.add(kept)
        for shard in shards:
            if not os.path.exists(folder / STAGING / shard.name):
                (folder / STAGING / shard.name).write_bytes(shard.read_bytes())
        file.put(data)
        destination = Destination(folder, run, names, force=False)
        try:
            destination.__enter__()
            taken = dict(destination.finished)
        finally:
            destination._journal.close()
        if any(facts != lines[name] for name, facts in taken.items()):
            raise Wrong("facts that were not written")

    return Reader((good, good[: good.rfind(b"\n", 0, -1) + 1]), read)


def names(made: dict[str, Path], room: Path) -> Reader:
    """Names of tensors: decisions, messages, shards of ranks, lines of a report."""
    listed = [*open_checkpoint(made["plain"]).tensors, "model.layers.3.mlp.experts.7.down_proj.weight"]
    listed += [
        "model.layers.0.mlp.experts.gate_up_proj",
        "mtp.layers.61.mlp.gate.weight",
        "transformer.h.0.attn.c_attn",
    ]
    facts = ModelFacts.read({"num_attention_heads": 8, "num_local_experts": 8, "num_hidden_layers": 4})
    resolver = Resolver(Mxfp4Config(), layers=4, experts=8)

    def read(_: int, data: bytes) -> None:
        name = data.decode("utf-8", "surrogateescape")
        resolver.decide(name, (64, 64))
        planned(name, (64, 64), False, "llama")
        collapse([name, name + ".1", listed[0]])
        kind_of(name), layer_of(name), group_of(name), natural_key(name)
        shard_of(name, (64, 64), Parallel(2, 2), facts, tail="pad")

    return Reader(tuple(name.encode() for name in listed), read)


READERS: dict[str, Callable[[dict[str, Path], Path], Reader]] = {
    "header": header,
    "config": config,
    "gguf": gguf,
    "described": described,
    "tokenizer": tokenizer,
    "settings": settings,
    "index": index,
    "manifest": manifest,
    "journal": journal,
    "names": names,
}
OURS = Mxfp4Error

__all__ = ["OURS", "READERS", "Reader", "Wrong"]
