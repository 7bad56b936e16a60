"""What does W4A16 cost on AMD's GPUs without FP4? Perplexity of both models on the emulated device, as Markdown.

    python bench/quality_petit.py                (--windows 32 to be quicker)

The backend ``petit`` computes with stand-ins of its kernels on a CPU (``mxfp4_petit.emulated``): layouts and roundings
are those of the device. All variants read the same windows; differences are paired.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "demo"), str(ROOT / "packages" / "mxfp4-petit" / "tests")]

from perplexity import Perplexity, measure  # noqa: E402
from support_models import NAMES, from_pretrained, registered, windows  # noqa: E402

VARIANTS = {
    "W4A16, petit-kernel and our experts": {},
    "W4A16, our kernels": {"backend_options": {"petit-emulated": {"provider": "triton"}}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--windows", type=int, help="windows of 256 tokens (default: all)")
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    began = time.perf_counter()
    print("| model | variant | perplexity | loss - BF16 |\n| --- | --- | --- | --- |")
    with registered():
        for name in NAMES:
            folder, ids = ROOT / "models" / name, windows(name, args.windows, 256)
            plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
            found: dict[str, Perplexity] = {"BF16": measure(plain.eval(), ids)}
            for variant, settings in VARIANTS.items():
                found[variant] = measure(from_pretrained(folder, backend="petit-emulated", **settings), ids)
            for variant, one in found.items():
                less = one.minus(found["BF16"])
                beside = "0" if variant == "BF16" else f"{less.value:+.4f} ± {less.error:.4f}"
                value = one.perplexity
                print(
                    f"| {name} | {variant} | {value.value:.2f} ± {value.error:.2f} | {beside} |", flush=True
                )
    print(f"\n{len(ids)} windows of 256 tokens, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
