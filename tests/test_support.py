"""docs/support.md says what the declarations say, and each of them names a test that exists."""

from __future__ import annotations

from pathlib import Path

import pytest
import support

from mxfp4_core.backend.registry import installed

SOUND = """
backend = "acme"
[[proof]]
op = "linear"
archs = ["a1", "a2"]
provider = "acme kernels"
kind = "reading"
test = "test_acme.py::test_it"
"""


def package(folder: Path, text: str) -> Path:
    (folder / "tests").mkdir()
    (folder / "tests" / "proofs.toml").write_text(text)
    (folder / "tests" / "test_acme.py").write_text("def test_it(): ...\n")
    return folder


def test_the_page_is_up_to_date() -> None:
    assert support.PAGE.read_text(encoding="utf-8") == support.made(), "python3 tools/support.py"


def test_every_operator_of_every_backend_of_ours_has_a_row() -> None:
    folders = [path.parents[1] for path in support.ROOT.glob("packages/*/tests/proofs.toml")]
    rows = {(proof.backend, proof.op.split()[0]) for folder in folders for proof in support.read(folder)}
    for name, plugin in installed().items():
        if plugin.distribution.startswith("mxfp4-"):
            offered = {"linear", "moe", "quantize"} & plugin.load().features
            assert offered <= {op for backend, op in rows if backend == name}, name


def test_a_row_for_several_architectures_is_a_row_for_each(tmp_path: Path) -> None:
    proofs = support.read(package(tmp_path, SOUND))
    assert [proof.arch for proof in proofs] == ["a1", "a2"]
    text = support.page(proofs)
    assert "| linear | a2 | acme kernels | **reading**: `test_acme.py::test_it` |" in text


@pytest.mark.parametrize(
    ("old", "new"),
    [("test_it", "test_that"), ("test_acme.py", "test_other.py"), ("reading", "belief"), ('"linear"', '""')],
)
def test_a_claim_without_a_proof_is_refused(tmp_path: Path, old: str, new: str) -> None:
    with pytest.raises(support.Unsound):
        support.read(package(tmp_path, SOUND.replace(old, new)))
