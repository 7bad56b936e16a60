"""Compiling and caching without a GPU: a stand-in for NVRTC, the tables of tiles, the text of the sources."""

from __future__ import annotations

import ctypes
import math
import operator
import threading
from functools import reduce
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mxfp4_core.backend import compile_all
from mxfp4_core.errors import BackendError, OutputError
from mxfp4_cuda_marlin import backend
from mxfp4_cuda_marlin.kernels import build, load, source, tiles
from mxfp4_cuda_marlin.kernels import few as few_tables


class Compiler:
    """What NVRTC does, as far as build.py can see."""

    def __init__(self) -> None:
        self.count, self.refuses, self.version, self.log = 0, False, (13, 0), b""

    def nvrtcVersion(self) -> tuple[Any, ...]:
        return 0, *self.version

    def nvrtcCreateProgram(self, *arguments: Any) -> tuple[Any, ...]:
        return 0, SimpleNamespace(source=arguments[0])

    def nvrtcCompileProgram(self, program: Any, count: int, options: list[bytes]) -> tuple[int]:
        assert count == len(options)
        self.count += 1
        return (6 if self.refuses else 0,)

    def nvrtcGetProgramLogSize(self, program: Any) -> tuple[int, int]:
        return 0, len(self.log) + 1

    def nvrtcGetProgramLog(self, program: Any, log: bytes) -> tuple[int]:
        ctypes.memmove(log, self.log, len(self.log))  # in place, as cuda.bindings does
        return (0,)

    def nvrtcGetCUBINSize(self, program: Any) -> tuple[int, int]:
        return 0, 4

    def nvrtcGetCUBIN(self, program: Any, code: bytes) -> tuple[int]:
        return (0,)

    def nvrtcDestroyProgram(self, program: Any) -> tuple[int]:
        return (0,)


def no_module(name: str) -> None:
    raise ImportError(f"no {name}")


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Compiler:
    one = Compiler()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "bindings", lambda name: one)
    monkeypatch.setattr(build, "_told", False)
    # The stand-in cannot write into the bytes that it is given, so it compiles to what it is given to fill.
    monkeypatch.setattr(build, "_compile", lambda *a: (one.nvrtcCompileProgram(None, 0, []), b"\x7fELF")[1])
    return one


