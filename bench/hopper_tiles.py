"""What does each variant of the GEMM cost? Prints the table that ``kernels/tiles.py`` chooses by.

    python bench/hopper_tiles.py

Every multiprocessor gets the same number of items, once few and once many, with few columns and with many: the
differences are the microseconds of 64 columns and those of an item whatever its depth. Gate-up, random weights.
"""

from __future__ import annotations

import torch
from hopper.timing import require_sm90
from hopper.timing import microseconds as time

from mxfp4_cuda_marlin.kernels import load
from mxfp4_cuda_marlin.kernels.tiles import GATE_UP, MULTIPROCESSORS, Tile, moe_variants

SHALLOW, DEEP = 768, 4096
FEW, MANY = 1, 4


def microseconds(tile: Tile, k: int, tiles: int) -> float:
    """Time ``tiles`` tiles of tokens on blocks of features that fill the device."""
    n = tile.resident * tile.features
    codes = torch.randint(0, 256, (n // 64, k // 64, 2048), dtype=torch.uint8, device="cuda")
    scales = torch.randint(116, 122, (n // 64, k // 64, 128), dtype=torch.uint8, device="cuda")
    x = torch.randn(tiles * tile.nt * k, device="cuda").to(torch.bfloat16)
    out = torch.empty(tiles * tile.nt * n // 2, dtype=torch.bfloat16, device="cuda")
    rows = torch.arange(tiles * tile.nt, dtype=torch.int32, device="cuda")
    function = load.gemm(x.device, tile, GATE_UP, True)

    def run() -> None:
        load.launch(
            function,
            tile.grid(tiles * tile.blocks(n)),
            tile.threads,
            tile.shared_bytes(GATE_UP),
            *(codes, scales, x, out, None, None, rows, None, None),
            *(tiles * tile.nt, n, k, tiles, 1.0, float("inf"), 0.0, load.no_map()),
        )

    return time(run)


def main() -> None:
    """Print one row for each variant."""
    require_sm90()
    print(f"{torch.cuda.get_device_name()}, {MULTIPROCESSORS} multiprocessors, torch {torch.__version__}\n")
    print("| tokens | warpgroups | strips | us of 64 columns | us of an item | TFLOP/s |\n|--:|--:|--:|--:|--:|--:|")
    for tile in [*moe_variants(), *(Tile(nt, 1, mb) for nt, mb in ((64, 2), (96, 2), (128, 2), (160, 1), (192, 1)))]:
        (a, b), (c, d) = [[microseconds(tile, k, tiles) for tiles in (FEW, MANY)] for k in (SHALLOW, DEEP)]
        shallow, deep = (b - a) / (MANY - FEW), (d - c) / (MANY - FEW)
        column = (deep - shallow) / ((DEEP - SHALLOW) / 64)
        item = shallow - SHALLOW / 64 * column
        speed = 2 * tile.nt * 64 * tile.features * tile.resident / column / 1e6
        print(f"| {tile.nt} | {tile.wg} | {tile.mb} | {column:.3f} | {item:.2f} | {speed:.0f} |", flush=True)


if __name__ == "__main__":
    main()
