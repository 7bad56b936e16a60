"""Whatever folder people have: what is read, what goes with it, what is refused and how the message says it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mxfp4_core.checkpoint import is_adapter, local_path, open_checkpoint
from mxfp4_core.errors import CheckpointError

Save = Callable[..., Path]
ONE = {"model.layers.0.mlp.up_proj.weight": torch.ones(4, 32)}
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 1\n"


def put(folder: Path, names: Iterable[str]) -> None:
    """Write a file for each name, with a tensor of its own."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_file({f"{name}.weight": torch.ones(2)}, folder / name)


def index(folder: Path, files: Iterable[str], name: str = "model.safetensors.index.json") -> None:
    (folder / name).write_text(json.dumps({"weight_map": {f"{file}.weight": file for file in files}}))


def read(folder: Path) -> set[str]:
    return {path.name for path in open_checkpoint(folder).files}


def shards(numbers: Iterable[int], total: int, stem: str = "model") -> list[str]:
    return [f"{stem}-{number:05}-of-{total:05}.safetensors" for number in numbers]


@pytest.mark.parametrize("numbers", [(1, 3), (2, 3), (1, 2), (0, 1), (3,)])
@pytest.mark.parametrize("indexed", [False, True])
def test_a_missing_shard(tmp_path: Path, numbers: tuple[int, ...], indexed: bool) -> None:
    put(tmp_path, shards(numbers, 3))
    if indexed:
        index(tmp_path, shards(numbers, 3))
    missing = min(set(range(0 if 0 in numbers else 1, 4)) - set(numbers))
    with pytest.raises(CheckpointError, match=rf"number {missing}.* missing"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        shards((1, 2, 3), 3),
        shards((0, 1, 2), 3),
        ["model-1-of-2.safetensors", "model-2-of-2.safetensors"],
        ["model.fp16-00001-of-00001.safetensors"],
        ["diffusion_pytorch_model.safetensors"],
        ["L1.safetensors", "L2.safetensors"],
        ["consolidated.safetensors"],
    ],
)
def test_complete_without_an_index(tmp_path: Path, names: list[str]) -> None:
    put(tmp_path, names)
    assert read(tmp_path) == set(names)


@pytest.mark.parametrize(
    "names",
    [
        [*shards((1, 2), 2), "consolidated.safetensors"],
        [*shards((1, 2), 2), "mtp.safetensors"],
        [*shards((1, 2), 2), *shards((1, 2, 3), 3)],
        [*shards((1, 2), 2), *shards((1, 2), 2, "consolidated")],
        ["model.safetensors", *shards((1, 2), 2)],
        ["model.safetensors", "diffusion_pytorch_model.safetensors"],
        ["consolidated.safetensors", "x.safetensors"],
    ],
)
def test_two_models_in_one_folder(tmp_path: Path, names: list[str]) -> None:
    put(tmp_path, names)
    with pytest.raises(CheckpointError, match="side by side"):
        open_checkpoint(tmp_path)


def test_two_files_of_one_number_and_totals_from_anyone(tmp_path: Path) -> None:
    put(tmp_path, ["model-1-of-2.safetensors", "model-01-of-2.safetensors"])
    with pytest.raises(CheckpointError, match=r"missing|twice"):
        open_checkpoint(tmp_path)
    for name in tmp_path.iterdir():
        name.unlink()
    put(tmp_path, ["model-1-of-999999999.safetensors"])
    with pytest.raises(CheckpointError, match=r"number 2, 3, 4, 5, 6 … missing"):
        open_checkpoint(tmp_path)


