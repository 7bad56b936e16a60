"""How much memory does loading for Ascend take? Peaks of a process, as Markdown; an error where it is too much.

    python bench/ascend_memory.py

Promised is: what is quantised, and one unit. ``mxfp4_transformers.from_pretrained`` reads a BF16 checkpoint onto the
emulated backend ``npu``, which packs weights as torch_npu takes them. The unit is the largest weight in BF16. All of it
runs on a CPU whose anonymous memory is watched as in ``amd_memory.py``; files are mapped and do not count. The cast to
FRACTAL_NZ is a copy here, as much as the device's operator makes; that of the emulation holds tables of indices.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import amd_memory
import torch
from safetensors import safe_open

SUPPORT = amd_memory.ROOT / "packages" / "mxfp4-npu" / "tests" / "support"
DENSE, MOE = amd_memory.SIZES
CASES = (
    (DENSE, {"format": "mxfp4"}),
    (DENSE, {"format": "mxfp4-dual"}),
    (MOE, {"format": "mxfp4"}),
)


def child(settings: str, small: str, folder: str) -> None:
    """Load a small model first, so that imports do not count; print the peak and the result."""
    sys.path.insert(0, str(SUPPORT))
    from npu_emulated import emulated, registered

    import mxfp4_transformers

    torch.set_num_threads(1)

    def load(path: str) -> Any:
        config = mxfp4_transformers.Mxfp4Config(
            backend="npu-emulated", activation="auto", **json.loads(settings)
        )
        return mxfp4_transformers.from_pretrained(path, config=config)

    def cast(self: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return self.clone()

    with emulated(), registered():
        sys.modules["torch_npu"].npu_format_cast = cast  # type: ignore[attr-defined]
        load(small)
        watch = amd_memory.Watch()
        watch.start()
        model = load(folder)
        watch.done.set()
        watch.join()
    parts = [*model.parameters(), *model.buffers()]
    held = {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in parts}
    print(json.dumps({"peak": watch.peak - watch.first, "result": sum(held.values())}))


def largest(file: Path) -> int:
    """Return the bytes of the largest weight of a linear or an expert."""
    with safe_open(file, "pt") as opened:
        names = [name for name in opened.keys() if name.endswith("proj.weight")]  # noqa: SIM118
        return max(2 * torch.Size(opened.get_slice(name).get_shape()).numel() for name in names)


def main() -> int:
    """Print a row for each case; return 1 where one takes more than promised."""
    print(
        "| model | settings | BF16 MiB | result MiB | one unit MiB | peak MiB | peak of what was promised |"
    )
    print("|---|---|--:|--:|--:|--:|--:|")
    worst = 0.0
    for name, settings in CASES:
        sizes = amd_memory.SIZES[name]
        with tempfile.TemporaryDirectory() as place:
            small = amd_memory.save(Path(place) / "small", sizes, 1)
            whole = amd_memory.save(Path(place) / "whole", sizes)
            file = whole / "model.safetensors"
            done = subprocess.run(
                [sys.executable, __file__, json.dumps(settings), str(small), str(whole)],
                env=os.environ | amd_memory.GIVES_BACK,
                capture_output=True,
                text=True,
                check=True,
            )
            found, unit = json.loads(done.stdout.splitlines()[-1]), largest(file)
            part = found["peak"] / (found["result"] + unit)
            worst = max(worst, part)
            mib = [file.stat().st_size, found["result"], unit, found["peak"]]
            said = ", ".join(settings.values())
            print(
                f"| {name} | {said} | {' | '.join(f'{one / 2**20:.0f}' for one in mib)} | {part:.2f} |",
                flush=True,
            )
    return int(worst > 1)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        child(*sys.argv[1:])
    else:
        sys.exit(main())
