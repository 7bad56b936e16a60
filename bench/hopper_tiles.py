"""What does each variant of the GEMM cost? Prints the table that ``kernels/tiles.py`` chooses by.

    python bench/hopper_tiles.py [--others]

Every multiprocessor gets the same number of items, once few and once many, with few columns and with many: the
differences are the microseconds of 64 columns and those of an item whatever its depth. *Sustained*, and the speed that
follows from it, is that of 64 columns after 0.3 seconds of the same work, when large tiles are at the device's limit
of power; *narrow* is that of tiles with few tokens. Gate-up, random weights.
``--others`` adds variants that the table does not have.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from hopper.timing import microseconds, require_sm90

from mxfp4_cuda_marlin.kernels import load
from mxfp4_cuda_marlin.kernels.launch import Launch, stream_of
from mxfp4_cuda_marlin.kernels.tiles import GATE_UP, MULTIPROCESSORS, Tile, moe_variants

SHALLOW, DEEP = 768, 4096
FEW, MANY = 1, 4
LONG = 32  # tiles of the long run
SETTLED = 0.3  # seconds after which the clocks follow the power
OTHERS = [
    Tile(48, 48, 4),
    Tile(80, 64, 2, 2),
    Tile(96, 80, 2, 2),
    Tile(112, 96, 2, 2),
    Tile(208, 160),
]


def prepare(tile: Tile, k: int, tiles: int, tokens: int) -> Callable[[], None]:
    """Return a call for ``tiles`` tiles of so many tokens on blocks of features that fill the device."""
    n = MULTIPROCESSORS * tile.features
    codes = torch.randint(0, 256, (n // 64, k // 64, 2048), dtype=torch.uint8, device="cuda")
    scales = torch.randint(116, 122, (n // 64, k // 64, 128), dtype=torch.uint8, device="cuda")
    x = torch.randn(tiles * tile.nt * k, device="cuda").to(torch.bfloat16)
    out = torch.empty(tiles * tile.nt * n // 2, dtype=torch.bfloat16, device="cuda")
    rows = torch.arange(tiles * tile.nt, dtype=torch.int32, device="cuda")
    rows.view(tiles, tile.nt)[:, tokens:] = -1
    owner = torch.zeros(tiles, dtype=torch.int32, device="cuda")
    operands = (codes, scales, x, out, None, owner, rows, None, None)
    launch = Launch(
        load.gemm(x.device, tile, GATE_UP, True),
        tile.grid(tiles * tile.blocks(n), MULTIPROCESSORS),
        tile.threads,
        tile.shared_bytes(GATE_UP),
        (*operands, tiles * tile.nt, n, k, tiles, 1.0, float("inf"), 0.0, load.no_map()),
    )

    def run(kept: object = operands) -> None:  # a launch holds addresses, and no tensors
        launch(stream_of(x.device))

    return run


def sustained(run: Callable[[], None]) -> float:
    """Return the microseconds of a call among many that follow each other."""
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin = time.monotonic()
    while time.monotonic() - begin < SETTLED:
        for _ in range(10):
            run()
        torch.cuda.synchronize()
    start.record()
    for _ in range(20):
        run()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / 20 * 1e3


def main() -> None:
    """Print one row for each variant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--others", action="store_true", help="also variants that the table does not have")
    others = parser.parse_args().others
    require_sm90()
    print(f"{torch.cuda.get_device_name()}, {MULTIPROCESSORS} multiprocessors, torch {torch.__version__}\n")
    print(
        "| tokens | narrow | warpgroups | strips | columns | us of 64 columns | of an item | sustained | ",
        end="",
    )
    print("narrow | TFLOP/s |\n" + "|--:" * 10 + "|")
    for tile in [*moe_variants(), *(OTHERS if others else [])]:
        (a, b), (c, d) = [
            [microseconds(prepare(tile, k, tiles, tile.nt)) for tiles in (FEW, MANY)] for k in (SHALLOW, DEEP)
        ]
        shallow, deep = (b - a) / (MANY - FEW), (d - c) / (MANY - FEW)
        column = (deep - shallow) / ((DEEP - SHALLOW) / 64)
        item = shallow - SHALLOW / 64 * column
        long, narrow = (
            (sustained(prepare(tile, DEEP, LONG, tokens)) / LONG - item) / (DEEP / 64)
            for tokens in (tile.nt, tile.narrow)
        )
        speed = 2 * tile.nt * 64 * tile.features * MULTIPROCESSORS / long / 1e6
        name = f"| {tile.nt} | {tile.narrow} | {tile.wg} | {tile.mb} | {tile.cols} "
        print(f"{name}| {column:.3f} | {item:.2f} | {long:.3f} | {narrow:.3f} | {speed:.0f} |", flush=True)


if __name__ == "__main__":
    main()
