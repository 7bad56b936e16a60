"""What a load reports, how its times add up, and where its memory numbers come from."""

from __future__ import annotations

import json
import mmap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mxfp4_core.errors import FormatError
from mxfp4_core.loader import memory
from mxfp4_core.loader import report as load_report
from mxfp4_core.loader.memory import MemoryMeter
from mxfp4_core.loader.report import LoadReport, LoadReportBuilder


class FakeTime:
    """A clock that moves only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(load_report, "time", fake)
    return fake


def filled() -> LoadReportBuilder:
    builder = LoadReportBuilder(profile="even/even", backend="reference")
    builder.quantised("q", kind="Linear", bytes_before=1000, bytes_after=270)
    builder.quantised("k", kind="Linear", bytes_before=1000, bytes_after=270)
    builder.quantised("w13", kind="experts", bytes_before=4096, bytes_after=1088)
    builder.kept("lm_head", kind="Linear", reason="default: output head", nbytes=512)
    return builder


def test_groups_and_bytes() -> None:
    report = filled().build()
    assert [(group.kind, group.count, group.bytes_after) for group in report.quantised] == [
        ("Linear", 2, 540),
        ("experts", 1, 1088),
    ]
    assert report.bytes_before == 6096 + 512
    assert report.bytes_after == 1628 + 512


def test_line_says_what_why_where() -> None:
    line = filled().build().line()
    assert "\n" not in line
    for part in (
        "quantised 3 layers (2 Linear, 1 experts)",
        "kept 1 layer (1 Linear: default: output head)",
        "6.45 KiB -> 2.09 KiB",
        "backend reference, profile even/even",
        "reading 0.00",
    ):
        assert part in line


def test_who_quantised_is_said_where_it_is_known() -> None:
    builder = filled()
    assert builder.build().line().endswith("profile even/even")
    builder.quantizer = "cuda-marlin"
    assert builder.build().line().endswith("profile even/even by cuda-marlin")


def test_long_lists_of_reasons_are_cut_but_counted() -> None:
    builder = LoadReportBuilder()
    for index in range(9):
        builder.kept(f"layer{index}", kind="Linear", reason=f"reason {index}", nbytes=1)
    assert "kept 9 layers" in builder.build().line()
    assert "5 more" in builder.build().line()
    assert len(builder.build().kept) == 9


def test_last_word_about_a_name_counts() -> None:
    builder = filled()
    builder.kept("q", kind="Linear", reason="user pattern 'q'", nbytes=1000)
    report = builder.build()
    assert sum(group.count for group in report.quantised) == 2
    assert report.bytes_after == 270 + 1088 + 512 + 1000
    builder.quantised("lm_head", kind="Linear", bytes_before=512, bytes_after=136)
    assert builder.build().bytes_after == 270 + 1088 + 136 + 1000


def test_round_trip_through_json() -> None:
    report = filled().build()
    assert LoadReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


@pytest.mark.parametrize("damage", [{"quantised": [{"kind": "Linear"}]}, {"phases": 3}, {"memory": [7]}])
def test_damaged_data_is_refused(damage: dict[str, object]) -> None:
    with pytest.raises(FormatError, match=r"LoadReport\.from_dict"):
        LoadReport.from_dict({**filled().build().to_dict(), **damage})


def test_missing_field_is_named() -> None:
    data = filled().build().to_dict()
    del data["backend"]
    with pytest.raises(FormatError, match="backend"):
        LoadReport.from_dict(data)


def test_wall_is_the_union_and_threads_the_sum(clock: FakeTime) -> None:
    """Two threads in one phase, 0-4 and 2-6 seconds: 6 on the clock, 8 over threads."""
    builder = LoadReportBuilder()
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with builder.timing("quantising"):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with builder.timing("quantising"):
        clock.now += 2
        thread.start()
        assert entered.wait(10)
        clock.now += 2
    clock.now += 2
    leave.set()
    thread.join()
    clock.now += 1
    report = builder.build()
    assert (report.phases["quantising"].wall, report.phases["quantising"].threads) == (6, 8)
    assert report.seconds == 7
    assert "quantising 6.00 (8.00 over threads)" in report.line()
    assert "reading 0.00," in report.line()


def test_a_phase_that_fails_is_still_counted(clock: FakeTime) -> None:
    builder = LoadReportBuilder()
    with pytest.raises(ValueError, match="boom"), builder.timing("preparing"):
        clock.now += 3
        raise ValueError("boom")
    assert builder.build().phases["preparing"].wall == 3


def test_timed_counts_only_the_iterator(clock: FakeTime) -> None:
    def source() -> Iterator[int]:
        for index in range(3):
            clock.now += 1
            yield index

    builder = LoadReportBuilder()
    seen = []
    for item in builder.timed(source()):
        clock.now += 10
        seen.append(item)
    assert seen == [0, 1, 2]
    assert builder.build().phases["reading"].wall == 3


def write_status(path: Path, rss: int, hwm: int, mapped: int = 0) -> None:
    text = f"Name:\tpython\nVmHWM:\t{hwm} kB\nVmRSS:\t{rss} kB\nRssFile:\t{mapped} kB\nThreads:\t1\n"
    path.write_text(text)


def test_pages_of_a_mapped_checkpoint_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = tmp_path / "status"
    monkeypatch.setattr(memory, "_STATUS", status)
    write_status(status, 100, 100, mapped=40)
    builder = LoadReportBuilder()
    write_status(status, 2048 + 1124, 4096, mapped=2048 + 40)
    report = builder.build()
    assert report.memory[0].mapped == 2 << 20
    assert "after with 2.00 MiB of mapped files, which can be reclaimed" in report.line()
    assert LoadReport.from_dict(report.to_dict()) == report


def test_peak_is_the_mark_when_the_load_raised_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = tmp_path / "status"
    monkeypatch.setattr(memory, "_STATUS", status)
    write_status(status, 100, 500)
    meter = MemoryMeter()
    write_status(status, 300, 900)
    use = meter.read()
    assert use is not None
    assert (use.before, use.peak, use.after, use.measure) == (100 << 10, 900 << 10, 300 << 10, "VmHWM")


def test_peak_is_sampled_when_an_older_mark_hides_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = tmp_path / "status"
    monkeypatch.setattr(memory, "_STATUS", status)
    write_status(status, 100, 900)
    meter = MemoryMeter()
    write_status(status, 400, 900)
    meter.sample()
    write_status(status, 200, 900)
    use = meter.read()
    assert use is not None
    assert (use.peak, use.after, use.measure) == (400 << 10, 200 << 10, "sampled")


def test_samples_are_taken_now_and_then(
    clock: FakeTime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = tmp_path / "status"
    monkeypatch.setattr(memory, "_STATUS", status)
    write_status(status, 100, 900)
    builder = LoadReportBuilder()
    for step, rss in ((0.001, 800), (0.02, 700), (0.001, 600)):
        clock.now += step
        write_status(status, rss, 900)
        builder.sample()
    write_status(status, 100, 900)
    assert builder.build().memory[0].peak == 700 << 10


def test_no_numbers_where_the_platform_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "absent")
    assert MemoryMeter().read() is None
    report = LoadReportBuilder().build()
    assert report.memory == ()
    assert "memory" not in report.line()


@pytest.mark.parametrize("marks", [(900, 900, 900), (900, 900, 1000)], ids=["sampled", "marked"])
def test_the_peak_is_no_less_than_what_is_there_at_the_end(
    monkeypatch: pytest.MonkeyPatch, marks: tuple[int, int, int]
) -> None:
    readings = iter(zip((100, 200, 1200), marks, strict=True))
    monkeypatch.setattr(MemoryMeter, "_now", lambda self: next(readings))
    use = MemoryMeter().read()
    assert use is not None
    assert (use.before, use.peak, use.after) == (100, 1200, 1200)


def test_real_memory_grows_with_a_real_allocation() -> None:
    meter = MemoryMeter()
    # Pages from the system: the allocator may hand out memory that counts already, if other tests freed as much.
    with mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        block[:: mmap.PAGESIZE] = b"\1" * (len(block) // mmap.PAGESIZE)
        use = meter.read()
    assert use is not None
    assert use.after - use.before >= 24 << 20
    assert use.peak >= use.after


def test_an_accelerator_nobody_uses_is_not_touched() -> None:
    assert MemoryMeter("cuda:0").read() is None
