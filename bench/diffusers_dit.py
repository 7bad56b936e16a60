"""A diffusion transformer of Z-Image's size on a GPU: seconds a step and memory, in BF16, MXFP4 and MXFP8.

    python3 tools/linked.py bench/diffusers_dit.py                 (an H200: 6.2 B parameters, 1024 x 1024 pixels)
    python3 tools/linked.py bench/diffusers_dit.py --layers 2 --device cpu --size 128 --steps 1

The class is diffusers' own ``ZImageTransformer2DModel`` with the sizes of Z-Image-Turbo and random weights, which cost
the same time. Each variant is loaded from the same BF16 folder by its own process, so that peaks are its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import diffusers
import torch

import mxfp4_diffusers

# Tongyi-MAI/Z-Image-Turbo, transformer/config.json.
SIZES = {
    "dim": 3840,
    "n_heads": 30,
    "n_kv_heads": 30,
    "n_refiner_layers": 2,
    "cap_feat_dim": 2560,
    "in_channels": 16,
}
VARIANTS: dict[str, dict[str, Any] | None] = {"bf16": None, "mxfp4": {}, "mxfp8": {"format": "mxfp8"}}


def write(folder: Path, layers: int) -> None:
    """Write a model of random weights, small enough that nothing overflows."""
    with torch.device("meta"):
        model = diffusers.ZImageTransformer2DModel(n_layers=layers, **SIZES)
    model = model.to_empty(device="cpu").to(torch.bfloat16)
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, parameter[0].numel() ** -0.5)
        else:
            parameter.data.fill_(1)
    model.save_pretrained(folder, max_shard_size="2GB")


def measure(folder: Path, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Load one variant and time its steps.

    Returns:
        Seconds of the load and of a step (median), and bytes: of the weights, the peak of the load, the peak of a step.
    """
    device = torch.device(options.device)
    settings = VARIANTS[name]
    given: dict[str, Any] = {}
    if settings is not None:
        given["quantization_config"] = mxfp4_diffusers.Mxfp4Config(**settings, backend=options.backend)
    began = time.monotonic()
    model = diffusers.ZImageTransformer2DModel.from_pretrained(
        str(folder), dtype=torch.bfloat16, device_map={"": str(device)}, **given
    )
    load = time.monotonic() - began
    gpu = device.type == "cuda"
    result = {"variant": name, "load_s": load, "load_peak": torch.cuda.max_memory_allocated() if gpu else 0}
    result["weights"] = (
        torch.cuda.memory_allocated() if gpu else sum(t.nbytes for t in model.state_dict().values())
    )
    side = options.size // 8
    x = [torch.randn(16, 1, side, side, device=device, dtype=torch.bfloat16)]
    text = [torch.randn(128, SIZES["cap_feat_dim"], device=device, dtype=torch.bfloat16)]
    t = torch.tensor([0.5], device=device, dtype=torch.bfloat16)
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    with torch.no_grad():
        for _ in range(options.steps + 1):
            began = time.monotonic()
            model(x, t, text)
            if gpu:
                torch.cuda.synchronize()
            seconds.append(time.monotonic() - began)
    result["step_s"] = statistics.median(seconds[1:])
    result["step_peak"] = torch.cuda.max_memory_allocated() if gpu else 0
    return result


def main() -> None:
    """Print a table; with --variant, one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--size", type=int, default=1024, help="pixels of a side")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--backend", help="for MXFP4 and MXFP8; chosen by verdicts if none")
    parser.add_argument("--folder", type=Path, help="where the model is, or is written")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured; --device cpu runs it on a CPU")
        return
    if options.variant:
        print(json.dumps(measure(options.folder, options.variant, options)))
        return
    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or Path(made)
        if not (folder / "config.json").exists():
            write(folder, options.layers)
        print("| weights | weights, GB | load, s | peak of the load, GB | step, s | peak of a step, GB |")
        print("|---|--:|--:|--:|--:|--:|")
        for name in VARIANTS:
            command = [sys.executable, __file__, *sys.argv[1:], "--folder", str(folder), "--variant", name]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            if run.returncode:
                print(
                    f"| {name} | failed: {run.stderr.strip().splitlines()[-1] if run.stderr.strip() else ''} |||||"
                )
                continue
            found = json.loads(run.stdout.splitlines()[-1])
            gigabytes = [found[key] / 1e9 for key in ("weights", "load_peak", "step_peak")]
            print(
                f"| {name} | {gigabytes[0]:.2f} | {found['load_s']:.1f} | {gigabytes[1]:.2f} "
                f"| {found['step_s']:.3f} | {gigabytes[2]:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
