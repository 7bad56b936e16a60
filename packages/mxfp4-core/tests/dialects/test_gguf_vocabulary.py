"""The vocabulary of a GGUF file: what is translated says what the tokenizer says, and what is not has a reason."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mxfp4_core import Mxfp4Config
from mxfp4_core.checkpoint.gguf_writer import gguf_header
from mxfp4_core.checkpoint.reader import open_checkpoint
from mxfp4_core.dialects import Source
from mxfp4_core.dialects.gguf_names import ARCHITECTURES
from mxfp4_core.dialects.gguf_rope import FACTORS, rope_factors, rope_settings
from mxfp4_core.dialects.gguf_vocabulary import Vocabulary, vocabulary_of
from mxfp4_core.errors import CheckpointError, DialectError
from mxfp4_core.jobs import convert_checkpoint, quantize_checkpoint

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""As the files of Llama 3, Qwen2 and gpt-oss have them."""


def of_bytes(expression: str = "", *, whole: bool = False, behaviour: str = "Isolated") -> dict[str, Any]:
    step: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": not expression}
    if expression:
        cut = {"type": "Split", "pattern": {"Regex": expression}, "behavior": behaviour}
        step = {"type": "Sequence", "pretokenizers": [{**cut, "invert": behaviour == "Removed"}, step]}
    return {
        "model": {
            "type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]], "ignore_merges": whole
        },
        "pre_tokenizer": step,
        "added_tokens": [
            {"id": 3, "content": "<s>", "special": True}, {"id": 4, "content": "<tool>", "special": False},
        ],
    }  # fmt: skip


def of_pieces() -> dict[str, Any]:
    vocabulary = {"<unk>": 0, "a": 1, "b": 2, "ab": 3} | {f"<0x{n:02X}>": 4 + n for n in range(256)}
    return {
        "model": {"type": "BPE", "byte_fallback": True, "unk_token": "<unk>", "vocab": vocabulary, "merges": ["a b"]},
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend"}, {"type": "Replace"}]},
        "added_tokens": [{"id": 0, "content": "<unk>", "special": True}],
    }  # fmt: skip


def translated(folder: Path, tokenizer: object, said: object = None, **model: Any) -> Vocabulary:
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(said or {}))
    return vocabulary_of(Source({}, {}, frozenset(path.name for path in folder.iterdir()), folder), model)


@pytest.mark.parametrize(
    ("expression", "whole", "behaviour", "name"),
    [
        ("", False, "", "gpt-2"),
        (LLAMA3, True, "Isolated", "llama-bpe"),
        (LLAMA3, False, "Isolated", "smaug-bpe"),
        (QWEN2, False, "Isolated", "qwen2"),
        (O200K, False, "Removed", "gpt-4o"),
    ],
)
def test_bytes(tmp_path: Path, expression: str, whole: bool, behaviour: str, name: str) -> None:
    made = of_bytes(expression, whole=whole, behaviour=behaviour)
    said = {"bos_token": {"content": "<s>"}, "add_bos_token": True, "chat_template": "hello"}
    found = translated(tmp_path, made, said, vocab_size=6, eos_token_id=[4, 3])
    assert found == Vocabulary({
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": ["a", "b", "ab", "<s>", "<tool>", "[PAD5]"],
        "tokenizer.ggml.token_type": [1, 1, 1, 3, 4, 5],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 3,
        "tokenizer.ggml.eos_token_id": 4,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": "hello",
    })  # fmt: skip


def test_pieces(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ äöü }}", encoding="utf-8")
    made = of_pieces()
    first = {"SpecialToken": {"id": "<unk>", "type_id": 0}}
    made["post_processor"] = {"type": "TemplateProcessing", "single": [first, {"Sequence": {"id": "A"}}]}
    found = translated(tmp_path, made, {"chat_template": "older"})
    assert not found.reason
    settings = found.settings
    assert settings["tokenizer.ggml.model"] == "llama"
    assert settings["tokenizer.ggml.scores"][:5] == [-2.0, -2.0, -2.0, 0.0, -2.0]
    assert settings["tokenizer.ggml.token_type"] == [2, 1, 1, 1, *[6] * 256]
    assert settings["tokenizer.ggml.add_space_prefix"] and settings["tokenizer.ggml.add_bos_token"]
    assert settings["tokenizer.chat_template"] == "{{ äöü }}"


