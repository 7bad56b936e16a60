from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from mxfp4_core.checkpoint.reader import open_checkpoint
from mxfp4_core.errors import CheckpointError

Save = Callable[..., Path]
INDEX = "model.safetensors.index.json"
PAIR = ({"a": torch.ones(2)}, {"b": torch.zeros(3)})


def index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def test_opens_one_file_and_several(save: Save) -> None:
    one = save(PAIR[0], config={"model_type": "llama"}, name="one")
    several = save(*PAIR, name="several")
    assert list(open_checkpoint(one).tensors) == ["a"]
    assert open_checkpoint(one).config == {"model_type": "llama"}
    assert list(open_checkpoint(several).tensors) == ["a", "b"]
    assert open_checkpoint(several).config == {}
    assert list(open_checkpoint(several / "model-00002-of-00002.safetensors").tensors) == ["b"]


def test_opens_files_without_an_index(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    save_file({"b": torch.ones(1)}, tmp_path / "y.safetensors")
    assert list(open_checkpoint(tmp_path).tensors) == ["a", "b"]


DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16]
DTYPES += [torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    shape=st.lists(st.integers(0, 5), max_size=3),
    dtype=st.sampled_from(DTYPES),
    cut=st.tuples(st.integers(0, 130), st.integers(0, 130)),
)
def test_reads_the_same_values_as_safetensors(
    tmp_path: Path, shape: list[int], dtype: torch.dtype, cut: tuple[int, int]
) -> None:
    weight = torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)
    save_file({"first": torch.ones(1, dtype=torch.uint8), "w": weight}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    loaded = checkpoint.load("w")
    assert loaded.dtype == dtype
    assert loaded.shape == weight.shape
    assert torch.equal(
        loaded.view(torch.uint8) if shape else loaded, weight.view(torch.uint8) if shape else weight
    )
    if shape:
        low, high = sorted(min(part, shape[0]) for part in cut)
        assert torch.equal(checkpoint.rows("w", low, high).float(), weight[low:high].float())
        matrix = weight.reshape(-1, shape[-1]) if weight.numel() else weight.new_empty(0, shape[-1])
        low, high = sorted(min(part, len(matrix)) for part in cut)
        assert torch.equal(checkpoint.matrix_rows("w", low, high).float(), matrix[low:high].float())


def test_rows_outside_of_a_tensor(save: Save) -> None:
    checkpoint = open_checkpoint(save({"a": torch.ones(4, 2), "scalar": torch.ones(())}))
    for name, start, stop in (("a", 0, 5), ("a", -1, 2), ("a", 3, 2), ("scalar", 0, 1)):
        with pytest.raises(CheckpointError, match="rows"):
            checkpoint.rows(name, start, stop)
        with pytest.raises(CheckpointError, match="rows"):
            checkpoint.matrix_rows(name, start, stop)
    with pytest.raises(CheckpointError, match="did you mean 'scalar'"):
        checkpoint.load("scale")


def test_a_dtype_that_torch_lacks(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]}}'
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"abc")
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="F6_E2M3"):
        checkpoint.load("a")


def test_a_file_that_shrinks_while_it_is_read(save: Save) -> None:
    folder = save({"a": torch.ones(1000)})
    checkpoint = open_checkpoint(folder)
    os.truncate(folder / "model.safetensors", 200)
    with pytest.raises(CheckpointError, match="end of file in tensor 'a'"):
        checkpoint.load("a")


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "../source/model-00001-of-00002.safetensors"}, "names files of its own folder"),
        ({"a": "/etc/passwd"}, "names files of its own folder"),
        ({"a": "..\\x.safetensors"}, "names files of its own folder"),
        ({"a": ".hidden.safetensors"}, "names files of its own folder"),
        ({"a": "x\0.safetensors"}, "names files of its own folder"),
        ({"a": ""}, "weights are safetensors files"),
        ({"a": 3}, "names files of its own folder"),
        ({"a": "pytorch_model.bin"}, "pickles are never opened"),
        ({"a": "model-00001-of-00002.safetensors", "b": "gone.safetensors"}, "does not exist"),
        ({"a": "model-00002-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"}, "agree"),
        ({"a": "model-00001-of-00002.safetensors"}, ""),
        ({}, "weight_map"),
        ([], "weight_map"),
        (None, "weight_map"),
    ],
)
def test_a_hostile_index(save: Save, weight_map: object, message: str) -> None:
    folder = save(*PAIR)
    index(folder, weight_map)
    if message:
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(folder)
    else:
        assert list(open_checkpoint(folder).tensors) == ["a"]


def test_a_tensor_that_the_index_leaves_out(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "x.safetensors")
    index(tmp_path, {"a": "x.safetensors"})
    with pytest.raises(CheckpointError, match="has 'b', the index has not"):
        open_checkpoint(tmp_path)


