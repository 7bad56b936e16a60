"""What the members of this repository and their tests require, and whether it is installed here."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import linked
import nox
from packaging.requirements import Requirement

EXTRAS = ("cpu", "cli")
"""Of the members: what their users install, and the tests need."""

OPTIONAL = ("compressed-tensors", "diffusers", "gguf", "peft", "pytest-cov", "triton")
"""Tests do without."""


def _extras(member: Path) -> dict[str, list[str]]:
    """Return the requirements of the extras that a member has and the tests need, by their name."""
    project = nox.project.load_toml(member / "pyproject.toml")["project"]
    return {name: needs for name, needs in project.get("optional-dependencies", {}).items() if name in EXTRAS}


def with_extras(member: Path) -> str:
    """Return what pip installs for a member: its folder, and its extras in brackets."""
    names = ",".join(_extras(member))
    return f"{member}[{names}]" if names else str(member)


def check_needs(session: nox.Session, texts: tuple[str, ...]) -> None:
    """Stop where a package that the tests need is not installed, and name all of them.

    Args:
        session: of nox.
        texts: requirements beside those of the members.
    """
    for member in linked.members():
        texts += tuple(nox.project.load_toml(member / "pyproject.toml")["project"]["dependencies"])
        texts += tuple(text for needs in _extras(member).values() for text in needs)
    absent = []
    for text in texts:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate():
            continue
        try:
            found = None if requirement.name.startswith("mxfp4-") else version(requirement.name)
        except PackageNotFoundError:
            # Under another name it counts as well: ROCm's builds of torch bring Triton as pytorch-triton-rocm.
            if find_spec(requirement.name.replace("-", "_")) is None:
                absent.append(text)
            continue
        if found and not requirement.specifier.contains(found, prereleases=True):
            session.warn(f"{requirement.name} {found} is here, {text} is asked for")
    optional = [text for text in absent if Requirement(text).name in OPTIONAL]
    if optional:
        session.warn(f"not installed, so the tests that need them are skipped: {' '.join(optional)}")
    needed = [text for text in absent if text not in optional]
    if needed:
        session.error(f"not installed, but needed: pip install {' '.join(map(repr, needed))}")


__all__ = ["EXTRAS", "check_needs", "with_extras"]