def changed(made: dict[str, Any], *path: Any, value: Any) -> dict[str, Any]:
    found = copy.deepcopy(made)
    at: Any = found
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return found


LEFT_OUT: dict[str, tuple[dict[str, Any], str]] = {
    "words": (changed(of_bytes(), "model", "type", value="WordPiece"), "WordPiece"),
    "no model": (changed(of_bytes(), "model", value=None), "model is 'None'"),
    "dropout": (changed(of_bytes(), "model", "dropout", value=0.1), "dropout"),
    "a suffix": (changed(of_bytes(), "model", "end_of_word_suffix", value="</w>"), "end_of_word_suffix"),
    "another expression": (of_bytes(r"\d|."), "it cuts texts"),
    "whole words of gpt-2": (of_bytes(whole=True), "it cuts texts"),
    "two cuts": (
        changed(of_bytes(LLAMA3), "pre_tokenizer", "pretokenizers", 0, "behavior", value="MergedWithNext"),
        "it cuts texts",
    ),
    "lower case": (changed(of_bytes(), "normalizer", value={"type": "Lowercase"}), "Lowercase"),
    "a space before": (changed(of_bytes(), "pre_tokenizer", "add_prefix_space", value=True), "a space"),
    "a merge of three": (changed(of_bytes(), "model", "merges", value=["a b c"]), "'a b c'"),
    "a merge with a space": (changed(of_bytes(), "model", "merges", value=[["a ", "b"]]), "a space in it"),
    "merges that are no list": (changed(of_bytes(), "model", "merges", value=3), "'3'"),
    "one number twice": (changed(of_bytes(), "model", "vocab", "x", value=1), "number 1"),
    "one text twice": (changed(of_bytes(), "added_tokens", 0, "content", value="a"), "one text"),
    "a huge number": (changed(of_bytes(), "model", "vocab", "x", value=1 << 60), "1152921504606846976"),
    "no number": (changed(of_bytes(), "model", "vocab", "x", value=True), "True"),
    "neither": (changed(of_bytes(), "pre_tokenizer", value=None), "neither of bytes"),
    "a joint that scores make": (changed(of_pieces(), "model", "merges", value=[]), "'a' and 'b'"),
    "bytes missing": (
        changed(of_pieces(), "model", "vocab", value={"<unk>": 0, "<0x00>": 1}), "1 bytes"
    ),
    "pieces with other steps": (changed(of_pieces(), "normalizer", value={"type": "NFKC"}), "NFKC"),
}  # fmt: skip


@pytest.mark.parametrize(("tokenizer", "reason"), LEFT_OUT.values(), ids=LEFT_OUT.keys())
def test_what_is_left_out_has_a_reason(tmp_path: Path, tokenizer: dict[str, Any], reason: str) -> None:
    found = translated(tmp_path, tokenizer, vocab_size=300)
    assert reason in found.reason and found.reason.startswith("tokenizer.json: ")
    assert not found.settings


@pytest.mark.parametrize("size", [4, 1 << 40])
def test_a_size_is_not_believed(tmp_path: Path, size: int) -> None:
    assert str(size) in translated(tmp_path, of_bytes(), vocab_size=size).reason


def test_there_may_be_none(tmp_path: Path) -> None:
    assert vocabulary_of(None, {}).reason == vocabulary_of(Source({}, {}), {}).reason != ""


def test_damaged_files_are_errors(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match="the text is UTF-8"):
        translated(tmp_path, of_bytes())
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(CheckpointError):
        vocabulary_of(Source({}, {}, frozenset(["tokenizer.json"]), tmp_path), {})


