"""A bucket that refuses, fails, waits or hangs up: errors of ours with four parts, nothing half written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import s3
import s3fs
import torch

from mxfp4_core.checkpoint.staging import STAGING
from mxfp4_core.cli import main
from mxfp4_core.errors import CheckpointError, Mxfp4Error, OutputError
from mxfp4_core.jobs import quantize_checkpoint, verify_checkpoint

Save = Callable[..., Path]
Patience = Callable[[float, int], None]
SMALL = 6000
PATIENCE = 2.0
"""Seconds that a client waits for an answer where one is late; all others are there within some milliseconds."""
URL = f"s3://{s3.BUCKET}"
FAULTS = {
    "403": (s3.Fault("GET|HEAD|PUT|POST", "", status=403), "PermissionError", "the right to"),
    "500": (s3.Fault("GET|HEAD|PUT|POST", "", status=500), "Error", "run the same command again"),
    "503": (s3.Fault("GET|HEAD|PUT|POST", "", status=503), "Error", "run the same command again"),
    "slow": (s3.Fault("GET|HEAD|PUT|POST", "", wait=4.0), "imeout", "run the same command again"),
    "cut": (s3.Fault("GET|PUT|POST", "", status=0), "Error", "run the same command again"),
}

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def patience(door: s3.Door, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float, int], None]]:
    """Return what sets how long clients wait for an answer and how often they ask, as users can; at first once."""

    def clients(seconds: float, attempts: int) -> None:
        settings = {"config_kwargs": {"read_timeout": seconds, "retries": {"total_max_attempts": attempts}}}
        monkeypatch.setitem(fsspec.config.conf, "s3", settings)
        monkeypatch.setattr(s3fs.S3FileSystem, "retries", attempts)
        s3fs.S3FileSystem.clear_instance_cache()

    clients(60, 1)
    yield clients
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def source(save: Save, dense: dict[str, torch.Tensor]) -> Path:
    return save(dense, config={"model_type": "llama"})


@pytest.fixture
def remote(source: Path, bucket: Any) -> str:
    bucket.put(str(source), f"{s3.BUCKET}/source", recursive=True)
    return f"{URL}/source"


def keys(bucket: Any, folder: str) -> set[str]:
    bucket.invalidate_cache()
    root = f"{s3.BUCKET}/{folder}/"
    return {path.removeprefix(root) for path in bucket.find(root)}


def check(error: Mxfp4Error, says: str, fix: str) -> None:
    assert s3.BUCKET in error.what
    assert says in error.seen
    assert fix in error.fix
    assert error.rule


@pytest.mark.parametrize(
    ("kind", "place"),
    [*((kind, r"model\.safetensors") for kind in FAULTS), ("403", "/source/"), ("500", r"config\.json")],
)
def test_a_source_that_cannot_be_read(
    door: s3.Door, remote: str, tmp_path: Path, kind: str, place: str, patience: Patience
) -> None:
    fault, says, fix = FAULTS[kind]
    patience(1 if fault.wait else 60, 1)
    door.faults.append(s3.Fault("GET|HEAD" if kind != "cut" else "GET", place, fault.status, fault.wait))
    with pytest.raises(CheckpointError) as caught:
        quantize_checkpoint(remote, tmp_path / "target", max_shard_bytes=SMALL)
    check(caught.value, says, fix)
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        *((kind, "/target/model-00003") for kind in ("403", "500", "503", "slow")),
        ("403", r"run\.json"),
        ("slow", r"config\.json"),
        ("500", r"mxfp4_manifest\.json"),
    ],
)
def test_a_target_that_cannot_be_written(
    door: s3.Door, bucket: Any, source: Path, kind: str, place: str, patience: Patience
) -> None:
    fault, says, fix = FAULTS[kind]
    patience(PATIENCE if fault.wait else 60, 1)
    door.faults.append(s3.Fault("PUT|POST", place, fault.status, fault.wait))
    with pytest.raises(OutputError) as caught:
        quantize_checkpoint(source, f"{URL}/target", max_shard_bytes=SMALL)
    check(caught.value, says, fix)
    patience(60, 1)
    assert "mxfp4_manifest.json" not in keys(bucket, "target")
    door.faults.clear()
    done = quantize_checkpoint(source, f"{URL}/target", max_shard_bytes=SMALL)
    assert done.resumed == {"/": 2, "r": 0}.get(place[0], len(done.files))
    assert verify_checkpoint(f"{URL}/target", source).ok
    assert not any(name.startswith(STAGING) for name in keys(bucket, "target"))


@pytest.mark.parametrize("place", ["/target/model-00003", r"mxfp4_manifest\.json"])
# Such an upload has happened, and nobody knows it.
def test_answers_to_an_upload_that_are_cut(door: s3.Door, bucket: Any, source: Path, place: str) -> None:
    door.faults.append(s3.Fault("PUT|POST", place, 0, times=3))
    try:
        quantize_checkpoint(source, f"{URL}/target", max_shard_bytes=SMALL)
    except OutputError as error:
        assert "run the same command again" in error.fix
        door.faults.clear()
        quantize_checkpoint(source, f"{URL}/target", max_shard_bytes=SMALL)
    assert verify_checkpoint(f"{URL}/target", source).ok


@pytest.mark.parametrize("kind", ["500", "slow", "cut"])
def test_what_passes_is_not_noticed(
    door: s3.Door, remote: str, tmp_path: Path, kind: str, patience: Patience
) -> None:
    fault, _, _ = FAULTS[kind]
    patience(PATIENCE if fault.wait else 60, 3)
    door.faults.append(s3.Fault("GET", r"model\.safetensors", fault.status, fault.wait, times=1))
    quantize_checkpoint(remote, tmp_path / "target", max_shard_bytes=SMALL)
    assert verify_checkpoint(tmp_path / "target", remote).ok
    assert door.faults[0].times == 0


@pytest.mark.parametrize(
    "path", [f"{URL}/nothing", "s3://no-such-bucket/model", f"{URL}/nothing/model.safetensors"]
)
def test_what_is_not_there(bucket: Any, tmp_path: Path, path: str) -> None:
    with pytest.raises(CheckpointError, match="no such file or folder"):
        quantize_checkpoint(path, tmp_path / "target")


def test_a_bucket_to_write_into_that_is_not_there(bucket: Any, source: Path) -> None:
    with pytest.raises(OutputError) as caught:
        quantize_checkpoint(source, "s3://no-such-bucket/model")
    assert "no-such-bucket" in caught.value.what
    assert "check the name" in caught.value.fix


def test_a_checkpoint_with_gaps(bucket: Any, save: Save, dense: dict[str, torch.Tensor]) -> None:
    names = sorted(dense)
    parts = [{name: dense[name] for name in names[at::3]} for at in range(3)]
    bucket.put(str(save(*parts, name="three")), f"{s3.BUCKET}/three", recursive=True)
    bucket.rm_file(f"{s3.BUCKET}/three/model-00002-of-00003.safetensors")
    with pytest.raises(CheckpointError, match="does not exist"):
        quantize_checkpoint(f"{URL}/three", f"{URL}/target")


def test_no_server(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        s3fs.S3FileSystem.clear_instance_cache()
        main(["quantize", f"{URL}/source", str(tmp_path / "target"), "--json"])
    s3fs.S3FileSystem.clear_instance_cache()
    error = json.loads(capsys.readouterr().out)["error"]
    assert ended.value.code == 1
    assert error["type"] == "CheckpointError" and "endpoint" in error["fix"]


def test_no_credentials(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(CheckpointError) as caught:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        patch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        s3fs.S3FileSystem.clear_instance_cache()
        quantize_checkpoint(f"{URL}/source", tmp_path / "target")
    s3fs.S3FileSystem.clear_instance_cache()
    assert "credentials" in caught.value.fix
