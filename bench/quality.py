"""What does each scale rule cost a language model? Perplexity of both models of this repository, as Markdown.

    python bench/quality.py                (--windows 64 to be quicker, --json for data)

Every weight that the defaults quantise is replaced by its MXFP4 value and the model reads the held-out text, in
FP32 arithmetic, so that nothing but the weights differs. All variants read the same windows: the differences
are paired, and their standard errors are those of the paired difference.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import mxfp4_core
from mxfp4_core.config import Mxfp4Config
from mxfp4_core.naming import Resolver
from mxfp4_core.report.environment import environment

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "demo"))

from perplexity import Estimate, Perplexity, cut, measure  # noqa: E402

MODELS = ("qwen3-tiny", "qwen3-moe-tiny")
DEFAULT = "even/even"
VARIANTS = ("floor/even", DEFAULT, "even/away", "even/zero", "rceil/even", "ceil/even", "ceil_d(7.25)/even")
HEAD = ("rule", "ties", "weight error", "perplexity", "loss - BF16", f"loss - {DEFAULT}")


@dataclass(frozen=True)
class Row:
    """One line of the table: how far one variant is from BF16.

    Args:
        variant: ``BF16`` or ``rule/ties``.
        weight_error: squared error of all quantised weights over their squared magnitude.
        found: losses of all windows.
        to_bf16: loss less that of BF16, paired.
        to_default: loss less that of the default rule, paired.
    """

    variant: str
    weight_error: float
    found: Perplexity
    to_bf16: Estimate
    to_default: Estimate

    def cells(self) -> list[str]:
        """Return the texts of the table."""
        perplexity = self.found.perplexity
        measured = f"{perplexity.value:.2f} ± {perplexity.error:.2f}"
        if self.variant == "BF16":
            return ["BF16", "", "0", measured, "0", _signed(self.to_default)]
        rule, ties = self.variant.split("/")
        to_default = "0" if self.variant == DEFAULT else _signed(self.to_default)
        return [rule, ties, f"{self.weight_error:.5f}", measured, _signed(self.to_bf16), to_default]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; every estimate is a pair of value and standard error."""
        estimates = {"loss": self.found.loss, "perplexity": self.found.perplexity}
        estimates |= {"loss_minus_bf16": self.to_bf16, "loss_minus_default": self.to_default}
        pairs = {name: [one.value, one.error] for name, one in estimates.items()}
        return {"variant": self.variant, "weight_error": self.weight_error, **pairs}


def _signed(one: Estimate) -> str:
    return f"{one.value:+.4f} ± {one.error:.4f}"


def chosen_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that the default config quantises, by name; the last axis of each is K."""
    resolver = Resolver.for_model(Mxfp4Config(), model.config.to_dict())
    parameters = dict(model.named_parameters())
    decisions = resolver.decide_all((name, weight.shape) for name, weight in parameters.items())
    pairs = zip(parameters.items(), decisions, strict=True)
    return {name: weight for (name, weight), decision in pairs if decision.quantize}


def apply(variant: str, weights: dict[str, nn.Parameter], originals: dict[str, Tensor]) -> float:
    """Put the MXFP4 values of one variant into a model; return the relative squared error over all of them."""
    rule, ties = variant.split("/")
    error = signal = 0.0
    for name, weight in weights.items():
        exact = originals[name]
        packed = mxfp4_core.quantize(exact, rule=rule, ties=ties, name=name)
        weight.data.copy_(packed.dequantize(torch.bfloat16))
        error += (weight.data.double() - exact.double()).square().sum().item()
        signal += exact.double().square().sum().item()
    return error / signal


def rows(folder: Path, windows: int | None, length: int) -> Iterator[Row]:
    """Measure BF16 and every variant of one model, the default first so that the others can be compared to it.

    Args:
        folder: a model with its tokenizer.
        windows: how many, or None for all that the held-out text holds.
        length: tokens in a window.
    """
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = (ROOT / "models" / "heldout.txt").read_text(encoding="utf-8")
    ids = cut(tokenizer(text).input_ids, length=length, count=windows)
    weights = chosen_weights(model)
    # The files hold BF16, so this loses nothing.
    originals = {name: weight.detach().to(torch.bfloat16) for name, weight in weights.items()}
    bf16 = measure(model, ids)
    default_error = apply(DEFAULT, weights, originals)
    default = measure(model, ids)
    yield Row("BF16", 0.0, bf16, bf16.minus(bf16), bf16.minus(default))
    for variant in VARIANTS:
        error = default_error if variant == DEFAULT else apply(variant, weights, originals)
        found = default if variant == DEFAULT else measure(model, ids)
        yield Row(variant, error, found, found.minus(bf16), found.minus(default))


def table(found: list[Row]) -> str:
    """Return the rows of one model as a Markdown table."""
    lines = [HEAD, ["---"] * len(HEAD), *(row.cells() for row in found)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--windows", type=int, help="windows of the held-out text (default: all)")
    parser.add_argument("--length", type=int, default=256, help="tokens in a window (default: 256)")
    parser.add_argument("--json", action="store_true", help="print data instead of tables")
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)  # models this small gain nothing from more, and lose much on a busy machine
    began = time.perf_counter()
    made = environment(["python", "bench/quality.py", *sys.argv[1:]])
    made["versions"]["transformers"] = transformers.__version__
    found = {name: list(rows(ROOT / "models" / name, args.windows, args.length)) for name in MODELS}
    windows = {len(row.found.losses) for each in found.values() for row in each}
    made |= {"windows": max(windows), "length": args.length, "seconds": round(time.perf_counter() - began, 1)}
    if args.json:
        print(
            json.dumps(
                {**made, "models": {name: [r.to_dict() for r in each] for name, each in found.items()}}
            )
        )
        return
    for name, each in found.items():
        print(f"**{name}**\n\n{table(each)}\n")
    versions = ", ".join(f"{package} {number}" for package, number in made["versions"].items() if number)
    print(f"{made['windows']} windows of {args.length} tokens; {made['machine']['processor']}, {versions};")
    print(f"{made['created']}, {made['seconds']:.0f} s: `{made['command']}`")


if __name__ == "__main__":
    main()