def test_a_file_that_is_written_has_it(
    save: Callable[..., Path], dense: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    gguf = pytest.importorskip("gguf")
    dense["model.layers.0.post_attention_layernorm.weight"] = torch.ones(64).bfloat16()
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
    model = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
             "hidden_size": 64, "vocab_size": 48, "rope_parameters": rope}  # fmt: skip
    source = save(dense, config=model)
    quantize_checkpoint(source, tmp_path / "native", Mxfp4Config(dialect="mxfp4-core"), models="none")
    found = convert_checkpoint(tmp_path / "native", tmp_path / "without", "gguf", dry_run=True)
    assert "there is no tokenizer.json" in found.notes[-1]
    (tmp_path / "native" / "tokenizer.json").write_text(json.dumps(of_bytes(LLAMA3, whole=True)))
    found = convert_checkpoint(tmp_path / "native", tmp_path / "gguf", "gguf")
    assert not any("vocabulary" in note for note in found.notes)
    read = gguf.GGUFReader(tmp_path / "gguf" / "model.gguf")
    assert read.fields["tokenizer.ggml.tokens"].contents()[:3] == ["a", "b", "ab"]
    assert read.fields["tokenizer.ggml.pre"].contents() == "llama-bpe"
    stored = {each.name: each.data for each in read.tensors}
    assert stored[FACTORS].tolist() == rope_factors(model)[FACTORS].load(open_checkpoint(source)).tolist()
    again = convert_checkpoint(tmp_path / "gguf", tmp_path / "again", "gguf")
    assert (tmp_path / "again" / "model.gguf").read_bytes() == (tmp_path / "gguf" / "model.gguf").read_bytes()
    assert again.quantized == found.quantized


def test_factors_are_those_of_transformers() -> None:
    modeling = pytest.importorskip("transformers.modeling_rope_utils")
    transformers = pytest.importorskip("transformers")
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
    config = transformers.LlamaConfig(
        hidden_size=256, num_attention_heads=2, rope_parameters=rope, max_position_embeddings=131072
    )
    want, _ = modeling.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500000.0 ** (-torch.arange(0, 128, 2).double() / 128)
    factors = torch.tensor(rope_factors(config.to_dict())[FACTORS].values)  # type: ignore[attr-defined]
    torch.testing.assert_close((plain / factors).float(), want, rtol=1e-6, atol=0)
    assert factors[0] == 1 and factors[-1] == 32


@pytest.mark.parametrize(
    ("rope", "seen"),
    [
        ({"rope_type": "longrope"}, "longrope"),
        ({"rope_type": "yarn"}, "factor"),
        ({"rope_type": "linear", "factor": "2"}, "factor"),
        ({"rope_type": "linear", "factor": 10**400}, "factor"),
        ({"rope_type": "llama3", "factor": 8.0}, "low_freq_factor"),
        ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0,
          "original_max_position_embeddings": 8}, "high_freq_factor"),
    ],
)  # fmt: skip
def test_positions_that_ggml_does_not_have(rope: dict[str, Any], seen: str) -> None:
    model = {"head_dim": 16, "rope_parameters": rope}
    with pytest.raises(DialectError, match=seen):
        rope_settings("llama", model)
        rope_factors(model)


def test_positions_are_said() -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 150000, "factor": 32, "beta_fast": 32.0}
    model = {"rope_scaling": yarn, "max_position_embeddings": 4096, "head_dim": 64, "intermediate_size": 96}
    settings = ARCHITECTURES["gpt-oss"].settings(model)
    for key, value in {
        "rope.freq_base": 150000.0, "rope.dimension_count": 64, "rope.scaling.type": "yarn",
        "rope.scaling.factor": 32.0, "rope.scaling.original_context_length": 4096,
        "rope.scaling.yarn_beta_fast": 32.0, "expert_feed_forward_length": 96,
    }.items():  # fmt: skip
        assert settings[f"gpt-oss.{key}"] == value, key
    assert rope_settings("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}) == {
        "llama.rope.scaling.type": "linear",
        "llama.rope.scaling.factor": 2.0,
    }


def test_numbers_have_room() -> None:
    with pytest.raises(CheckpointError, match="32 bits"):
        gguf_header([], {"llama.block_count": 1 << 32})