def test_a_source_is_compiled_once_and_said_once(
    compiler: Compiler, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in ("a", "a", "b", "a"):
        assert build.machine_code(text, {"N": 1}, "it") == b"\x7fELF"
    assert compiler.count == 2
    assert len(list(build.cache_folder().iterdir())) == 2
    assert capsys.readouterr().err.count("compiling") == 1


def test_everything_that_decides_the_bytes_is_in_the_name(compiler: Compiler) -> None:
    build.machine_code("a", {"N": 1}, "it")
    build.machine_code("a", {"N": 2}, "it")
    compiler.version = (13, 1)
    build.machine_code("a", {"N": 2}, "it")
    assert compiler.count == 3


def test_a_damaged_file_is_replaced(compiler: Compiler) -> None:
    build.machine_code("a", {}, "it")
    (path,) = build.cache_folder().iterdir()
    path.write_bytes(b"half a f")
    assert build.machine_code("a", {}, "it") == path.read_bytes() == b"\x7fELF"
    build.forget("a", {})
    assert not path.exists()


def test_a_folder_that_cannot_be_written_costs_only_time(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert build.machine_code("a", {}, "it") == b"\x7fELF"
    assert build.machine_code("a", {}, "it") == b"\x7fELF"
    assert compiler.count == 2


def test_a_full_disk_leaves_nothing_behind(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*paths: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build.os, "replace", full)
    assert build.machine_code("a", {}, "it") == b"\x7fELF"
    assert list(build.cache_folder().iterdir()) == []


def test_threads_may_compile_at_once(compiler: Compiler) -> None:
    threads = [threading.Thread(target=build.machine_code, args=("a", {}, "it")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (path,) = build.cache_folder().iterdir()
    assert path.read_bytes() == b"\x7fELF"


def test_a_relative_cache_folder_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert build.cache_folder() == Path.home() / ".cache" / "mxfp4-cuda-marlin"


def test_a_refused_source_is_an_error_with_the_log() -> None:
    one = Compiler()
    one.refuses, one.log = True, b"error: no such register"
    with pytest.raises(BackendError, match="no such register"):
        build._compile(one, "text", ["-option"], "it")


def test_products_that_wait_for_each_other_are_reported() -> None:
    """The compiler says so in one line of a log that nobody sees, and the kernel is a third slower."""
    one = Compiler()
    one.log = (
        b"ptxas info    : (C7512) Potential Performance Loss: wgmma.mma_async instructions are serialized "
        b"due to insufficient register resources for the function 'gemm'\n"
    )
    with pytest.warns(RuntimeWarning, match=r"it: NVRTC 13\.0 lets no two products"):
        build._compile(one, "text", ["-option"], "it")


def test_missing_bindings_are_an_error_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "import_module", no_module)
    with pytest.raises(BackendError, match=r"pip install 'cuda-bindings"):
        build.machine_code("a", {}, "it")


def test_a_library_that_does_not_load_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def version() -> None:
        raise RuntimeError("libnvrtc.so.13: cannot open shared object file")

    monkeypatch.setattr(build, "bindings", lambda name: SimpleNamespace(nvrtcVersion=version))
    with pytest.raises(BackendError, match=r"libnvrtc\.so\.13"):
        build.machine_code("a", {}, "it")


def test_a_kernel_cannot_be_loaded_during_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(BackendError, match="before the capture"):
        load.routing(torch.device("cuda", 7), "route")


def test_warmup_compiles_every_variant_once(compiler: Compiler) -> None:
    found = backend.kernels()
    assert found.folder == str(build.cache_folder()) and not any(one.cached for one in found.kernels)
    done = compile_all(found.kernels, jobs=8)
    assert {one.state for one in done} == {"compiled"}
    assert len(done) == compiler.count == len(list(build.cache_folder().iterdir()))
    assert {one.state for one in compile_all(backend.kernels().kernels, jobs=8)} == {"cached"}
    assert len(done) == compiler.count
    tiles_of_gemms = {(tile, tiles.LINEAR) for tile in tiles.linear_variants()}
    tiles_of_gemms |= {(tile, mode) for tile in tiles.moe_variants() for mode in (tiles.GATE_UP, tiles.DOWN)}
    for tile, mode in tiles_of_gemms:  # the names under which a call looks them up
        assert build.is_kept(source.gemm(tile.nt, tile.narrow), tile.defines(mode, True))
    decodes = {(few, tiles.LINEAR) for few in few_tables.linear_fews()}
    decodes |= {(up, tiles.GATE_UP) for up, _ in few_tables.moe_fews()}
    decodes |= {
        (down, few_tables.TOKEN if down.tokens == 1 else tiles.DOWN) for _, down in few_tables.moe_fews()
    }
    assert all(build.is_kept(source.decode(), few.defines(mode, True)) for few, mode in decodes)
    assert all(build.is_kept(source.routing(), {"CLUSTER": blocks}) for blocks in (1, 8))


def test_warmup_prints_nothing_of_its_own(compiler: Compiler, capsys: pytest.CaptureFixture[str]) -> None:
    compile_all(backend.kernels().kernels[:2], jobs=2)
    assert capsys.readouterr() == ("", "")


def test_warmup_into_a_folder_that_cannot_be_written_is_an_error(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="set XDG_CACHE_HOME"):
        compile_all(backend.kernels().kernels[-1:], jobs=1)


def test_warmup_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "import_module", no_module)
    with pytest.raises(BackendError, match="pip install"):
        backend.kernels()


@pytest.mark.parametrize("tile", tiles.linear_variants(), ids=str)
def test_stages_fit_into_shared_memory(tile: tiles.Tile) -> None:
    assert tile.nt % 16 == 0 and tile.stage_bytes % 1024 == 0
    for mode in (tiles.LINEAR, tiles.GATE_UP, tiles.DOWN):
        assert tile.stages(mode) >= 4
        assert tile.shared_bytes(mode) + 3 * 1024 <= 227 * 1024


@pytest.mark.parametrize("tile", tiles.moe_variants(), ids=str)
def test_gate_up_writes_whole_columns_of_down(tile: tiles.Tile) -> None:
    assert tile.split == 1 and tile.wg * tile.mb % 2 == 0


@pytest.mark.parametrize("m", [1, 7, 64, 65, 5000])
@pytest.mark.parametrize(("n", "k"), [(64, 64), (4096, 4096), (64, 28672), (25600, 5120)])
def test_splits_leave_work_for_each_part(m: int, n: int, k: int) -> None:
    tile = tiles.linear_tile(m, n, k)
    assert 1 <= tile.split <= k // 64
    assert tile.split == 1 or tile.blocks(n) * -(-m // tile.nt) * tile.split <= 2 * tiles.MULTIPROCESSORS


def test_the_cheapest_variant_is_taken() -> None:
    n, k = 8192, 4096
    for m in (32, 64, 500, 3000):
        costs = {tile: tiles.linear_cost(tile, m, n, k) for tile in tiles.linear_variants()}
        assert costs[tiles.linear_tile(m, n, k)] == min(costs.values())
    assert tiles.linear_tile(64, 4096, 16384).split > 1 and tiles.linear_tile(4096, 4096, 16384).split == 1
    growing = [tiles.moe_tiles(m, 8, 128, 768, 2048)[0].nt for m in (64, 512, 1024, 2048)]
    assert growing == sorted(growing) and growing[0] < growing[-1]


def test_fewer_multiprocessors_get_fewer_blocks() -> None:
    assert [tiles.Tile(128, 128).grid(items, 114) for items in (3, 114, 500)] == [3, 114, 114]
    assert tiles.Tile(64, 64, split=2).grid(57, 114) == 114
    for count in (114, 132):
        costs = {
            tile: tiles.linear_cost(tile, 256, 114 * 128, 4096, count) for tile in tiles.linear_variants()
        }
        assert costs[tiles.linear_tile(256, 114 * 128, 4096, count)] == min(costs.values())


def test_a_rank_chooses_by_its_share_of_the_slots() -> None:
    for m in (256, 1024):
        shared = tiles.moe_tiles(m, 8, 32, 768, 2048, total=128)
        assert shared[0].nt == tiles.moe_tiles(m, 8, 128, 768, 2048)[0].nt  # as many slots an expert
        assert shared[0].nt < tiles.moe_tiles(m, 8, 32, 768, 2048)[0].nt
    for m in (1, 3, 40, 90):
        assert few_tables.moe_few(m, 8, 32, 768, 2048, total=128) is not None
    assert few_tables.moe_few(90, 8, 32, 768, 2048) is None


def test_expected_tiles_follow_random_routing() -> None:
    generator = torch.Generator().manual_seed(0)
    for m, top_k, experts, nt, narrow in (
        (512, 8, 128, 32, 32),
        (512, 8, 128, 32, 16),
        (512, 8, 128, 48, 32),
        (2048, 8, 128, 128, 128),
        (2048, 8, 128, 128, 64),
        (2048, 8, 128, 144, 128),
        (2048, 2, 8, 256, 256),
        (8192, 6, 256, 64, 64),
        (8192, 6, 256, 64, 48),
    ):
        wide, thin = 0.0, 0.0
        for _ in range(20):
            chosen = torch.rand(m, experts, generator=generator).topk(top_k).indices
            counts = chosen.flatten().bincount(minlength=experts)
            last = counts - (counts - 1) // nt * nt  # slots of the last tile of each expert
            few = float((last <= narrow).sum()) if narrow < nt else 0.0
            wide, thin = wide + (float((-(-counts // nt)).sum()) - few) / 20, thin + few / 20
        assert tiles.expected_tiles(m * top_k, experts, nt, narrow) == pytest.approx((wide, thin), rel=0.05)


@pytest.mark.parametrize(("slots", "experts"), [(1 << 19, 8), (1 << 14, 1), (70_000, 128), (3, 384)])
def test_tiles_that_are_full_for_certain_are_counted_as_the_others(slots: int, experts: int) -> None:
    mean = slots / experts
    spread = (math.sqrt(mean * (1 - 1 / experts)) or 1.0) * math.sqrt(2)
    whole = [0.5 * math.erfc((full + 0.5 - mean) / spread) for full in range(0, int(2 * mean) + 64, 64)]
    wide = [0.5 * math.erfc((full + 48.5 - mean) / spread) for full in range(0, int(2 * mean) + 64, 64)]
    end = next(i for i, share in enumerate(whole) if 64 * (i + 1) > mean and share < 1e-3) + 1
    # Added one by one: `sum` compensates for rounding from Python 3.12 on.
    tiles_wide, tiles_all = (reduce(operator.add, shares[:end]) * experts for shares in (wide, whole))
    found = tiles.expected_tiles(slots, experts, 64, 48)
    assert found == (tiles_wide, max(0.0, max(1.5, tiles_all) - tiles_wide))


@pytest.mark.parametrize("widths", [(16, 16), (48, 32), (256, 256)], ids=str)
def test_the_instruction_has_one_operand_for_each_register(widths: tuple[int, int]) -> None:
    text = source.gemm(*widths)
    assert "//WGMMA//" not in text and text.count("template <> DEV void wgmma<") == len(set(widths))
    for nt in widths:
        _, _, body = text.partition(f"DEV void wgmma<{nt}>(")
        body, _, _ = body.partition("\n}\n")
        assert body.count('"+f"(d[') == nt // 2
        assert f"m64n{nt}k16" in body and f"mov.b64 tokens, {{%{nt // 2 + 4}, 0x40000040}}" in body
