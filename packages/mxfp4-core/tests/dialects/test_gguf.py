from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mxfp4_core import Mxfp4Config, dialects, quantize
from mxfp4_core.checkpoint.gguf_writer import gguf_header
from mxfp4_core.checkpoint.reader import open_checkpoint
from mxfp4_core.checkpoint.writer import TensorSpec
from mxfp4_core.dialects.gguf_blocks import blocks_of, parts_of
from mxfp4_core.dialects.recipes import Read
from mxfp4_core.errors import DialectError
from mxfp4_core.jobs import (
    convert_checkpoint,
    dequantize_checkpoint,
    processes,
    quantize_checkpoint,
    verify_checkpoint,
)

Save = Callable[..., Path]
LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1, "hidden_size": 64,
    "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 48,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "head_dim": 16,
    "tie_word_embeddings": False,
}  # fmt: skip


class Memory:
    def __init__(self, **tensors: torch.Tensor) -> None:
        self.tensors = tensors

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        buffer[:] = self.tensors[name].reshape(-1).numpy()[start : start + len(buffer)].data


@given(st.integers(0, 9), st.integers(1, 5), st.integers(1, 4))
def test_blocks_are_those_of_ggml_and_come_back(seed: int, n: int, blocks: int) -> None:
    gguf = pytest.importorskip("gguf")
    generator = torch.Generator().manual_seed(seed)
    made = quantize(torch.randn(n, blocks * 32, generator=generator), profile="gguf")
    memory = Memory(codes=made.codes, scales=made.scales)
    recipe = blocks_of(*(Read("U8", tuple(t.shape), name) for name, t in memory.tensors.items()))
    stored = recipe.load(memory)
    assert stored.shape == (n, blocks, 17)
    values = gguf.quants.dequantize(stored.reshape(n, -1).numpy(), gguf.GGMLQuantizationType.MXFP4)
    assert np.array_equal(values, made.dequantize(torch.float32).numpy())
    memory.tensors["blocks"] = stored
    parts = parts_of(Read("U8", tuple(stored.shape), "blocks"))
    assert torch.equal(parts["codes"].load(memory), made.codes)
    assert torch.equal(parts["scales"].load(memory), made.scales)
    assert torch.equal(parts["codes"].load(memory, n // 2, n), made.codes[n // 2 :])


@pytest.fixture
def native(save: Save, dense: dict[str, torch.Tensor]) -> Path:
    dense["model.layers.0.post_attention_layernorm.weight"] = torch.ones(64).bfloat16()
    del dense["model.layers.0.self_attn.q_proj.bias"]
    source = save(dense, config=LLAMA)
    quantize_checkpoint(source, source.parent / "native", Mxfp4Config.from_dict({"dialect": "mxfp4-core"}))
    return source.parent / "native"


def same(one: Path, two: Path) -> None:
    left, right = open_checkpoint(one), open_checkpoint(two)
    assert left.tensors.keys() == right.tensors.keys()
    for name in left.tensors:
        assert torch.equal(left.load(name).float(), right.load(name).float()), name


def test_a_llama_goes_there_and_back(native: Path) -> None:
    folder = native.parent
    result = convert_checkpoint(native, folder / "gguf", "gguf")
    assert (result.files, result.quantized) == (("model.gguf",), 7)
    assert verify_checkpoint(folder / "gguf").ok
    names = open_checkpoint(folder / "gguf").tensors
    assert all(name.split(".")[0] in ("blk", "token_embd", "output", "output_norm") for name in names)
    convert_checkpoint(folder / "gguf", folder / "back", "mxfp4-core")
    same(native, folder / "back")
    assert open_checkpoint(folder / "gguf").config == {
        k: v for k, v in LLAMA.items() if k != "quantization_config"
    }
    (folder / "gguf" / "config.json").unlink()  # then the settings of the file say what the model is
    (folder / "gguf" / "mxfp4_manifest.json").unlink()
    (finding,) = verify_checkpoint(folder / "gguf").findings
    assert "a weight file says that there was one" in finding.found
    convert_checkpoint(folder / "gguf", folder / "again", "mxfp4-core")
    same(native, folder / "again")
    config = open_checkpoint(folder / "again").config
    assert {key: config[key] for key in ("hidden_size", "num_key_value_heads", "rope_theta", "head_dim")} == {
        "hidden_size": 64, "num_key_value_heads": 2, "rope_theta": 10000.0, "head_dim": 16,
    }  # fmt: skip


def test_a_flipped_byte_is_found(native: Path) -> None:
    convert_checkpoint(native, native.parent / "gguf", "gguf")
    path = native.parent / "gguf" / "model.gguf"
    raw = bytearray(path.read_bytes())
    raw[-100] ^= 4
    path.write_bytes(raw)
    assert not verify_checkpoint(native.parent / "gguf").ok


def test_transformers_reads_the_same_values(native: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    folder = native.parent
    convert_checkpoint(native, folder / "gguf", "gguf")
    dequantize_checkpoint(native, folder / "plain")
    loaded = transformers.LlamaForCausalLM.from_pretrained(
        folder / "gguf", gguf_file="model.gguf", dtype=torch.bfloat16
    ).state_dict()
    plain = open_checkpoint(folder / "plain")
    for name in plain.tensors:
        assert torch.equal(loaded[name], plain.load(name)), name


def test_workers_write_the_same_bytes(native: Path) -> None:
    convert_checkpoint(native, native.parent / "one", "gguf")
    with processes(2) as executor:
        convert_checkpoint(native, native.parent / "many", "gguf", executor=executor)
    one, many = ((native.parent / name / "model.gguf").read_bytes() for name in ("one", "many"))
    assert one == many


@pytest.mark.parametrize("model_type", ["gpt_oss", "qwen3_moe"])
def test_experts_go_there_and_back(save: Save, model_type: str) -> None:
    prefix = "model.layers.0.mlp.experts"
    generator = torch.Generator().manual_seed(3)
    if model_type == "gpt_oss":
        weights = {
            f"{prefix}.gate_up_proj": torch.randn(3, 64, 192, generator=generator).bfloat16(),
            f"{prefix}.gate_up_proj_bias": torch.randn(3, 192, generator=generator),
            f"{prefix}.down_proj": torch.randn(3, 96, 64, generator=generator).bfloat16(),
            f"{prefix}.down_proj_bias": torch.randn(3, 64, generator=generator),
            "model.layers.0.self_attn.sinks": torch.randn(4, generator=generator),
        }
    else:
        shapes = {"gate": (96, 64), "up": (96, 64), "down": (64, 96)}
        weights = {
            f"{prefix}.{e}.{part}_proj.weight": torch.randn(shape, generator=generator).bfloat16()
            for e in range(3)
            for part, shape in shapes.items()
        }
    source = save(
        weights, config={**LLAMA, "model_type": model_type, "num_experts": 3, "num_local_experts": 3}
    )
    folder = source.parent
    quantize_checkpoint(source, folder / "native", Mxfp4Config.from_dict({"dialect": "mxfp4-core"}))
    result = convert_checkpoint(folder / "native", folder / "gguf", "gguf")
    assert any("norm_topk_prob" in note for note in result.notes) == (model_type == "qwen3_moe")
    names = set(open_checkpoint(folder / "gguf").tensors)
    assert {f"blk.0.ffn_{part}_exps.weight" for part in ("gate", "up", "down")} <= names
    convert_checkpoint(folder / "gguf", folder / "back", "mxfp4-core")
    same(folder / "native", folder / "back")


def written(folder: Path, tensors: dict[str, torch.Tensor], settings: dict[str, Any]) -> Path:
    words = {torch.uint8: "U8", torch.float32: "F32", torch.bfloat16: "BF16"}
    specs = [TensorSpec(name, words[t.dtype], tuple(t.shape)) for name, t in tensors.items()]
    header, padding = gguf_header(specs, settings)
    data = b"".join(
        t.contiguous().view(torch.uint8).numpy().tobytes() + bytes(pad)
        for t, pad in zip(tensors.values(), padding, strict=True)
    )
    folder.mkdir(exist_ok=True)
    (folder / "any.gguf").write_bytes(header + data)
    return folder


BLOCKS = torch.full((4, 2, 17), 127, dtype=torch.uint8)
SETTINGS = {"general.architecture": "gpt-oss"}
BAD: dict[str, tuple[dict[str, torch.Tensor], dict[str, Any], str]] = {
    "no weight": ({"output_norm.weight": torch.ones(4)}, {}, "GGUF without MXFP4"),
    "a vector": ({"a.weight": BLOCKS[0]}, {}, "[2, 17]"),
    "gate without up": ({"blk.0.ffn_gate_exps.weight": BLOCKS[None]}, SETTINGS, "without its up"),
    "up without gate": ({"blk.0.ffn_up_exps.weight": BLOCKS[None]}, SETTINGS, "without its gate"),
    "a bias alone": (
        {"a.weight": BLOCKS, "blk.0.ffn_gate_exps.bias": torch.ones(1, 4)}, SETTINGS, "'blk.0.ffn_gate_exps.bias' alone"
    ),
    "heads that do not fit": (
        {"blk.0.attn_q.weight": BLOCKS}, {"general.architecture": "llama", "llama.attention.head_count": 3}, "3 heads"
    ),
    "no heads": ({"blk.0.attn_q.weight": BLOCKS}, {"general.architecture": "llama"}, "None heads"),
}  # fmt: skip


@pytest.mark.parametrize(("tensors", "settings", "seen"), BAD.values(), ids=BAD.keys())
def test_what_contradicts_itself(
    tmp_path: Path, tensors: dict[str, torch.Tensor], settings: dict[str, Any], seen: str
) -> None:
    with pytest.raises(DialectError) as caught:
        dialects.read(open_checkpoint(written(tmp_path / "bad", tensors, settings)))
    assert seen in caught.value.seen


def test_an_unknown_architecture_is_read_under_its_own_names_and_not_written(tmp_path: Path) -> None:
    folder = written(tmp_path / "other", {"blk.0.x.weight": BLOCKS}, {"general.architecture": "new"})
    found = dialects.read(open_checkpoint(folder))
    assert found is not None and list(found[1].entries) == ["blk.0.x.weight"]
    dequantize_checkpoint(folder, tmp_path / "plain")
    made = open_checkpoint(tmp_path / "plain").load("blk.0.x.weight").float()
    assert (made[:, :16] == -6).all() and (made[:, 16:32] == 6).all()  # low halves first: 0x7f
    with pytest.raises(DialectError, match="model_type None"):
        convert_checkpoint(folder, tmp_path / "no", "gguf")
