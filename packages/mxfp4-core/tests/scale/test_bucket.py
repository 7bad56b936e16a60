"""Checkpoints in a bucket of a real S3 server: read, quantised, converted, verified; resumed; two runs at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import s3
import torch

from mxfp4_core.checkpoint.assemble import ShardTask
from mxfp4_core.checkpoint.remote import RemotePath
from mxfp4_core.checkpoint.staging import STAGING
from mxfp4_core.checkpoint.tasks import Progress
from mxfp4_core.cli import main
from mxfp4_core.config import Mxfp4Config
from mxfp4_core.errors import CheckpointError, ConfigError, NonFiniteError, OutputError
from mxfp4_core.jobs import (
    convert_checkpoint,
    plan_checkpoint,
    processes,
    quantize_checkpoint,
    verify_checkpoint,
)

Save = Callable[..., Path]
Contents = Callable[[Path], dict[str, bytes]]
SMALL = 6000
URL = f"s3://{s3.BUCKET}"

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def source(save: Save, dense: dict[str, torch.Tensor]) -> Path:
    names = sorted(dense)
    files = ({name: dense[name] for name in names[:5]}, {name: dense[name] for name in names[5:]})
    folder = save(*files, config={"model_type": "llama"})
    (folder / "tokenizer.json").write_text("{}")
    (folder / "sub").mkdir()
    (folder / "sub" / "vocab.txt").write_text("words")
    return folder


@pytest.fixture
def local(source: Path, contents: Contents) -> dict[str, bytes]:
    quantize_checkpoint(source, source.parent / "local", max_shard_bytes=SMALL)
    return contents(source.parent / "local")


def below(bucket: Any, folder: str) -> dict[str, bytes]:
    bucket.invalidate_cache()
    root = f"{s3.BUCKET}/{folder}/"
    return {path.removeprefix(root): bucket.cat_file(path) for path in bucket.find(root)}


def stop_after(shards: int, patch: pytest.MonkeyPatch) -> None:
    run, done = ShardTask.run, 0

    def stop_later(task: ShardTask, progress: Progress) -> dict[str, Any]:
        nonlocal done
        if done == shards:
            raise KeyboardInterrupt
        done += 1
        return run(task, progress)

    patch.setattr(ShardTask, "run", stop_later)


def test_from_a_bucket_and_into_it(source: Path, bucket: Any, local: dict[str, bytes]) -> None:
    bucket.put(str(source), f"{s3.BUCKET}/source", recursive=True)
    assert plan_checkpoint(f"{URL}/source").quantized
    seen: list[tuple[int, int]] = []
    done = quantize_checkpoint(
        f"{URL}/source", f"{URL}/a/b", max_shard_bytes=SMALL, progress=lambda *now: seen.append(now)
    )
    assert below(bucket, "a/b") == local
    assert str(done.path) == f"{URL}/a/b" and f"{URL}/a/b" in done.load
    assert seen[-1][0] == seen[-1][1] > 0
    convert_checkpoint(f"{URL}/a/b", f"{URL}/quark", "quark", max_shard_bytes=SMALL)
    convert_checkpoint(source.parent / "local", source.parent / "quark", "quark", max_shard_bytes=SMALL)
    assert below(bucket, "quark").keys() == {
        path.relative_to(source.parent / "quark").as_posix()
        for path in (source.parent / "quark").rglob("*")
        if path.is_file()
    }
    for target, origin in (("a/b", f"{URL}/source"), ("quark", str(source))):
        result = verify_checkpoint(f"{URL}/{target}", origin)
        assert result.ok, result.findings
    assert not verify_checkpoint(f"{URL}/a/b").notes


def test_by_processes(source: Path, bucket: Any, local: dict[str, bytes]) -> None:
    bucket.put(str(source), f"{s3.BUCKET}/source", recursive=True)
    with processes(2) as executor:
        quantize_checkpoint(f"{URL}/source", f"{URL}/target", max_shard_bytes=SMALL, executor=executor)
        assert below(bucket, "target") == local
        assert verify_checkpoint(f"{URL}/target", source, executor=executor).ok


def test_the_command_line(
    source: Path, bucket: Any, local: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (
        ["quantize", str(source), f"{URL}/target", "--max-shard-size", str(SMALL), "--models", "none"],
        ["verify", f"{URL}/target", "--source", str(source)],
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        told = capsys.readouterr()
        assert ended.value.code == 0, told.err
        assert f"{URL}/target" in told.out
    assert below(bucket, "target").keys() == local.keys()


def test_a_weight_of_several_parts(save: Save, bucket: Any) -> None:
    """Objects above a part are uploaded as such, and read by several requests."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(8704, 4096, generator=generator).bfloat16()  # its codes are 17 MiB, and a part is 16
    source = save({"model.layers.0.mlp.up_proj.weight": weight}, config={"model_type": "llama"})
    bucket.put(str(source), f"{s3.BUCKET}/source", recursive=True)
    quantize_checkpoint(f"{URL}/source", f"{URL}/target")
    quantize_checkpoint(source, source.parent / "local")
    for name in ("model.safetensors", "mxfp4_manifest.json"):
        assert below(bucket, "target")[name] == (source.parent / "local" / name).read_bytes()


