"""A diffusion transformer of Z-Image's size on a GPU: seconds a step and memory, in BF16, MXFP4 and MXFP8.

    python3 tools/linked.py bench/diffusers_dit.py                 (an H200: 6.2 B parameters, 1024 x 1024 pixels)
    python3 tools/linked.py bench/diffusers_dit.py --layers 2 --device cpu --size 128 --steps 1

The class is diffusers' own ``ZImageTransformer2DModel`` with the sizes of Z-Image-Turbo and random weights, which cost
the same time. Each variant is loaded from the same BF16 folder by its own process, so that peaks are its own; one that
fails, or takes more than ``--limit`` seconds, is told with the end of its log, and the next one follows.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # this process forks, so it must not start CUDA

import diffusers
import torch
from serving import pieces

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


def write(folder: Path, layers: int, device: str, keep: Callable[[pieces.Answer], None]) -> None:
    """Write a model of random weights, small enough that nothing overflows."""
    with torch.device("meta"):
        model = diffusers.ZImageTransformer2DModel(n_layers=layers, **SIZES)
    model = model.to(torch.bfloat16).to_empty(device=device)
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, parameter[0].numel() ** -0.5)
        else:
            parameter.data.fill_(1)
    model.save_pretrained(folder, max_shard_size="2GB")
    keep({"parameters": sum(each.numel() for each in model.parameters())})


def measure(
    folder: Path, name: str, options: argparse.Namespace, keep: Callable[[pieces.Answer], None]
) -> None:
    """Load one variant and time its steps.

    It keeps seconds of the load and of a step (median), and bytes: of the weights, the peak of the load, the peak of a
    step.
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
    result: pieces.Answer = {"load_s": load, "load_peak": torch.cuda.max_memory_allocated() if gpu else 0}
    result["weights"] = (
        torch.cuda.memory_allocated() if gpu else sum(t.nbytes for t in model.state_dict().values())
    )
    keep(result)
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
    keep(result)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--size", type=int, default=1024, help="pixels of a side")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--backend", help="for MXFP4 and MXFP8; chosen by verdicts if none")
    parser.add_argument("--folder", type=Path, help="where the model is, or is written")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--limit", type=float, default=100, help="seconds for one variant")
    parser.add_argument("--out", type=Path, help="file of JSON lines, one for each variant, as they come")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured; --device cpu runs it on a CPU")
        return
    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or Path(made)
        logs = Path(made) / "logs"
        if not (folder / "config.json").exists():
            written = pieces.apart(partial(write, folder, options.layers, options.device), logs, 300)
            if "error" in written:
                raise SystemExit("\n".join(["the model could not be made", *written["error"]]))
            print(f"{written['parameters'] / 1e9:.2f} billion parameters, made in {written['seconds']} s\n")
        print("| weights | weights, GB | load, s | peak of the load, GB | step, s | peak of a step, GB |")
        print("|---|--:|--:|--:|--:|--:|", flush=True)
        for name in options.variants:
            found = pieces.apart(partial(measure, folder, name, options), logs, options.limit)
            found |= {"model": "z-image", "variant": name, "layers": options.layers, "size": options.size}
            pieces.note(found, options.out)
            print(row(found), flush=True)


def row(found: pieces.Answer) -> str:
    """Return a line of the table; of a variant that failed, what is known of it and the end of its log."""
    weights, load_peak, step_peak = (
        f"{found[key] / 1e9:.2f}" if key in found else "-" for key in ("weights", "load_peak", "step_peak")
    )
    load, step = (f"{found[key]:.3f}" if key in found else "-" for key in ("load_s", "step_s"))
    line = f"| {found['variant']} | {weights} | {load} | {load_peak} | {step} | {step_peak} |"
    return "\n".join([line, *(f"    {each}" for each in found.get("error", ()))])


if __name__ == "__main__":
    main()
