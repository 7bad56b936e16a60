"""What do one and two levels of scales cost on Ascend, weights alone and with activations? Perplexity, as Markdown.

    python bench/quality_ascend.py                (--windows 32 to be quicker)

W4A16 is computed by the reference, W4A4 by the backend ``npu`` with a strict stand-in of torch_npu on a CPU
(``packages/mxfp4-npu/tests/support``). All variants read the same windows; differences are paired.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "demo"), str(ROOT / "packages" / "mxfp4-npu" / "tests" / "support")]

from npu_emulated import emulated, registered  # noqa: E402
from perplexity import Perplexity, cut, measure  # noqa: E402

import mxfp4_transformers  # noqa: E402

LEVELS = {"one level": ("mxfp4", "ascend-single"), "two levels": ("mxfp4-dual", "ascend")}
WAYS = {"W4A16": ("reference", "none"), "W4A4": ("npu-emulated", "auto")}
MODELS = {"qwen3-tiny": ("one level", "two levels"), "qwen3-moe-tiny": ("one level",)}
"""Experts have one level: torch_npu has no grouped matmul of two."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--windows", type=int, help="windows of 256 tokens (default: all)")
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    began = time.perf_counter()
    print("| model | variant | perplexity | loss - BF16 |\n| --- | --- | --- | --- |")
    text = (ROOT / "models" / "heldout.txt").read_text(encoding="utf-8")
    with emulated(), registered():
        for name, levels in MODELS.items():
            folder = ROOT / "models" / name
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            ids = cut(tokenizer(text).input_ids, length=256, count=args.windows)
            plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
            found: dict[str, Perplexity] = {"BF16": measure(plain.eval(), ids)}
            for level in levels:
                format, profile = LEVELS[level]
                for way, (backend, activation) in WAYS.items():
                    config = mxfp4_transformers.Mxfp4Config(
                        format=format, profile=profile, backend=backend, activation=activation, tail="pad"
                    )
                    model = mxfp4_transformers.from_pretrained(folder, config=config).eval()
                    found[f"{way}, {level}"] = measure(model, ids)
            for variant, one in found.items():
                value, less = one.perplexity, one.minus(found["BF16"])
                cells = [name, variant, f"{value.value:.2f} ± {value.error:.2f}"]
                cells.append("0" if variant == "BF16" else f"{less.value:+.4f} ± {less.error:.4f}")
                print(f"| {' | '.join(cells)} |", flush=True)
    print(f"\n{len(ids)} windows of 256 tokens, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
