"""How fast does transformers generate with MXFP4 weights on Hopper, beside the same model in BF16?

Usage: python bench/hopper_generate.py [--models qwen3-4b] [--parts eager step] [--batches 1 8 64]
       [--prefills 2048 8192] [--json F]

Models have the shapes of the ones that they are named after, and random weights. A model and its quantised copy
(`quantize_`) are measured in the same process, the parts that are not compiled in turns: what these take depends on the
host, whose speed changes by more than the two differ.

* *eager*: `generate`, 64 new tokens after a prompt of 16, in its best of five.
* *static*: `generate(cache_implementation="static")`, which compiles the step.
* *step*: one decode step of `torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)` on a static cache.
* *prefill*: one forward of the prompt, in its best of five.

Tokens a second, of all rows of the batch together; milliseconds for steps and prefills. Peaks of memory are those of
one model: what the other's weights take is not counted.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from hopper import timing
from torch import nn

from mxfp4_core import Mxfp4Config
from mxfp4_core.modules import quantize_

DEVICE, DTYPE = "cuda", torch.bfloat16
PROMPT, NEW = 16, 64
DENSE: dict[str, Any] = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-4b": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, **DENSE},
    "qwen3-8b": {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, **DENSE},
    # Twelve of its 48 layers, which are all alike.
    "qwen3-30b-a3b": {
        "hidden_size": 2048,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "num_hidden_layers": 12,
        **DENSE,
        "num_key_value_heads": 4,
    },
}
PARTS = ("eager", "prefill", "static", "step")
Figures = dict[str, float]


def build(name: str) -> nn.Module:
    """Return a model with random weights."""
    from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig

    shape = SHAPES[name]
    config = (Qwen3MoeConfig if "num_experts" in shape else Qwen3Config)(vocab_size=151936, **shape)
    with torch.device(DEVICE):
        return AutoModelForCausalLM.from_config(config, dtype=DTYPE).eval()


def in_turns(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the least time of each call, after one of each that does not count."""
    found = dict.fromkeys(runs, float("inf"))
    for number in range(repeats + 1):
        for name, run in runs.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            torch.cuda.synchronize()
            if number:
                found[name] = min(found[name], time.perf_counter() - start)
    return found


def seconds(run: Callable[[], object], repeats: int = 3) -> float:
    """Return the least time of a call, after one that does not count."""
    return in_turns({"": run}, repeats)[""]


def tokens(batch: int, length: int) -> torch.Tensor:
    """Return a prompt."""
    return torch.randint(0, 151936, (batch, length), device=DEVICE)


def generation(model: Any, batch: int, **options: Any) -> Callable[[], object]:
    """Return a call of `generate`."""
    prompt = tokens(batch, PROMPT)
    length = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    return lambda: model.generate(prompt, **length, **options)


def step(model: Any, batch: int) -> float:
    """Return the milliseconds of one captured decode step."""
    from transformers import StaticCache

    # Releases that count the tokens of a cache themselves take a new place for each run.
    cache = StaticCache(config=model.config, max_cache_len=1024)
    prompt = tokens(batch, PROMPT)
    model(prompt, past_key_values=cache, cache_position=torch.arange(PROMPT, device=DEVICE))
    compiled = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)
    token, place = tokens(batch, 1), torch.tensor([PROMPT], device=DEVICE)

    def run() -> None:
        torch.compiler.cudagraph_mark_step_begin()
        compiled(input_ids=token, past_key_values=cache, cache_position=place)

    for _ in range(3):
        run()
    many = 50
    return seconds(lambda: [run() for _ in range(many)]) / many * 1e3


def say(what: str, figure: float) -> None:
    """Write a figure to the standard error as it comes."""
    print(f"{what}: {figure:.4g}", file=sys.stderr, flush=True)


def measure_in_turns(models: dict[str, Any], options: argparse.Namespace) -> dict[str, Figures]:
    """Return the figures of what is not compiled, by model and by what they are of."""
    found: dict[str, Figures] = {name: {} for name in models}

    def note(what: str, took: dict[str, float], figure: Callable[[float], float]) -> None:
        for name, each in took.items():
            found[name][what] = figure(each)
            say(f"{name}, {what}", found[name][what])

    for batch in options.batches if "eager" in options.parts else ():
        runs = {name: generation(model, batch) for name, model in models.items()}
        note(f"eager, batch {batch}, tokens/s", in_turns(runs, 5), lambda took, b=batch: b * NEW / took)
    for length in options.prefills if "prefill" in options.parts else ():
        prompt = tokens(1, length)
        forwards = {
            name: lambda model=model, prompt=prompt: model(prompt, logits_to_keep=1)
            for name, model in models.items()
        }
        note(f"prefill 1 x {length}, ms", in_turns(forwards, 5), lambda took: 1e3 * took)
    return found


def measure_compiled(model: Any, own: int, options: argparse.Namespace) -> Figures:
    """Return the figures of what is compiled, and the peak of memory; the model has ``own`` bytes."""
    found: Figures = {}

    def note(what: str, figure: float) -> None:
        found[what] = figure
        say(what, figure)

    others = torch.cuda.memory_allocated() - own
    torch.cuda.reset_peak_memory_stats()
    for batch in options.batches if "static" in options.parts else ():
        torch.compiler.reset()
        run = generation(model, batch, cache_implementation="static")
        note(f"static, batch {batch}, tokens/s", batch * NEW / seconds(run))
    for batch in options.batches if "step" in options.parts else ():
        torch.compiler.reset()
        note(f"step, batch {batch}, ms", step(model, batch))
    for length in options.prefills:
        model(tokens(1, length), logits_to_keep=1)
    note("peak memory, GiB", (torch.cuda.max_memory_allocated() - others) / 2**30)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--prefills", nargs="+", type=int, default=[2048, 8192])
    parser.add_argument("--json", type=Path, help="write all figures to this file, too")
    options = parser.parse_args()
    timing.require_sm90()
    kept: dict[str, dict[str, Figures]] = {}
    for name in options.models:
        with torch.no_grad():
            before = torch.cuda.memory_allocated()
            models = {"bf16": build(name)}
            own = {"bf16": torch.cuda.memory_allocated() - before}
            models["mxfp4"] = copy.deepcopy(models["bf16"])
            quantize_(models["mxfp4"], Mxfp4Config(backend="cuda-marlin"))
            torch.cuda.empty_cache()
            own["mxfp4"] = torch.cuda.memory_allocated() - before - own["bf16"]
            found = measure_in_turns(models, options)
            for which, model in models.items():
                found[which] |= measure_compiled(model, own[which], options)
        kept[name] = found
        plain, small = found["bf16"], found["mxfp4"]
        print(f"\n| {name} | BF16 | MXFP4 | MXFP4 is |\n|---|--:|--:|--:|")
        for what, was in plain.items():
            more = small[what] / was if what.endswith("tokens/s") else was / small[what]
            print(f"| {what} | {was:.3g} | {small[what]:.3g} | {more:.2f} x |", flush=True)
        del models, model
        torch.cuda.empty_cache()
    if options.json is not None:
        options.json.write_text(json.dumps(kept, indent=1))
    print(
        f"\nMeasured on {date.today()} with `python bench/hopper_generate.py`: {torch.cuda.get_device_name()}, torch "
        f"{torch.__version__}, transformers {version('transformers')}."
    )


if __name__ == "__main__":
    main()