def test_what_goes_with_a_model_and_what_stays(tmp_path: Path) -> None:
    main = shards((1, 2), 2)
    put(tmp_path, [*main, "mtp.safetensors", "2_Dense/model.safetensors", "lora/adapter_model.safetensors"])
    put(tmp_path, ["consolidated.safetensors", "original/x.safetensors"])
    index(tmp_path, main)
    index(tmp_path, ["consolidated.safetensors"], "consolidated.safetensors.index.json")
    index(tmp_path / "2_Dense", ["model.safetensors"])
    put(tmp_path, ["checkpoint-5/model.safetensors"])
    (tmp_path / "checkpoint-5" / "optimizer.pt").write_text("half")
    (tmp_path / "again").mkdir()
    for name in main:
        (tmp_path / "again" / name).write_bytes((tmp_path / name).read_bytes())
    texts = ("tokenizer.json", "spk_dict.pt", "model.onnx", "pytorch_model.bin.index.json", ".gitattributes")
    for name in (*texts, "config.json", "mxfp4_manifest.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text("x")
    (tmp_path / "elsewhere").symlink_to(tmp_path / "2_Dense")
    found = open_checkpoint(tmp_path)
    assert {path.name for path in found.files} == set(main)
    assert [path.as_posix() for path in found.other_files] == [
        "2_Dense/model.safetensors",
        "2_Dense/model.safetensors.index.json",
        "lora/adapter_model.safetensors",
        "mtp.safetensors",
        "tokenizer.json",
    ]
    assert dict(found.left) == {
        ".git/": "hidden",
        ".gitattributes": "hidden",
        "checkpoint-5/": "a state of training",
        **{f"again/{name}": "the model once more: its tensors have the same names" for name in main},
        "consolidated.safetensors": "the model once more, in the format of its makers",
        "consolidated.safetensors.index.json": "an index of files that are not taken over",
        "elsewhere/": "a link to a folder",
        "model.onnx": "in a format that is not read",
        "original/x.safetensors": "the model once more, in the format of its makers",
        "pytorch_model.bin.index.json": "an index of files that are not taken over",
        "spk_dict.pt": "a pickle, which is never opened",
    }


def test_a_file_that_was_never_fetched(save: Save) -> None:
    folder = save(ONE)
    (folder / "tokenizer.model").write_text(LFS)
    with pytest.raises(CheckpointError, match=r"tokenizer\.model\n.*Git LFS pointer"):
        open_checkpoint(folder)
    (folder / "tokenizer.model").unlink()
    (folder / "config.json").write_text(LFS)
    with pytest.raises(CheckpointError, match=r"config\.json\n.*Git LFS pointer"):
        open_checkpoint(folder)


def test_a_config_as_python_writes_it(save: Save) -> None:
    folder = save(ONE)
    (folder / "config.json").write_text('{"a": [0.0, Infinity, -Infinity], "b": NaN}')
    found = open_checkpoint(folder).config
    assert found["a"] == [0.0, math.inf, -math.inf]
    assert math.isnan(found["b"])


def cache(
    folder: Path, below: str = "", name: str = "models--acme--paint", revision: str = "0123abc"
) -> Path:
    """Write a model as huggingface_hub stores it, and return the folder that its user passes."""
    hub = folder / name
    where = hub / "snapshots" / revision / below
    where.mkdir(parents=True)
    (hub / "blobs").mkdir(exist_ok=True)
    save_file(ONE, hub / "blobs" / "aa")
    (hub / "blobs" / "bb").write_text('{"model_type": "llama"}')
    up = "../" * (len(Path(below).parts) + 2)
    (where / "model.safetensors").symlink_to(f"{up}blobs/aa")
    (where / "config.json").symlink_to(f"{up}blobs/bb")
    return where


@pytest.mark.parametrize("below", ["", "transformer", "a/b/c"])
def test_links_of_the_cache_at_any_depth(tmp_path: Path, below: str) -> None:
    where = cache(tmp_path, below)
    assert open_checkpoint(where).config == {"model_type": "llama"}
    for target in (tmp_path / "models--acme--paint" / "refs", tmp_path / "outside"):
        target.write_text("secret")
        (where / "vocab.txt").symlink_to(target)
        with pytest.raises(CheckpointError, match="a link to"):
            open_checkpoint(where)
        (where / "vocab.txt").unlink()


@pytest.mark.parametrize("name", ["snapshots", "model--x", "datasets--acme--paint"])
def test_a_folder_called_snapshots_is_no_cache(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="a link to"):
        open_checkpoint(cache(tmp_path, name=name))


def test_blobs_that_are_a_link_elsewhere(tmp_path: Path) -> None:
    where = cache(tmp_path)
    blobs = tmp_path / "models--acme--paint" / "blobs"
    blobs.rename(tmp_path / "secrets")
    blobs.symlink_to(tmp_path / "secrets")
    with pytest.raises(CheckpointError, match="a link to"):
        open_checkpoint(where)


def test_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    where = cache(tmp_path)
    cache(tmp_path, "transformer", name="models--gpt2")
    assert local_path("acme/paint") == where  # the only revision
    assert list(open_checkpoint("acme/paint").tensors) == list(ONE)
    assert local_path("gpt2").name == "0123abc"
    cache(tmp_path, "vae", revision="4567def")
    with pytest.raises(CheckpointError, match=r"2 in .*snapshots, and no refs/main"):
        open_checkpoint("acme/paint")
    (tmp_path / "models--acme--paint" / "refs").mkdir()
    (tmp_path / "models--acme--paint" / "refs" / "main").write_text("4567def\n")
    assert open_checkpoint("acme/paint/vae").path.parts[-2:] == ("4567def", "vae")
    with pytest.raises(
        CheckpointError, match=r"no model acme/other in the cache .*\n.*\n.*hf download acme/other"
    ):
        open_checkpoint("acme/other")
    (tmp_path / "models--acme--paint" / "refs" / "main").write_text("../../../outside")
    with pytest.raises(CheckpointError, match="no refs/main"):
        local_path("acme/paint")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HUGGINGFACE_HUB_CACHE": "old"}, "old"),
        ({"HF_HOME": "home"}, "home/hub"),
        ({"XDG_CACHE_HOME": "xdg"}, "xdg/huggingface/hub"),
        ({"HF_HUB_CACHE": "new", "HF_HOME": "home"}, "new"),
    ],
)
def test_where_the_cache_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    where = cache(tmp_path / expected)
    assert local_path("acme/paint") == where


