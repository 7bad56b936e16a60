"""How fast does SGLang serve on a GPU with MXFP4, against BF16 and against its own MXFP4?

Usage: python bench/sglang_serve.py [--models dense moe] [--variants bf16 theirs ours] [--concurrency 1 16 64]
       [--layers 2] [--limit 100] [--folder DIR] [--out FILE]

Run it with a Python that has SGLang, mxfp4-sglang and a backend for the GPU (mxfp4-cuda-marlin on Hopper); elsewhere
it says so and ends with exit code 0. It was written for one H200 and SGLang 0.5.17.

Models, pieces and what is timed are those of ``vllm_serve.py``, which writes the same folders. CUDA graphs are on, for
the numbers of requests that are asked.

  bf16    as it is
  theirs  ``--quantization humming`` with MXFP4 weights, made while it loads; it needs the package humming-kernels
  ours    ``--quantization mxfp4-core``

and, where they are named, ``ours-mxfp8`` (``--quantization mxfp8-core``), and bf16 and ours on two GPUs, as there:

  python bench/sglang_serve.py --variants bf16 bf16-tp2 bf16-ep2 ours ours-tp2 ours-ep2 --layers 4 --concurrency 1

Peak while loading: what NVML says is used until SGLang logs that weights are loaded, less what was used before; that
includes the context of CUDA and what torch keeps to itself. The KV cache comes later.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # this process forks, so it must not start CUDA

import torch
from serving import comparing, models, pieces
from serving.sizes import SHARED

MXFP4 = {"dtype": "float4e2m1", "group_size": 32, "scale_dtype": "float8e8m0"}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "bf16": ({}, {}),
    "theirs": ({"quantization": "humming"}, {"SGLANG_HUMMING_ONLINE_QUANT_CONFIG": json.dumps(MXFP4)}),
    "ours": ({"quantization": "mxfp4-core"}, {}),
}
TWO: dict[str, Any] = {"tp_size": 2, "disable_custom_all_reduce": True}
NAMED: comparing.Variants = {
    "ours-mxfp8": ({"quantization": "mxfp8-core"}, {}),
    **comparing.on_two(VARIANTS, TWO, {"ep_size": 2}),
}
EVERY: comparing.Variants = {**VARIANTS, **NAMED}


def arguments(counts: list[int], device: str) -> dict[str, Any]:
    """Return what all variants are started with."""
    on_gpu = {
        "attention_backend": "triton",
        "mem_fraction_static": 0.8,
        "max_total_tokens": 1 << 16,
        "cuda_graph_bs_decode": sorted(counts),
        "cuda_graph_max_bs_decode": max(counts),
        "disable_prefill_cuda_graph": True,
    }
    on_cpu = {"device": "cpu", "attention_backend": "torch_native", "max_total_tokens": 4096}
    on_cpu |= {"mem_fraction_static": 0.3, "disable_overlap_schedule": True}
    return {
        "skip_tokenizer_init": True,
        "sampling_backend": "pytorch",
        "grammar_backend": "none",
        "disable_radix_cache": True,
        "dtype": "bfloat16",
        "max_running_requests": max(counts),
        "log_level": "info",
        **(on_gpu if device == "cuda" else on_cpu),
    }


def one(path: str, variant: str, counts: list[int], device: str, answer: Path) -> None:
    """Start an engine and measure it, all in this process and its children."""
    import sglang

    def keep(found: pieces.Answer) -> None:
        pieces.write_answer(answer, found)

    began = time.perf_counter()
    engine = sglang.Engine(model_path=path, **arguments(counts, device), **EVERY[variant][0])
    found: pieces.Answer = {"start_s": time.perf_counter() - began}
    keep(found)
    made = torch.Generator().manual_seed(1)

    def prompts(count: int) -> list[list[int]]:
        return torch.randint(2, SHARED["vocab_size"], (count, pieces.PROMPT), generator=made).tolist()

    def generate(count: int, tokens: int) -> None:
        how = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
        engine.generate(input_ids=prompts(count), sampling_params=how)

    how = {"temperature": 0, "max_new_tokens": comparing.COMPARED, "ignore_eos": True}
    began = time.perf_counter()
    said = engine.generate(
        input_ids=prompts(8), sampling_params=how, return_logprob=True, top_logprobs_num=20
    )
    found["tokens"] = [list(each["output_ids"]) for each in said]
    found["first_call_s"] = time.perf_counter() - began
    found["first_tokens"] = [
        {str(token): value for value, token, _ in each["meta_info"]["output_top_logprobs"][0]}
        for each in said
    ]
    keep(found)
    pieces.measure(generate, counts, lambda speed: keep({**found, "speed": speed}))
    engine.shutdown()


class Peak:
    """The most memory of the device that was used while SGLang loaded weights, above what it used before."""

    def __init__(self) -> None:
        self.before: int | None = None
        self.most = 0
        self.loaded = False

    def look(self, log: str) -> None:
        """Look once, with what is in the log so far."""
        if self.loaded or "Load weight begin" not in log:
            return
        used = _used()
        self.before = used if self.before is None else self.before
        self.most = max(self.most, used)
        self.loaded = "Load weight end" in log


def _used() -> int:
    return torch.cuda.device_memory_used(0) if torch.cuda.is_available() else 0


def run(path: Path, variant: str, options: argparse.Namespace, folder: Path) -> pieces.Answer:
    """Measure one variant of one model in a process of its own."""
    peak = Peak()

    def work(_: Callable[[pieces.Answer], None]) -> None:
        given = [
            str(path),
            variant,
            json.dumps(options.concurrency),
            options.device,
            str(folder / pieces.ANSWER),
        ]
        command = [sys.executable, __file__, "--one", *given]
        os.execve(sys.executable, command, {**os.environ, **EVERY[variant][1]})

    found = pieces.apart(work, folder, options.limit, watch=peak.look)
    if peak.loaded and peak.before is not None:
        found["load_peak_gib"] = (peak.most - peak.before) / pieces.GIB
    return found


def kernels(log: str) -> list[str]:
    """Return what we said of the load."""
    return sorted(
        {line[line.index("mxfp4: ") :][:600] for line in log.splitlines() if "mxfp4: quantised" in line}
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    pieces.add_arguments(parser, VARIANTS, NAMED)
    options = parser.parse_args()
    if importlib.util.find_spec("sglang") is None or (
        options.device == "cuda" and not torch.cuda.is_available()
    ):
        print("this needs SGLang and a GPU")
        return
    print(f"SGLang {version('sglang')}\n{pieces.heading(options.concurrency)}", flush=True)
    for model in options.models:
        written = models.prepare(model, options)
        answers: dict[str, pieces.Answer] = {}
        for variant in (each for each in options.variants if comparing.applies(model, each)):
            folder = options.folder / f"sglang-{model}-{variant}"
            found = run(written.source, variant, options, folder)
            found["kernels"] = kernels((folder / "log").read_text(errors="replace"))
            answers[variant] = found
            pieces.tell(found, f"sglang {version('sglang')}", variant, written, options)
        comparing.compare(answers)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], sys.argv[3], json.loads(sys.argv[4]), sys.argv[5], Path(sys.argv[6]))
    else:
        main()
