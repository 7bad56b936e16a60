"""How fast does vLLM serve MXFP4 with our backend, against BF16 and against its own MXFP4 path?

Usage: python bench/vllm_serve.py [--models dense moe] [--variants bf16 theirs ours] [--concurrency 1 16 64]
       [--layers 2] [--limit 100] [--folder DIR] [--out FILE] [--compiled]

Run it with a Python that has vLLM, mxfp4-vllm and a backend for the GPU (mxfp4-cuda-marlin on Hopper); elsewhere it
says so and ends with exit code 0. It was written for one H200 and vLLM 0.26.0.

Models have random weights: ``dense``, 8.2 billion parameters (Qwen3-8B), and ``moe``, 16.9 billion (26 layers of
Qwen3-30B-A3B). They are made on the GPU, in BF16 and as MXFP4 in the dialect compressed-tensors, and stay in
``--folder``, a place of 65 GB that is best in memory. ``--layers`` makes them shorter, to see whether all starts.

  bf16    as it is
  theirs  the folder of compressed-tensors, on the kernels that vLLM chooses (Marlin on SM90); ours is disabled
  ours    the BF16 folder with ``--quantization mxfp4-core``

and, where they are named, ``ours-stored`` (the folder of compressed-tensors with ``--quantization mxfp4-core``),
``ours-mxfp8`` (``--quantization mxfp8-core``), and bf16 and ours on two GPUs: ``-tp2`` in tensor parallel, which cuts
experts, too, ``-ep2`` with whole experts on each, for the model that has some:

  python bench/vllm_serve.py --variants bf16 bf16-tp2 bf16-ep2 ours ours-tp2 ours-ep2 --layers 4 --concurrency 1

Each runs in a process of its own, forked after vLLM's imports and ended after ``--limit`` seconds; one that fails is
told with the end of its log, and the next one follows. CUDA graphs are on, for the numbers of requests that are asked;
torch.compile is off, unless ``--compiled``. A request has 512 tokens in and 128 out, no two prompts are alike, nothing
is cached. Peak while loading: ``torch.cuda.max_memory_allocated`` when vLLM has loaded and prepared the weights.
``ours`` and ``theirs`` have the same weights, so what they say first is compared: log-probabilities and tokens.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # this process forks, so it must not start CUDA

import torch
from serving import comparing, models, pieces
from serving.sizes import SHARED

VARIANTS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "bf16": ({}, {}),
    "theirs": ({}, {"VLLM_DISABLED_KERNELS": "Mxfp4CoreLinearKernel"}),
    "ours": ({"quantization": "mxfp4-core"}, {}),
}
TWO: dict[str, Any] = {"tensor_parallel_size": 2, "disable_custom_all_reduce": True}
NAMED: comparing.Variants = {
    "ours-stored": ({"quantization": "mxfp4-core"}, {}),
    "ours-mxfp8": ({"quantization": "mxfp8-core"}, {}),
    **comparing.on_two(VARIANTS, TWO, {"enable_expert_parallel": True}),
}
VARIABLES = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
LOGGER = "vllm"
"""Above those of its model runners, which say that weights are loaded; which one runs depends on the model."""


def arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Return what all variants are started with."""
    counts = options.concurrency
    graphs: dict[str, Any] = {"cudagraph_capture_sizes": sorted(counts)}
    if not options.compiled:
        graphs |= {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
    on_gpu = {"attention_backend": "TRITON_ATTN", "compilation_config": graphs}
    return {
        "skip_tokenizer_init": True,
        "dtype": "bfloat16",
        "max_model_len": 1024,
        "max_num_seqs": max(counts),
        "gpu_memory_utilization": 0.45,  # of what others may have taken from; the cache has a size of its own
        "kv_cache_memory_bytes": 16 * pieces.GIB if options.device == "cuda" else pieces.GIB // 4,
        "enable_prefix_caching": False,
        **(on_gpu if options.device == "cuda" else {"enforce_eager": True}),
    }


class Peak(logging.Handler):
    """Notes the memory of the device when vLLM says that weights are loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.found: pieces.Answer = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Look, where this is the line."""
        if record.getMessage().startswith("Model loading took") and torch.cuda.is_initialized():
            self.found["load_peak_gib"] = torch.cuda.max_memory_allocated() / pieces.GIB
            self.found["loaded_gib"] = torch.cuda.memory_allocated() / pieces.GIB


def serve(
    path: Path, variant: str, options: argparse.Namespace, keep: Callable[[pieces.Answer], None]
) -> None:
    """Start an engine in this process and measure it."""
    extra, variables = {**VARIANTS, **NAMED}[variant]
    os.environ.update(variables)
    from vllm import LLM, SamplingParams

    peak = Peak()
    logging.getLogger(LOGGER).addHandler(peak)
    began = time.perf_counter()
    llm = LLM(model=str(path), **arguments(options), **extra)
    found: pieces.Answer = {"start_s": time.perf_counter() - began, **peak.found}
    keep(found)
    made = torch.Generator().manual_seed(1)
    vocabulary = SHARED["vocab_size"]

    def prompts(count: int) -> list[dict[str, list[int]]]:
        numbers = torch.randint(2, vocabulary, (count, pieces.PROMPT), generator=made)
        return [{"prompt_token_ids": each} for each in numbers.tolist()]

    def generate(count: int, tokens: int) -> None:
        how = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        llm.generate(prompts(count), how, use_tqdm=False)

    first = SamplingParams(
        temperature=0, max_tokens=comparing.COMPARED, logprobs=20, ignore_eos=True, detokenize=False
    )
    said = llm.generate(prompts(8), first, use_tqdm=False)
    found["tokens"] = [list(each.outputs[0].token_ids) for each in said]
    found["first_tokens"] = [
        {str(token): one.logprob for token, one in each.outputs[0].logprobs[0].items()} for each in said
    ]
    keep(found)
    pieces.measure(generate, options.concurrency, lambda speed: keep({**found, "speed": speed}))


def kernels(log: str) -> list[str]:
    """Return what vLLM and we said of the kernels that compute."""
    found = re.findall(r"Using (\S+ for MXFP4 GEMM|\S+ for MXFP4 MoE|'\S+' Mxfp4 MoE backend)", log)
    return sorted({*found, *re.findall(r"mxfp4: quantised .{,400}", log)})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    pieces.add_arguments(parser, VARIANTS, NAMED)
    parser.add_argument("--compiled", action="store_true", help="with torch.compile, as vLLM does by default")
    options = parser.parse_args()
    if importlib.util.find_spec("vllm") is None or (
        options.device == "cuda" and not torch.cuda.is_available()
    ):
        print("this needs vLLM and a GPU")
        return
    os.environ.update(VARIABLES)
    began = time.perf_counter()
    import vllm.entrypoints.llm
    import vllm.model_executor.models.qwen3
    import vllm.model_executor.models.qwen3_moe  # once, for all pieces

    print(f"vLLM {vllm.__version__}, imports {time.perf_counter() - began:.1f} s")
    print(pieces.heading(options.concurrency), flush=True)
    for model in options.models:
        written = models.prepare(model, options)
        answers: dict[str, pieces.Answer] = {}
        for variant in (each for each in options.variants if comparing.applies(model, each)):
            path = written.stored if variant in ("theirs", "ours-stored") else written.source
            folder = options.folder / f"vllm-{model}-{variant}"
            found = pieces.apart(partial(serve, path, variant, options), folder, options.limit)
            found["kernels"] = kernels((folder / "log").read_text(errors="replace"))
            answers[variant] = found
            pieces.tell(found, f"vllm {vllm.__version__}", variant, written, options)
        comparing.compare(answers)


if __name__ == "__main__":
    main()