@pytest.mark.parametrize("path", ["../acme", "/acme/paint", "acme/..", "a b/c"])
def test_no_name_on_the_hub(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="seen: no such file or folder\n"):
        open_checkpoint(path)


def test_an_adapter(tmp_path: Path, save: Save) -> None:
    factors = {f"base_model.model.q_proj.lora_{side}.weight": torch.ones(2, 4) for side in "AB"}
    save_file(factors, tmp_path / "adapter_model.safetensors")
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        with pytest.raises(CheckpointError, match="merge it first"):
            open_checkpoint(path)
    kohya = {f"unet_q.{part}": torch.ones(2, 4) for part in ("lora_up.weight", "lora_down.weight", "alpha")}
    with pytest.raises(CheckpointError, match="only factors of updates"):
        open_checkpoint(save(kohya, name="kohya"))
    whole = save({**ONE, **factors}, name="whole")  # a model may have low-rank layers of its own
    assert not is_adapter(whole)
    assert len(open_checkpoint(whole).tensors) == 3
    (whole / "adapter_config.json").write_text("{}")
    assert is_adapter(whole)
    with pytest.raises(CheckpointError, match="merge it first"):
        open_checkpoint(whole)


def test_folders_around_models(tmp_path: Path) -> None:
    put(
        tmp_path,
        ["transformer/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"],
    )
    with pytest.raises(CheckpointError, match=r"some in transformer, vae\n.*\n.*pass one of these folders"):
        open_checkpoint(tmp_path)
    put(tmp_path, ["flux1-dev.safetensors"])  # the same weights, for another program
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"a pipeline of several models .*transformer, vae"):
        open_checkpoint(tmp_path)


def test_the_root_of_a_cached_model_names_its_revisions(tmp_path: Path) -> None:
    for revision in ("0123abc", "4567def"):
        cache(tmp_path, revision=revision)
    seen = r"some in snapshots/0123abc, snapshots/4567def\n.*\n.*pass one of these folders"
    with pytest.raises(CheckpointError, match=seen):
        open_checkpoint(tmp_path / "models--acme--paint")