def test_an_index_that_names_a_tensor_nobody_has(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    index(tmp_path, {"a": "x.safetensors", "b": "x.safetensors"})
    with pytest.raises(CheckpointError, match="it is in no file"):
        open_checkpoint(tmp_path)


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    for name in ("x.safetensors", "y.safetensors"):
        save_file({"a": torch.ones(1)}, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"'a' is in x.safetensors and in y.safetensors"):
        open_checkpoint(tmp_path)
    index(tmp_path, {"a": "x.safetensors"})
    assert list(open_checkpoint(tmp_path).tensors) == ["a"]


def test_a_single_file_beside_an_index_of_others(save: Save) -> None:
    folder = save(*PAIR)
    save_file({"c": torch.ones(1)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="which does not list it"):
        open_checkpoint(folder)


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02cos\nsystem\n")
    with pytest.raises(CheckpointError, match=r"only pickled weights: pytorch_model\.bin"):
        open_checkpoint(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no \*.safetensors file"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="no such file or folder"):
        open_checkpoint(tmp_path / "nowhere")


def test_links_out_of_the_folder(save: Save, tmp_path: Path) -> None:
    folder = save({"a": torch.ones(1)})
    secret = tmp_path / "secret"
    secret.write_text("{}")
    (folder / "tokenizer.json").symlink_to(secret)
    with pytest.raises(CheckpointError, match="a link to"):
        open_checkpoint(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "config.json").symlink_to(secret)
    with pytest.raises(CheckpointError, match="a link to"):
        open_checkpoint(folder)
    (folder / "config.json").unlink()
    (folder / "model.safetensors").rename(tmp_path / "weights")
    (folder / "model.safetensors").symlink_to(tmp_path / "weights")
    with pytest.raises(CheckpointError, match="a link to"):
        open_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="exist"):
        open_checkpoint(folder)


def test_links_inside_the_download_cache(save: Save, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (save({"a": torch.ones(1)}) / "model.safetensors").rename(blobs / "1234")
    (snapshot / "model.safetensors").symlink_to("../../blobs/1234")
    assert list(open_checkpoint(snapshot).tensors) == ["a"]


@pytest.mark.parametrize("text", ["[]", "{", '{"a":1,"a":2}', '{"a":1e999}', '{"a":nan}'])
def test_a_damaged_config(save: Save, text: str) -> None:
    folder = save({"a": torch.ones(1)})
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(folder)


def test_files_that_are_carried_over(save: Save) -> None:
    folder = save(*PAIR, config={})
    (folder / "chat_templates").mkdir()
    for name in (
        "tokenizer.json",
        "chat_templates/tool.jinja",
        "old.bin",
        ".gitattributes",
        "mxfp4_manifest.json",
    ):
        (folder / name).write_text("{}")
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("x")
    found = {path.as_posix() for path in open_checkpoint(folder).other_files}
    assert found == {"tokenizer.json", "chat_templates/tool.jinja"}


def test_headers_are_read_without_torch(save: Save) -> None:
    folder = save(*PAIR, config={"model_type": "llama"})
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from mxfp4_core import dialects\n"
        "from mxfp4_core.checkpoint.reader import open_checkpoint\n"
        f"found = open_checkpoint({str(folder)!r})\n"
        "assert dialects.identify(found) is None\n"
        "print(list(found.tensors))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "['a', 'b']", done.stderr


def test_torch_names_for_codes_and_scales(tmp_path: Path) -> None:
    codes = torch.arange(96, dtype=torch.uint8).reshape(3, 32)
    scales = torch.arange(6, dtype=torch.uint8).reshape(3, 2)
    tensors = {"w": codes.view(torch.float4_e2m1fn_x2), "w_scale": scales.view(torch.float8_e8m0fnu)}
    save_file(tensors, tmp_path / "model.safetensors")
    found = open_checkpoint(tmp_path)
    assert (found.tensors["w"].dtype, found.tensors["w"].shape) == ("F4", (3, 64))
    assert found.tensors["w_scale"].dtype == "F8_E8M0"
    for name, want in tensors.items():
        assert found.load(name).dtype == want.dtype
        assert torch.equal(found.load(name).view(torch.uint8), want.view(torch.uint8))
        assert torch.equal(found.rows(name, 1, 3).view(torch.uint8), want.view(torch.uint8)[1:])
        assert torch.equal(found.matrix_rows(name, 2, 3).view(torch.uint8), want.view(torch.uint8)[2:])


def test_four_bit_values_that_would_be_cut_inside_a_byte(tmp_path: Path) -> None:
    entries = {
        "a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]},
        "b": {"dtype": "F4", "shape": [2, 3], "data_offsets": [2, 5]},
    }
    header = json.dumps(entries).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(range(5)))
    found = open_checkpoint(tmp_path)
    assert found.rows("a", 2, 4).view(torch.uint8).tolist() == [1]
    for start, stop in ((1, 3), (0, 3)):
        with pytest.raises(CheckpointError, match="starts and ends with a byte"):
            found.rows("a", start, stop)
    with pytest.raises(CheckpointError, match="starts inside a byte"):
        found.rows("b", 1, 2)
