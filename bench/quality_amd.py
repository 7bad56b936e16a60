"""What does W4A4 cost beside W4A16 on AMD's kernels? Perplexity of both models on the emulated device, as Markdown.

    python bench/quality_amd.py                (--windows 32 to be quicker)

The backend ``rocm`` computes with a strict stand-in of AITER on a CPU (``packages/mxfp4-rocm/tests/support``): layouts,
kernels and rounding of tokens are those of the device. All variants read the same windows; differences are paired.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "demo"), str(ROOT / "packages" / "mxfp4-rocm" / "tests" / "support")]

from perplexity import Perplexity, cut, measure  # noqa: E402
from rocm_emulated import aiter, registered  # noqa: E402

import mxfp4_transformers  # noqa: E402

MODELS = ("qwen3-tiny", "qwen3-moe-tiny")
VARIANTS = {
    "W4A16": {"activation": "none"},
    "W4A4, `even/even`": {"activation": "mxfp4", "backend_options": {"rocm-emulated": {"moe": "triton"}}},
    "W4A4, as chosen by itself": {"activation": "auto"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--windows", type=int, help="windows of 256 tokens (default: all)")
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    began = time.perf_counter()
    print("| model | variant | perplexity | loss - BF16 | loss - W4A16 |\n| --- | --- | --- | --- | --- |")
    with aiter("wheel"), registered():
        for name in MODELS:
            folder = ROOT / "models" / name
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            text = (ROOT / "models" / "heldout.txt").read_text(encoding="utf-8")
            ids = cut(tokenizer(text).input_ids, length=256, count=args.windows)
            plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
            found: dict[str, Perplexity] = {"BF16": measure(plain.eval(), ids)}
            for variant, settings in VARIANTS.items():
                config = mxfp4_transformers.Mxfp4Config(backend="rocm-emulated", **settings)
                model = mxfp4_transformers.from_pretrained(folder, config=config).eval()
                found[variant] = measure(model, ids)
            for variant, one in found.items():
                value = one.perplexity
                cells = [name, variant, f"{value.value:.2f} ± {value.error:.2f}"]
                for base in ("BF16", "W4A16"):
                    less = one.minus(found[base])
                    cells.append("0" if variant == base else f"{less.value:+.4f} ± {less.error:.4f}")
                print(f"| {' | '.join(cells)} |", flush=True)
    print(f"\n{len(ids)} windows of 256 tokens, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
