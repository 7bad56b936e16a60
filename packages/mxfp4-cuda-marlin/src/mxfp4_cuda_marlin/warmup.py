"""Compile every kernel ahead of time: ``python -m mxfp4_cuda_marlin.warmup``.

It needs NVRTC but no GPU, so an image can be built with a warm cache.
"""

from __future__ import annotations

import sys
import time

from mxfp4_core.errors import Mxfp4Error
from mxfp4_cuda_marlin.kernels import build, source
from mxfp4_cuda_marlin.kernels.load import DOWN, GATE_UP, LINEAR
from mxfp4_cuda_marlin.kernels.tiles import linear_variants, moe_variants

_VARIANTS = {"linear": ((LINEAR,), linear_variants), "moe": ((GATE_UP, DOWN), moe_variants)}


def warmup(ops: tuple[str, ...] = ("linear", "moe"), *, all_scales: bool = False) -> int:
    """Compile the kernels of these ops into the cache, unless they are there.

    Args:
        ops: ``linear``, ``moe``.
        all_scales: also the variants for scale bytes above 128, which no trained model has.

    Returns:
        How many kernels the cache holds for them.

    Raises:
        BackendError: NVRTC is missing.
    """
    build.machine_code(source.helpers(), {}, "helpers")
    count = 1
    for op in ops:
        modes, tiles = _VARIANTS[op]
        for tile in tiles():
            for mode in modes:
                for small in (True, False) if all_scales else (True,):
                    build.machine_code(
                        source.gemm(tile.nt), tile.defines(mode, small), f"gemm {tile} {mode=}"
                    )
                    count += 1
    return count


def main() -> int:
    """Run ``warmup`` and say what it did."""
    start = time.perf_counter()
    try:
        count = warmup()
    except Mxfp4Error as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(f"{count} kernels in {build.cache_folder()}, {time.perf_counter() - start:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

__all__ = ["warmup"]
