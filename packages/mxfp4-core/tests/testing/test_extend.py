"""A package outside this repository brings one of each kind of plug-in, and each passes its conformance suite."""

from __future__ import annotations

from pathlib import Path

import pytest
from pages import install, python, run, write

PAGE = "extend.md"
SUITES = ("TestBackend", "TestDialect", "TestFormat", "TestModels", "TestProfile")


@pytest.fixture
def somewhere(tmp_path: Path) -> Path:
    found = write(PAGE, tmp_path)
    assert all(block.name for block in found), "every block of the page is a file"
    install(tmp_path)
    return tmp_path


def test_each_plug_in_passes_its_suite(somewhere: Path) -> None:
    code, counts, output = run(somewhere, "test_acme.py", "-rp", "--require-backend", "acme")
    assert code == 0 and set(counts) == {"passed"}, output
    for suite in SUITES:
        assert output.count(f"::{suite}::") >= 6, suite
    assert "features of acme that no test exercised: none" in output


def test_they_work_together(somewhere: Path) -> None:
    """A weight in the format of the package, and a checkpoint in its dialect by its profile, from one to the other."""
    code = (
        "import torch; from safetensors.torch import save_file; from pathlib import Path;"
        "from mxfp4_core import Mxfp4Config, quantize; from mxfp4_core.jobs import quantize_checkpoint;"
        "from mxfp4_core.checkpoint import open_checkpoint; from mxfp4_core import dialects;"
        "Path('model').mkdir(); weight = torch.randn(128, 64).bfloat16();"
        "emb = torch.randn(96, 64).bfloat16();"
        "save_file({'layers.0.up.weight': weight, 'emb.weight': emb}, 'model/model.safetensors');"
        "Path('model/config.json').write_text('{\"model_type\": \"acme\"}');"
        "quantize_checkpoint('model', 'made', Mxfp4Config.from_dict({'dialect': 'acme', 'profile': 'acme-floor'}));"
        "dialect, contents = dialects.read(open_checkpoint('made'));"
        "print(dialect.name, sorted(contents.entries), contents.profile);"
        "print(sorted(quantize(weight, format='acme-fp8').parts))"
    )
    done = python(somewhere, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == [
        "acme ['layers.0.up.weight'] acme-floor",
        "['codes', 'scales']",
    ]
