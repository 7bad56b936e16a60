from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from mxfp4_core.backend import device, registry
from mxfp4_core.backend.choices import Choice
from mxfp4_core.backend.device import Device, Probe
from mxfp4_core.backend.reference.backend import ReferenceBackend
from mxfp4_core.cli import app
from mxfp4_core.cli import doctor as doctor_module
from mxfp4_core.cli.doctor import merged
from mxfp4_core.cli.settings import asked_device


def doctor(*options: str) -> Result:
    return CliRunner().invoke(app, ["doctor", *options])


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Probe((Device("cuda", "sm_90", "NVIDIA H200", 0, 140 << 30), device.cpu()), ("a note",))
    monkeypatch.setattr(device, "probe", lambda: found)


def test_without_a_gpu_the_reference_is_used() -> None:
    done = doctor("--device", "cpu:x86_64")
    assert done.exit_code == 0
    for words in ("torch ", "mxfp4-core ", "reference is used", "it widens the weights in every call"):
        assert words in done.output


def test_a_package_under_another_name_is_shown_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ROCm's builds of torch bring Triton."""
    info = tmp_path / "vendor_numba_rocm-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vendor-numba-rocm\nVersion: 9.9\n")
    (info / "top_level.txt").write_text("numbalike\n")
    (tmp_path / "numbalike.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor_module, "PACKAGES", ("numbalike", "no-such-package"))
    found = doctor_module.versions()
    assert found["numbalike"] == "9.9 (vendor-numba-rocm)" and found["no-such-package"] == "not installed"


@pytest.mark.usefixtures("gpu")
def test_why_did_it_not_use_my_gpu() -> None:
    done = doctor()
    assert done.exit_code == 1
    assert "cuda sm_90 (NVIDIA H200), 140.0 GiB" in done.output and "note: a note" in done.output
    assert "cuda-marlin    not installed  made for cuda sm_90" in done.output
    assert "fix: install mxfp4-cuda-marlin" in done.output
    assert "none is used" in done.output


@pytest.mark.usefixtures("gpu")
def test_a_named_fallback_is_reported() -> None:
    done = doctor("--fallback", "reference", "--op", "moe", "--json")
    data = json.loads(done.output)
    assert done.exit_code == 0 and data["choice"] == "reference" and data["fallback"] is True
    assert "GiB is free" in data["reason"] or "temporary memory" in data["reason"]
    assert data["devices"][0]["arch"] == "sm_90" and data["versions"]["python"] == sys.version.split()[0]
    assert {line["name"]: line["status"] for line in data["trace"]} == {
        "cuda-marlin": "not installed",
        "reference": "accepted",
    }


def test_sizes_reach_the_question() -> None:
    options = "--op", "moe", "--n", "768", "--k", "2048", "--experts", "128", "--top-k", "8", "--bias"
    data = json.loads(doctor(*options, "--device", "cpu", "--json").output)
    assert "moe m=any n=768 k=2048 experts=128/128 top_k=8 bfloat16 bias" in data["problem"]


def test_every_field_of_a_question_can_be_asked() -> None:
    options = "--op", "moe", "--format", "mxfp8+input_scale", "--shared-experts", "1"
    problem = json.loads(doctor(*options, "--device", "cpu", "--json").output)["problem"]
    assert all(word in problem for word in ("format:mxfp8", "input-scale", "shared-experts"))
    sorted_rows = json.loads(doctor("--op", "moe", "--tokens", "masked", "--device", "cpu", "--json").output)
    assert "tokens:masked" in sorted_rows["problem"]


def test_what_no_backend_offers_is_said() -> None:
    done = doctor("--dtype", "float64", "--device", "cpu")
    assert done.exit_code == 1 and "does not offer dtype:float64" in done.output


def test_what_is_true_for_the_problem_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReferenceBackend, "packages", ("no-such-package", "safetensors"), raising=False)
    done = doctor("--activation", "mxfp8", "--device", "cpu")
    assert "rank 100, activation mxfp8, activation profile floor/even" in done.output
    assert "no-such-package      not installed" in done.output
    data = json.loads(doctor("--activation", "auto", "--device", "cpu", "--json").output)
    assert data["trace"][-1]["numerics"]["activation"] == "none" and data["trace"][-1]["rank"] == 100
    assert data["reason"].endswith("activation auto is none")


def test_a_misspelt_backend_gets_a_near_miss(capsys: pytest.CaptureFixture[str]) -> None:
    from mxfp4_core.cli import main

    with pytest.raises(SystemExit) as stop:
        main(["doctor", "--backend", "refrence"])
    assert stop.value.code == 1 and "did you mean 'reference'?" in capsys.readouterr().err