def test_an_interrupted_run_goes_on(
    source: Path, bucket: Any, local: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(3, patch)
        quantize_checkpoint(source, f"{URL}/target", max_shard_bytes=SMALL)
    left = below(bucket, "target")
    assert not {"config.json", "mxfp4_manifest.json", "model.safetensors.index.json"} & left.keys()
    with pytest.raises(CheckpointError):
        verify_checkpoint(f"{URL}/target")
    with pytest.raises(OutputError, match=r"3 finished shard.* of another run"):
        quantize_checkpoint(source, f"{URL}/target")
    touched = sorted(name for name in left if name.endswith(".safetensors"))[1]
    bucket.pipe_file(f"{s3.BUCKET}/target/{touched}", left[touched][:-1] + b"!")
    assert quantize_checkpoint(source, f"{URL}/target", max_shard_bytes=SMALL).resumed == 2
    assert below(bucket, "target") == local


def test_the_work_of_another_run_is_discarded_with_force(
    source: Path, bucket: Any, local: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(3, patch)
        quantize_checkpoint(source, f"{URL}/target", max_shard_bytes=SMALL // 2)
    quantize_checkpoint(source, f"{URL}/target", max_shard_bytes=SMALL, force=True)
    assert below(bucket, "target") == local


def test_a_checkpoint_is_never_replaced(source: Path, bucket: Any, local: dict[str, bytes]) -> None:
    quantize_checkpoint(source, f"{URL}/target", max_shard_bytes=SMALL)
    for force in (False, True):
        with pytest.raises(OutputError, match="never replaced"):
            quantize_checkpoint(source, f"{URL}/target", force=force)
    assert below(bucket, "target") == local
    bucket.pipe_file(f"{s3.BUCKET}/other/notes.md", b"mine")
    with pytest.raises(OutputError, match=r"notes\.md"):
        quantize_checkpoint(source, f"{URL}/other")


def test_two_runs_into_one_folder(
    source: Path, bucket: Any, local: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one writes, another one is refused; where it forces its way, the first one notices at its end."""
    run, tried = ShardTask.run, 0

    def meanwhile(task: ShardTask, progress: Progress) -> dict[str, Any]:
        nonlocal tried
        tried += 1
        if tried == 3:
            with monkeypatch.context() as patch:
                patch.setattr(ShardTask, "run", run)
                with pytest.raises(OutputError, match="of another run"):
                    quantize_checkpoint(source, f"{URL}/target")
                quantize_checkpoint(source, f"{URL}/target", force=True)
        return run(task, progress)

    with monkeypatch.context() as patch:
        patch.setattr(ShardTask, "run", meanwhile)
        with pytest.raises(OutputError):
            quantize_checkpoint(source, f"{URL}/target", max_shard_bytes=SMALL)


def test_a_run_that_begins_at_the_same_moment(
    source: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mxfp4_core.checkpoint import bucket as module

    create = module.Bucket._create

    def late(self: module.Bucket) -> None:
        other = {"run": {"another": "run"}, "seen": ""}
        bucket.pipe_file(f"{s3.BUCKET}/target/{STAGING}/run.json", module.line_of(other))
        create(self)

    monkeypatch.setattr(module.Bucket, "_create", late)
    with pytest.raises(OutputError, match="another run has begun"):
        quantize_checkpoint(source, f"{URL}/target")
    assert below(bucket, "target").keys() == {f"{STAGING}/run.json"}


def test_killed_between_the_manifest_and_the_end(
    source: Path, bucket: Any, local: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mxfp4_core.checkpoint.bucket import Bucket

    def killed(self: Bucket, *paths: RemotePath) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Bucket, "_remove", killed)
        quantize_checkpoint(source, f"{URL}/target", max_shard_bytes=SMALL)
    assert "did not finish" in verify_checkpoint(f"{URL}/target").notes[0]
    done = quantize_checkpoint(source, f"{URL}/target", max_shard_bytes=SMALL)
    assert done.resumed == len(done.files)
    assert below(bucket, "target") == local


def test_a_source_that_changes_underneath(
    source: Path, bucket: Any, dense: dict[str, torch.Tensor], save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put(str(source), f"{s3.BUCKET}/source", recursive=True)
    other = (source / "model-00002-of-00002.safetensors").read_bytes()
    run, done = ShardTask.run, 0

    def replace_later(task: ShardTask, progress: Progress) -> dict[str, Any]:
        nonlocal done
        done += 1
        if done == 3:
            bucket.pipe_file(f"{s3.BUCKET}/source/model-00002-of-00002.safetensors", other[:-1] + b"\x3e")
        return run(task, progress)

    with monkeypatch.context() as patch:
        patch.setattr(ShardTask, "run", replace_later)
        with pytest.raises(CheckpointError, match="replaced or written to while it was read"):
            quantize_checkpoint(f"{URL}/source", f"{URL}/target", max_shard_bytes=SMALL)
    assert below(bucket, "target") == {}


def test_a_weight_that_cannot_be_quantised_leaves_nothing(
    save: Save, bucket: Any, dense: dict[str, torch.Tensor]
) -> None:
    dense["model.layers.0.self_attn.v_proj.weight"][3, 5] = float("nan")
    source = save(dense, config={"model_type": "llama"})
    with pytest.raises(NonFiniteError):
        quantize_checkpoint(source, f"{URL}/target", max_shard_bytes=SMALL)
    assert below(bucket, "target") == {}


def test_damage_is_found(source: Path, bucket: Any) -> None:
    quantize_checkpoint(source, f"{URL}/target", max_shard_bytes=SMALL)
    shards = [name for name in below(bucket, "target") if name.endswith("00003-of-00009.safetensors")]
    for name in [*shards, "tokenizer.json"]:
        raw = below(bucket, "target")[name]
        bucket.pipe_file(f"{s3.BUCKET}/target/{name}", raw[:-1] + bytes([raw[-1] ^ 1]))
        result = verify_checkpoint(f"{URL}/target")
        assert not result.ok
        bucket.pipe_file(f"{s3.BUCKET}/target/{name}", raw)
    assert verify_checkpoint(f"{URL}/target").ok
    manifest = json.loads(below(bucket, "target")["mxfp4_manifest.json"])
    assert set(manifest["files"]) == below(bucket, "target").keys() - {"mxfp4_manifest.json"}


def test_a_bucket_cannot_be_updated(source: Path, bucket: Any) -> None:
    with pytest.raises(ConfigError, match="never replaced"):
        quantize_checkpoint(source, f"{URL}/target", update=True)


def test_files_whose_tensors_lie_in_another_order(save: Save, bucket: Any, contents: Contents) -> None:
    """The dialect of msmodelslim has outer scales, which are made last, first in its files."""
    weight = torch.randn(96, 1024, generator=torch.Generator().manual_seed(2)).bfloat16()
    source = save({"model.layers.0.mlp.up_proj.weight": weight}, config={"model_type": "llama"})
    asked = {"dialect": "modelslim", "format": "mxfp4-dual", "activation": "mxfp4"}
    config = Mxfp4Config.from_dict(asked)
    quantize_checkpoint(source, f"{URL}/target", config)
    quantize_checkpoint(source, source.parent / "dual", config)
    assert below(bucket, "target") == contents(source.parent / "dual")
    assert verify_checkpoint(f"{URL}/target", source).ok
