"""Readers of what other programs write: GGUF files, documents beside weights, tokenizers."""

from __future__ import annotations

import json
from pathlib import Path

from fuzzing.reader import File, Reader, Wrong, with_length
from mxfp4_core import dialects
from mxfp4_core.checkpoint import open_checkpoint
from mxfp4_core.checkpoint.gguf_writer import gguf_header
from mxfp4_core.checkpoint.header import parse_json
from mxfp4_core.checkpoint.writer import TensorSpec
from mxfp4_core.dialects import Source
from mxfp4_core.dialects.gguf_names import architecture_for
from mxfp4_core.dialects.gguf_rope import rope_factors
from mxfp4_core.dialects.gguf_vocabulary import vocabulary_of
from mxfp4_core.jobs.convert import settings_of


def gguf(made: dict[str, Path], room: Path) -> Reader:
    """GGUF files, down to the weights of the dialect: nothing that a header claims is believed."""
    raw = (made["gguf"] / "model.gguf").read_bytes()
    spec = TensorSpec("blk.0.attn_q.weight", "U8", (4, 1, 17))
    few = gguf_header([spec], {"general.architecture": "llama"})
    file = File(room / "model.gguf")

    def read(_: int, data: bytes) -> None:
        checkpoint = open_checkpoint(file.put(data))
        for info in checkpoint.tensors.values():
            if not 0 <= info.start <= info.stop <= len(data):
                raise Wrong("a tensor outside of its file")
        if found := dialects.read(checkpoint):
            settings_of(checkpoint, *found)

    words = {
        "tokens": ["<s>", "a", "b"],
        "scores": [0.0, -1.0, -2.0],
        "token_type": [3, 1, 1],
        "merges": ["a b"],
    }
    listed = {f"tokenizer.ggml.{key}": value for key, value in words.items()}
    spoken = gguf_header([spec], {"general.architecture": "llama", **listed})
    data = bytes(68 + few[1][0])
    return Reader((raw, few[0] + data, spoken[0] + data), read)


def described(made: dict[str, Path], room: Path) -> Reader:
    """What dialects say outside of ``config.json``: a document beside it, and the metadata of weight files."""
    beside, inside = room / "beside", room / "inside"
    beside.mkdir(parents=True)
    for path in made["modelopt"].glob("*.safetensors"):
        (beside / path.name).write_bytes(path.read_bytes())
    (beside / "config.json").write_text("{}")
    document = File(beside / "hf_quant_config.json")
    inside.mkdir()
    (inside / "config.json").write_bytes((made["torchao"] / "config.json").read_bytes())
    raw = (made["torchao"] / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header, weights = json.loads(raw[8 : 8 + length]), File(inside / "model.safetensors")
    texts = header.pop("__metadata__")

    def read(number: int, data: bytes) -> None:
        if number == 0:
            document.put(data)
            checkpoint = open_checkpoint(beside)
        else:
            found = json.dumps({"__metadata__": parse_json(data, weights.path), **header}).encode()
            weights.put(with_length(found) + raw[8 + length :])
            checkpoint = open_checkpoint(inside)
        if contents := dialects.read(checkpoint):
            settings_of(checkpoint, *contents)

    return Reader(
        ((made["modelopt"] / "hf_quant_config.json").read_bytes(), json.dumps(texts).encode()), read
    )


BYTES = {
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]], "ignore_merges": False},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel", "use_regex": True}]},
    "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {}}]},
    "added_tokens": [{"id": 3, "content": "<s>", "special": True}],
}  # fmt: skip
PIECES = {
    "model": {"type": "BPE", "byte_fallback": True, "unk_token": "<unk>", "merges": ["a b"],
              "vocab": {"<unk>": 0, "a": 1, "b": 2, "ab": 3} | {f"<0x{n:02X}>": 4 + n for n in range(256)}},
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend"}, {"type": "Replace"}]},
    "added_tokens": [],
}  # fmt: skip
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
MODEL = {
    "model_type": "llama", "vocab_size": 264, "bos_token_id": 3, "hidden_size": 64, "num_attention_heads": 2,
    "rope_parameters": {**ROPE, "original_max_position_embeddings": 64},
}  # fmt: skip


def tokenizer(made: dict[str, Path], room: Path) -> Reader:
    """Tokenizers of both kinds, their settings and ``config.json``, to the header of a GGUF file."""
    files = File(room / "tokenizer.json"), File(room / "tokenizer_config.json"), File(room / "config.json")
    known = {path.name for path in room.iterdir()} | {"tokenizer.json", "tokenizer_config.json"}
    said = {
        "bos_token": {"content": "<s>"},
        "eos_token": "b",
        "chat_template": [{"name": "default", "template": "t"}],
    }
    seeds = [json.dumps(each).encode() for each in (BYTES, PIECES, said, MODEL)]

    def read(number: int, data: bytes) -> None:
        good = [seeds[0], seeds[2], seeds[3]]
        good[max(number - 1, 0)] = data
        for file, text in zip(files, good, strict=True):
            file.put(text)
        model = parse_json(good[2], files[2].path, constants=True)
        found = vocabulary_of(Source(model, {}, frozenset(known), room), model)
        settings = dict(found.settings) if number < 3 else architecture_for(model).settings(model)
        if number < 3 and bool(settings) == bool(found.reason):
            raise Wrong("a vocabulary and a reason why there is none, or neither")
        gguf_header([], settings)
        for factors in rope_factors(model).values():
            factors.load(open_checkpoint(made["plain"]))

    return Reader(tuple(seeds), read)


__all__ = ["described", "gguf", "tokenizer"]