def test_broken_plugins_are_shown_and_harm_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dead.py").write_text("import package_that_is_nowhere")
    info = tmp_path / "dead-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dead\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text("[mxfp4.backends]\ndead = dead:backend\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry.refresh()
    try:
        done = doctor("--device", "cpu:x86_64")
        assert done.exit_code == 0 and "reference is used" in done.output
        assert "ModuleNotFoundError: No module named 'package_that_is_nowhere' (dead 2.0)" in done.output
        assert "fix: install 'package_that_is_nowhere', which it needs" in done.output
        assert "pip uninstall dead" in done.output
    finally:
        registry.refresh()


def test_without_torch_it_still_answers(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    path = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, "-c", "from mxfp4_core.cli import main; main(['doctor'])"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    assert "importing torch failed: ImportError: libcudart.so.13" in done.stdout
    assert "reference      broken" in done.stdout and "Traceback" not in done.stderr


def test_a_table_of_choices_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (Choice(1, 8, "small", {"tile": 8}), Choice(9, 64, "large", {"tile": 64, "splits": 2}))
    monkeypatch.setattr(ReferenceBackend, "choices", lambda self, problem: rows)
    lines = [line.rstrip() for line in doctor("--device", "cpu").output.splitlines()]
    assert lines[-4:] == [
        "kernels, by the number of tokens in a call",
        "  tokens  kernel  tile  splits",
        "  1-8     small   8",
        "  9-64    large   64    2",
    ]
    data = json.loads(doctor("--device", "cpu", "--json").output)
    assert data["choices"][1] == {"first": 9, "last": 64, "kernel": "large", "settings": rows[1].settings}


def test_a_long_table_is_merged_for_people_and_whole_in_json(monkeypatch: pytest.MonkeyPatch) -> None:
    few = [Choice(m, m, "few", {"tile": m}) for m in range(1, 12)]
    many = [
        Choice(m, m, "many", {"tile": 5 * (m % 3), "splits": m % 2 + 1, "way": "x"}) for m in range(12, 40)
    ]
    monkeypatch.setattr(ReferenceBackend, "choices", lambda self, problem: (*few, *many))
    lines = [line.rstrip() for line in doctor("--device", "cpu").output.splitlines()]
    assert lines[-4:] == [
        "  11      few     11",
        "  12      many    0        1       x",
        "  13-39   many    0 to 10  1 or 2  x",
        "  39 rows, of which the last are merged here; --json lists each",
    ]
    assert len(json.loads(doctor("--device", "cpu", "--json").output)["choices"]) == 39


@given(st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=40), st.integers(4, 20))
def test_merged_rows_cover_what_the_table_covers(kernels: list[str], most: int) -> None:
    table = [Choice(10 * i + 1, 10 * i + 10, kernel, {"tile": i}) for i, kernel in enumerate(kernels)]
    rows = merged(table, most)
    assert (rows[0].first, rows[-1].last) == (1, 10 * len(table))
    assert all(below.last + 1 == above.first for below, above in pairwise(rows))
    for one in table:
        (row,) = [row for row in rows if row.first <= one.first and one.last <= row.last]
        assert row.kernel == one.kernel


@pytest.mark.parametrize("text", ["cuda:sm_90", "cuda:sm90", "CUDA:9.0", "cuda:90"])
def test_an_architecture_may_be_written_in_other_ways(text: str) -> None:
    assert asked_device(text) == Device("cuda", "sm_90")
    assert asked_device("cuda:sm_100a") == Device("cuda", "sm_100a")
    assert asked_device("hip:gfx90a") == Device("hip", "gfx90a") and asked_device("npu").arch == "unknown"


@pytest.mark.usefixtures("gpu")
def test_a_device_that_is_here_needs_no_architecture() -> None:
    assert asked_device("cuda").name == asked_device("cuda:0").name == "NVIDIA H200"
    assert asked_device("cpu") == device.cpu()


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("text", ["hip", "cuda:1"])
def test_a_gpu_that_is_not_here_needs_its_architecture(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    from mxfp4_core.cli import main

    with pytest.raises(SystemExit) as stop:
        main(["doctor", "--device", text])
    assert stop.value.code == 2 and "write cuda:sm_90" in capsys.readouterr().err


def test_a_type_of_device_that_nobody_serves_is_noted() -> None:
    assert "note: no backend of this project is for 'gpu'" in doctor("--device", "gpu").output


def test_a_broken_table_hides_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReferenceBackend, "choices", lambda self, problem: 1 / 0)
    done = doctor("--device", "cpu")
    assert done.exit_code == 0 and "reference is used" in done.output
    assert "note: reference: choices raised ZeroDivisionError" in done.output
