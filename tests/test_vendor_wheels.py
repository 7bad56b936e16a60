"""tools/vendor_wheels.py finds, checks and unpacks vendors' wheels."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import vendor_wheels


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel of one module, known under the name of a real one."""
    kind = vendor_wheels.WHEELS["petit-kernel"]
    path = tmp_path / kind.file
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("package/module.py", "def call(a, b): ...\n")
        file.writestr("package/code.so", "machine code")
    known = replace(kind, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setitem(vendor_wheels.WHEELS, "petit-kernel", known)
    monkeypatch.setenv("MXFP4_VENDOR", str(tmp_path))
    return path


def test_a_wheel_that_is_here_is_found_and_unpacked(wheel: Path) -> None:
    assert vendor_wheels.find("petit-kernel") == wheel == vendor_wheels.fetch("petit-kernel")
    folder = vendor_wheels.unpacked("petit-kernel")
    assert folder is not None
    assert (folder / "package" / "module.py").read_text() == "def call(a, b): ...\n"
    assert not (folder / "package" / "code.so").exists()


def test_a_wheel_that_is_not_here_is_none_and_the_message_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MXFP4_VENDOR", str(tmp_path / "nothing"))
    assert vendor_wheels.find("amd-aiter") is None and vendor_wheels.unpacked("amd-aiter") is None
    assert "python3 tools/vendor_wheels.py amd-aiter" in vendor_wheels.missing("amd-aiter")


def test_another_file_of_the_same_name_is_refused(wheel: Path) -> None:
    wheel.write_bytes(b"something else")
    with pytest.raises(ValueError, match="was compared"):
        vendor_wheels.find("petit-kernel")
