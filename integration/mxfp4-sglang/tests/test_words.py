"""What needs no engine: versions, names, entry points, and that importing the package does not import SGLang."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import mxfp4_sglang
from mxfp4_core.errors import ConfigError
from mxfp4_sglang import __main__ as diagnosis
from mxfp4_sglang import words

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("found", ["0.5.17", "0.5.21", "0.5.21.post1", "0.5.23"])
def test_releases_that_are_known(found: str) -> None:
    words.check_version(found)


@pytest.mark.parametrize("found", ["0.5.16", "0.5.24", "0.6.0", "1.0", "main"])
def test_other_releases_are_refused_with_the_range(found: str) -> None:
    with pytest.raises(ConfigError) as caught:
        words.check_version(found)
    assert f"sglang {found}" in caught.value.seen
    assert "0.5.17 to 0.5.23" in caught.value.rule


def test_the_diffusion_server_loads_plug_ins_later() -> None:
    words.check_version("0.5.21", words.FIRST_DIFFUSION)
    with pytest.raises(ConfigError, match="diffusion server"):
        words.check_version("0.5.20", words.FIRST_DIFFUSION)


def test_without_sglang_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(ConfigError, match="pip install sglang"):
        words.installed_version()


def test_the_entry_points_are_where_sglang_looks() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = project["entry-points"]
    assert set(groups) == {"sglang.srt.plugins", "sglang.multimodal_gen.plugins"}
    assert not any(each.startswith("sglang") for each in project["dependencies"])


def test_importing_the_package_does_not_import_the_engine() -> None:
    assert mxfp4_sglang.METHOD == "mxfp4-core"
    code = "import mxfp4_sglang, sys; sys.exit('sglang' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_diagnosis_names_what_keeps_the_plug_in_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(diagnosis, "installed_version", lambda: "0.5.20")
    monkeypatch.delenv("SGLANG_PLUGINS", raising=False)
    assert diagnosis.main() == 0
    said = capsys.readouterr().out.splitlines()
    assert "mxfp4-core" in said[0]
    assert "0.5.21 to 0.5.23" in "".join(said[1:])
    monkeypatch.setenv("SGLANG_PLUGINS", "other")
    assert diagnosis.main() == 1
    assert "SGLANG_PLUGINS allows other only" in capsys.readouterr().out
