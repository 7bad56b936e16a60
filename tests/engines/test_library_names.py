"""The names that the adapters take from transformers and diffusers are in a release, whose version they allow: read."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from released import INTEGRATION, check_name, source_of, taken, version_of

ADAPTERS = {"transformers": INTEGRATION / "mxfp4-transformers", "diffusers": INTEGRATION / "mxfp4-diffusers"}
NAMES = [
    (package, *pair)
    for package, adapter in ADAPTERS.items()
    for pair in taken(sorted((adapter / "src").rglob("*.py")), package)
]


def source(package: str) -> Path:
    found = source_of(package)
    if not found.exists():
        pytest.skip(f"another release is read, not one of {package}")
    return found


@pytest.mark.parametrize(("package", "module", "name"), NAMES)
def test_the_names_are_there(package: str, module: str, name: str) -> None:
    check_name(source(package), module, name)


@pytest.mark.parametrize("package", ADAPTERS)
def test_the_adapter_takes_the_release(package: str) -> None:
    version = version_of(source(package), [package])
    project = tomllib.loads((ADAPTERS[package] / "pyproject.toml").read_text())["project"]
    (allowed,) = (each for each in map(Requirement, project["dependencies"]) if each.name == package)
    assert allowed.specifier.contains(version), f"{package} {version} is there, and {allowed} allowed"
