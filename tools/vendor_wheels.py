"""Vendors' wheels for tests: fetched once, checked, unpacked, never installed and never imported as a whole.

    python3 tools/vendor_wheels.py               # fetch all of them
    python3 tools/vendor_wheels.py amd-aiter     # fetch one

What a vendor's package promises is read out of its files: signatures by AST, kernels as source. Importing one needs its
accelerator, and installing one changes torch for every other test, so the wheels stay in a folder of their own,
``~/.cache/mxfp4/vendor`` (``MXFP4_VENDOR`` names another one). Tests of a wheel that is not there are skipped, unless
``MXFP4_REQUIRE_VENDOR`` is set, as the sessions of ``noxfile.py`` do that are about these tests.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Wheel:
    """One wheel of one version: what was compared is this file and no other.

    Attributes:
        project: name on PyPI.
        version: the version.
        tag: tags of Python, ABI and platform in the name of the file.
        sha256: of the file.
        options: what pip needs beside the name, to take this file on any machine.
        older: whether a newer wheel of the project has the project's name here; this one has its version behind it.
    """

    project: str
    version: str
    tag: str
    sha256: str
    options: tuple[str, ...] = ()
    older: bool = False

    @property
    def key(self) -> str:
        """Its name here: ``torch-npu``, or ``torch-npu==2.13.0`` for an older one."""
        return f"{self.project}=={self.version}" if self.older else self.project

    @property
    def file(self) -> str:
        """Name of the file."""
        return f"{self.project.replace('-', '_')}-{self.version}-{self.tag}.whl"


def _for(python: str, platform: str) -> tuple[str, ...]:
    return (
        "--only-binary=:all:",
        "--implementation=cp",
        f"--python-version={python}",
        f"--platform={platform}",
    )


_OLDER_TORCH_NPU = (
    ("2.10.0.post7", "e30908176906d894199ab8eb6bb61b26c69768837125c69d028a1deb8b1f22f1"),
    ("2.12.0.post3", "70776a5afc58c3291efb38bcce8a83284fb3285758bd4472b9d47841788a2be1"),
    ("2.13.0", "0deb809cf447d3fce636ccfdc9c9f874950f1fe76f18f4aaab31e2d345f7dac0"),
    ("2.8.0.post5", "ae866d77780152cfbff83f9ebd7fe2aceba985949ceceedafca12c075231f3ea"),
    ("2.9.0.post9", "aac3e1b6a22755731fceceed502c3234cdf0b994c44a3bb1b165c6be7c52efd4"),
)
"""One release of each minor version of torch, and its sha256."""

WHEELS = {
    wheel.key: wheel
    for wheel in (
        Wheel(
            "amd-aiter",
            "0.1.7.post2.dev18",
            "py3-none-any",
            "fe139d74438217c35e87e3b961166bac8db2d381eadccb371da2e63615f05a31",
            ("--pre",),
        ),
        Wheel(
            "petit-kernel",
            "0.0.5",
            "cp312-cp312-manylinux_2_34_x86_64",
            "7f5b274e8b8e5d1918606219a369991a5008ddff7bb77134e623222e2bfde79c",
            _for("3.12", "manylinux_2_34_x86_64"),
        ),
        Wheel(
            "torch-npu",
            "2.14.0",
            "cp311-cp311-manylinux_2_28_x86_64",
            "7736f7d82cf9f16c7dfc4537f7e7c638153da760273a193455e70857f912189e",
            _for("3.11", "manylinux_2_28_x86_64"),
        ),
        *(
            Wheel(
                "torch-npu",
                version,
                "cp311-cp311-manylinux_2_28_x86_64",
                sha256,
                _for("3.11", "manylinux_2_28_x86_64"),
                older=True,
            )
            for version, sha256 in _OLDER_TORCH_NPU
        ),
    )
}


def folder() -> Path:
    """Return where the wheels are kept; it need not exist."""
    if named := os.environ.get("MXFP4_VENDOR"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mxfp4" / "vendor"


def find(project: str) -> Path | None:
    """Return the wheel of a project if it is here, None if not.

    Raises:
        ValueError: a file of that name is not the wheel that was compared.
    """
    wheel = WHEELS[project]
    path = folder() / wheel.file
    if not path.is_file():
        return None
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != wheel.sha256:
        raise ValueError(
            f"{path} has sha256 {found}, {wheel.sha256} was compared: delete it, and fetch it again"
        )
    return path


def fetch(project: str) -> Path:
    """Return the wheel of a project, after fetching it where it is not here.

    Raises:
        subprocess.CalledProcessError: pip does not get it.
        ValueError: what came is not the file that was compared.
    """
    if (here := find(project)) is not None:
        return here
    wheel = WHEELS[project]
    folder().mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += [f"--dest={folder()}", *wheel.options, f"{wheel.project}=={wheel.version}"]
    subprocess.run(command, check=True)
    got = find(project)
    if got is None:
        raise ValueError(f"pip fetched another file than {wheel.file} of {wheel.project} {wheel.version}")
    return got


def unpacked(project: str, suffixes: Sequence[str] = (".py", ".json", ".yaml", ".csv")) -> Path | None:
    """Return a folder with the files of a wheel that is here, those with these suffixes; None where it is not."""
    path = find(project)
    if path is None:
        return None
    target = path.with_suffix("")
    with zipfile.ZipFile(path) as wheel:
        for name in wheel.namelist():
            if name.endswith(tuple(suffixes)) and not (target / name).exists():
                wheel.extract(name, target)
    return target


def required() -> bool:
    """Say whether a test may not be skipped for want of a wheel."""
    return bool(os.environ.get("MXFP4_REQUIRE_VENDOR"))


def missing(project: str) -> str:
    """Return why a test of a wheel that is not here cannot run, and what to do."""
    return f"{WHEELS[project].file} is not in {folder()}: python3 tools/vendor_wheels.py {project}"


if __name__ == "__main__":
    for _name in sys.argv[1:] or WHEELS:
        if _name not in WHEELS:
            sys.exit(f"no such wheel: {_name}; there are {', '.join(WHEELS)}")
        print(fetch(_name))
