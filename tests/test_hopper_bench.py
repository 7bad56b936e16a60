"""The parts of the Hopper benchmarks that need no GPU: options, who can run, whose time counts, and the tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))

from hopper import cases, compare, peers, tables, timing  # noqa: E402
from hopper.peers import marlin, vllm_files  # noqa: E402
from hopper.tables import Row, Timing  # noqa: E402

from mxfp4_cuda_marlin.marlin import MarlinLayout  # noqa: E402


def row(m: int, ours: float, **others: float | str) -> Row:
    found = {name: us if isinstance(us, str) else Timing(us, 2e-3) for name, us in others.items()}
    return Row("shape", m, 10.0, Timing(ours, 1e-3), found)


def test_bf16_is_shown_but_is_no_peer_to_compare_with() -> None:
    one = row(1, 20.0, marlin=30.0, humming=25.0, bf16=5.0)
    assert one.best() == ("humming", 25.0)
    assert one.gain() == pytest.approx(1.25)
    assert one.gain("marlin") == pytest.approx(1.5)
    assert "| 5.0 |" in tables.line(one, ["marlin", "humming", "bf16"])


def test_a_table_has_as_many_columns_in_each_line() -> None:
    lines = tables.markdown([row(1, 20.0, marlin=30.0, humming="absent")], ["marlin", "humming"])
    assert len({line.count("|") for line in lines}) == 1
    assert "1e-03 2e-03 -" in lines[-1]


def test_the_summary_names_the_points_where_we_are_behind_and_the_absent() -> None:
    rows = [
        row(1, 20.0, marlin=40.0, humming="ImportError: no"),
        row(8, 20.0, marlin=19.8, humming="ImportError: no"),
        row(32, 20.0, marlin=10.0, humming="ImportError: no"),
    ]
    text = "\n".join(tables.summary(rows, ["marlin", "humming"]))
    assert "best W4A16 peer of each point: 1.00" in text
    assert "slower than Marlin: shape m = 8 (0.99), shape m = 32 (0.50)" in text
    assert "more than 3% behind the best W4A16 peer: shape m = 32 (0.50)" in text
    assert "no result of humming: ImportError: no (first at shape, m = 1)" in text


def test_the_summary_says_which_composition_was_fastest() -> None:
    found = {"humming": Timing(9.0, 1e-3, "indexed")}, {"humming": Timing(9.0, 1e-3, "grouped")}
    rows = [Row("a", m, 1.0, Timing(3.0, 0.0), one) for m, one in zip((1, 2), found, strict=True)]
    text = "\n".join(tables.summary(rows, ["humming"]))
    assert "fastest composition of humming, grouped: a 2" in text


def test_a_failure_of_ours_is_reported_like_that_of_a_peer() -> None:
    one = Row("shape", 1, 10.0, "BackendError: no", {"marlin": Timing(30.0, 2e-3)})
    assert one.gain() is None
    assert tables.line(one, ["marlin"]).startswith("| shape | 1 | 10.0 | - | - | 30.0 | marlin | - |")
    assert "no result of ours: BackendError: no (first at shape, m = 1)" in tables.summary([one], ["marlin"])


def test_json_keeps_every_figure(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    tables.write_json(path, {"l2": "cold"}, [row(1, 20.0, marlin=30.0, humming="absent")])
    (point,) = json.loads(path.read_text())["rows"]
    assert point["best"] == ["marlin", 30.0]
    assert point["peers"]["marlin"]["error"] == 2e-3
    assert point["peers"]["humming"] == "absent"


def test_options_take_a_part_and_refuse_an_unknown_peer(capsys: pytest.CaptureFixture[str]) -> None:
    parser = compare.arguments("", cases.MOE_SHAPES, cases.MOE_TOKENS)
    found = parser.parse_args(["--peers", "humming,marlin", "--shapes", "mixtral-8x7b", "--m", "1", "8"])
    assert (found.peers, found.shapes, found.m) == (["humming", "marlin"], ["mixtral-8x7b"], [1, 8])
    assert parser.parse_args(["--peers", "none"]).peers == []
    with pytest.raises(SystemExit):
        parser.parse_args(["--peers", "cutlass"])
    assert "unknown: cutlass" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in peers.NAMES if name != "bf16"])
def test_a_peer_that_is_not_there_says_what_is_missing(name: str, tmp_path: Path) -> None:
    assert "--peer-path" in (peers.load(name, None).available() or "")
    reason = peers.load(name, tmp_path).available() or ""
    assert f"not in {tmp_path}" in reason
    assert name in reason or vllm_files.MOE in reason


def test_wheels_are_named_with_their_versions(tmp_path: Path) -> None:
    for name in ("vllm-0.33.0", "humming_kernels-0.1.19", "torch-2.11.0"):
        (tmp_path / f"{name}.dist-info").mkdir()
    assert vllm_files.wheels(tmp_path) == ["humming_kernels-0.1.19", "vllm-0.33.0"]


def test_the_fastest_correct_way_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = torch.ones(2, 2)

    def fails(value: torch.Tensor) -> torch.Tensor:
        raise ValueError("a reason\nand more")

    def absent(value: torch.Tensor) -> torch.Tensor:
        raise peers.OtherSizeError

    ways: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "slow": lambda value: value,
        "fast": lambda value: value.clone(),
        "wrong": lambda value: value * 2,
        "fails": fails,
        "absent": absent,
    }
    times = {"slow": 9.0, "fast": 3.0, "wrong": 1.0}
    order = iter(["slow", "fast"])
    monkeypatch.setattr(timing, "microseconds", lambda run, flush: times[next(order)])
    assert compare.fastest(ways, truth, truth, None) == Timing(3.0, 0.0, "fast")
    assert "wrong, error 1.0e+00" in str(compare.fastest({"wrong": ways["wrong"]}, truth, truth, None))
    assert compare.fastest({"fails": fails}, truth, truth, None) == "fails: ValueError: a reason"
    assert "no composition" in str(compare.fastest({"absent": absent}, truth, truth, None))


def test_the_truth_of_a_layer_follows_its_activation() -> None:
    torch.manual_seed(0)
    case = cases.MoeCase.random("mixtral-8x7b", torch.device("meta"))
    assert case.gate_up.shape == (8, 28672, 4096)
    both = torch.tensor([[1.0, 9.0, 2.0, -9.0]])
    silu = torch.nn.functional.silu
    assert torch.equal(cases._gate(both, "silu"), silu(both[:, :2]) * both[:, 2:])
    clamped = torch.tensor([[1.0, 7.0]])
    want = clamped * torch.sigmoid(1.702 * clamped) * torch.tensor([[3.0, -6.0]])
    torch.testing.assert_close(cases._gate(both, "swiglu"), want)


def test_marlin_gets_its_scales_as_its_layout_wants_them() -> None:
    scales = torch.randint(1, 255, (2, 128, 8), dtype=torch.uint8)
    codes = torch.zeros(2, 128, 128, dtype=torch.uint8)
    weight = cases.MxTensor(codes, scales, torch.Size((2, 128, 256)))
    packed = MarlinLayout().pack(weight)
    assert torch.equal(marlin._scales(scales).view(torch.uint8), packed["scales"].view(torch.uint8))


def test_padding_for_marlin_keeps_gate_and_up_apart() -> None:
    codes = torch.arange(1, 9, dtype=torch.uint8).view(1, 8, 1).expand(1, 8, 16).contiguous()
    scales = torch.full((1, 8, 1), 120, dtype=torch.uint8)
    grown = marlin._grow(cases.MxTensor(codes, scales, torch.Size((1, 8, 32))), 12, 64, 2)
    assert grown.codes[0, :, 0].tolist() == [1, 2, 3, 4, 0, 0, 5, 6, 7, 8, 0, 0]
    assert grown.codes[0, :, 16:].sum() == 0
    assert grown.scales[0, 0].tolist() == [120, 127]
