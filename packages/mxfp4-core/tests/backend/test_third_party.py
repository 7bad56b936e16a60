"""A backend that lives outside this repository, and the pytest plug-in that judges it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pages import commands, install, python, run, write

PAGE = "add-a-backend.md"


@pytest.fixture
def somewhere(tmp_path: Path) -> Path:
    write(PAGE, tmp_path)
    install(tmp_path)
    return tmp_path


def test_a_foreign_backend_passes_the_suite(somewhere: Path) -> None:
    code, counts, output = run(somewhere, "--require-backend", "toy", "test_toy.py")
    assert code == 0 and set(counts) == {"passed"} and counts["passed"] > 200, output
    assert "features of toy that no test exercised: none" in output, output


def test_every_block_of_the_page_is_run(somewhere: Path) -> None:
    found = write(PAGE, somewhere)
    assert {block.language for block in found} == {"python", "toml", "sh"}
    assert all(block.name for block in found if block.language != "sh")
    known = {"pip", "mxfp4", "pytest"}  # pip is `install`, the runs of the whole suite are the test above
    assert {words[0] for words in commands(found)} == known
    asked = [words for words in commands(found) if words[0] == "mxfp4"]
    assert asked
    for words in asked:
        done = python(somewhere, "-m", "mxfp4_core", *words[1:])
        assert done.returncode == 0 and "toy" in done.stdout, done.stdout + done.stderr


def test_a_layout_in_place_passes_the_suite(somewhere: Path) -> None:
    code, counts, output = run(somewhere, "test_in_place.py", "-k", "layout or module or loader or verdict")
    assert code == 0 and counts["passed"] > 40, output


def test_kernels_and_choices_of_the_page(somewhere: Path) -> None:
    code = (
        "import toy_kernels; from mxfp4_core.backend import Problem, compile_all; toy = toy_kernels.Compiled();"
        "toy_kernels.FOLDER = toy_kernels.Path('kernels').resolve();"
        "kernels = lambda: toy.kernels().kernels;"
        "print([one.state for one in compile_all(kernels(), jobs=2)], [one.cached for one in kernels()]);"
        "print([(row.first, row.last) for row in toy.choices(Problem(op='linear', n=64, k=64))])"
    )
    done = python(somewhere, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['compiled', 'compiled'] [True, True]\n[(1, 8), (9, 4096)]\n"


def test_options_of_the_page_reach_the_backend(somewhere: Path) -> None:
    code = (
        "from mxfp4_core import select_backend; from mxfp4_core.backend import Problem;"
        "from mxfp4_core.config import Mxfp4Config; config = Mxfp4Config.from_file('config.toml');"
        "made = lambda options: select_backend(Problem(op='linear', n=64, k=64), backend=config.backend,"
        " backend_options=options);"
        "print(made(config.backend_options)); made({'toy': {'sped': 'slow'}})"
    )
    done = python(somewhere, "-c", code)
    assert "speed slower" in done.stdout and "did you mean 'speed'?" in done.stderr, done.stdout + done.stderr


def test_a_missing_device_is_skipped_or_is_a_failure(tmp_path: Path) -> None:
    write(PAGE, tmp_path, {'"cpu"': '"cuda-of-the-future"'})
    install(tmp_path)
    chosen = "-k", "linear_the_same_twice or ordinary_problem or misaligned"
    code, counts, output = run(tmp_path, "test_toy.py", *chosen)
    # verdicts and layouts are tested without the device
    assert code == 0 and counts["skipped"] == 1 and counts["passed"] >= 4, output
    code, counts, output = run(tmp_path, "test_toy.py", "--require-backend", "toy", *chosen)
    assert code == 1 and counts["error"] == 1 and "skipped" not in counts, output
    assert "--require-backend toy allows no skip" in output and "is no cuda-of-the-future" in output


def test_a_required_backend_that_was_not_tested_is_a_failure(somewhere: Path) -> None:
    (somewhere / "test_other.py").write_text("def test_it():\n    pass\n")
    code, counts, output = run(somewhere, "test_other.py", "--require-backend", "toy")
    assert code == 1 and counts["passed"] == 1, output
    assert "--require-backend toy: no test of its suite passed" in output


def test_a_feature_that_no_test_exercises_is_a_failure(tmp_path: Path) -> None:
    """A feature that is refused wherever a test would compute with it passes each test, and is caught in the end."""
    rule = "        if problem.bias and (problem.n, problem.k) != (4096, 4096):\n"
    rule += "            return No('a bias', 'leave it out')\n"
    features = '{"linear", "moe", "bias", "expert-map", "gate:silu", "gate:clamped", "rows:interleaved"}'
    changes = {"        return Yes(f": f"{rule}        return Yes(f", features: '{"linear", "bias"}'}
    write(PAGE, tmp_path, changes)
    install(tmp_path)
    code, counts, output = run(tmp_path, "test_toy.py", "--require-backend", "toy")
    assert code == 1 and set(counts) == {"passed"}, output
    assert "features of toy that no test exercised: bias" in output
    assert "--require-backend toy: it lists features that no test exercised: bias" in output


def test_the_shipped_file_tests_any_backend_by_name(somewhere: Path) -> None:
    options = "--pyargs", "mxfp4_core.testing.test_backend", "-k", "test_members or same_twice"
    code, counts, output = run(somewhere, *options, "--mxfp4-backend", "toy", "--require-backend", "toy")
    assert code == 0 and counts["passed"] == 3, output
    assert "(a part of the suite ran)" in output
    code, _, output = run(somewhere, *options, "--mxfp4-backend", "toi")
    assert code == 1 and "no distribution registers the backend 'toi'" in output


def test_pytest_starts_without_torch(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "import sys\n\n\ndef pytest_sessionfinish():\n    print('HEAVY', {'torch', 'numba'} & set(sys.modules))\n"
    )
    (tmp_path / "test_it.py").write_text(
        "def test_it(request):\n    request.config.getoption('--require-backend')\n"
    )
    code, _, output = run(tmp_path, "-s", "test_it.py")
    assert code == 0 and "HEAVY set()" in output, output
