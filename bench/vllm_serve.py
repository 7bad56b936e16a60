"""How fast does vLLM serve MXFP4 with our backend, against BF16 and against its own MXFP4 path?

Usage: python bench/vllm_serve.py [--models dense,experts] [--runs bf16,ours,theirs] [--folder DIR] [--json FILE]

Writes models with random weights once: ``dense`` (8.2 billion parameters, layers of Qwen3-8B) and ``experts`` (16.3
billion: 26 layers of Qwen3-30B-A3B), in BF16, and from them with ``mxfp4 quantize`` folders of the dialect
compressed-tensors. Each run is a server of its own (``vllm serve``, CUDA graphs on), asked by the client of OpenAI:

* ``bf16``: the model as it is.
* ``ours``: the BF16 folder with ``--quantization mxfp4-core``.
* ``theirs``: the folder of compressed-tensors, on the kernels that vLLM chooses (Marlin or Humming on SM90). Ours is
  kept out of its choice by ``VLLM_DISABLED_KERNELS``.

For 1, 16 and 64 requests at a time it prints output tokens a second and the median time to the first token; and the
peak of the device's memory while weights were loaded, which vLLM logs at DEBUG. The limit of the peak is what the
quantised weights take, plus one layer, plus 5 %.

It needs an NVIDIA GPU of 80 GB and 60 GB of disk; where there is no GPU it says so and ends with exit code 0.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

CONCURRENCY = (1, 16, 64)
PROMPT_TOKENS, OUTPUT_TOKENS = 512, 128
VOCABULARY = 32768
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
    "bos_token_id": 0,
    "eos_token_id": 1,
}
MODELS: dict[str, dict[str, Any]] = {
    "dense": {
        **COMMON,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 41,
        "num_attention_heads": 32,
    },
    "experts": {
        **COMMON,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "num_hidden_layers": 26,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
}
FLAGS: dict[str, list[str]] = {"bf16": [], "ours": ["--quantization", "mxfp4-core"], "theirs": []}


@dataclass
class Run:
    """What one server did.

    Attributes:
        model: which model.
        kind: which way of serving it.
        peak: most bytes on the device while the weights were loaded; None where vLLM did not say it.
        kernels: the kernels that vLLM and we named in the log.
        speed: output tokens a second, by number of requests at a time.
        first: median seconds to the first token, likewise.
    """

    model: str
    kind: str
    peak: float | None = None
    kernels: list[str] = field(default_factory=list)
    speed: dict[int, float] = field(default_factory=dict)
    first: dict[int, float] = field(default_factory=dict)


def tensors_of_layer(config: dict[str, Any], layer: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of one layer."""
    hidden, heads = config["hidden_size"], config["head_dim"]
    stem = f"model.layers.{layer}."
    found: dict[str, tuple[int, ...]] = {
        f"{stem}self_attn.q_proj.weight": (config["num_attention_heads"] * heads, hidden),
        f"{stem}self_attn.k_proj.weight": (config["num_key_value_heads"] * heads, hidden),
        f"{stem}self_attn.v_proj.weight": (config["num_key_value_heads"] * heads, hidden),
        f"{stem}self_attn.o_proj.weight": (hidden, config["num_attention_heads"] * heads),
    }
    found |= {f"{stem}self_attn.{name}_norm.weight": (heads,) for name in "qk"}
    found |= {f"{stem}{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    mlps = [(f"{stem}mlp.", config["intermediate_size"])]
    if "num_experts" in config:
        found[f"{stem}mlp.gate.weight"] = (config["num_experts"], hidden)
        size = config["moe_intermediate_size"]
        mlps = [(f"{stem}mlp.experts.{number}.", size) for number in range(config["num_experts"])]
    for prefix, size in mlps:
        found |= {f"{prefix}{name}_proj.weight": (size, hidden) for name in ("gate", "up")}
        found[f"{prefix}down_proj.weight"] = (hidden, size)
    return found


def write(name: str, folder: Path) -> Path:
    """Write a model with random weights, one file for each layer; nothing where it is there already."""
    config, target = MODELS[name], folder / name
    if (target / "config.json").exists():
        return target
    target.mkdir(parents=True, exist_ok=True)
    hidden = config["hidden_size"]
    ends = {"model.embed_tokens.weight": (VOCABULARY, hidden), "lm_head.weight": (VOCABULARY, hidden)}
    pieces = [{**ends, "model.norm.weight": (hidden,)}]
    pieces += [tensors_of_layer(config, layer) for layer in range(config["num_hidden_layers"])]
    places: dict[str, str] = {}
    for number, shapes in enumerate(pieces):
        made = {
            key: torch.ones(shape, dtype=torch.bfloat16)
            if len(shape) == 1
            else torch.randn(shape, device="cuda", dtype=torch.bfloat16).mul_(shape[-1] ** -0.5).cpu()
            for key, shape in shapes.items()
        }
        file = f"model-{number:05}.safetensors"
        save_file(made, target / file, metadata={"format": "pt"})
        places |= dict.fromkeys(made, file)
    index = {"metadata": {}, "weight_map": places}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))
    (target / "config.json").write_text(json.dumps(config))
    return target


def quantised(source: Path) -> Path:
    """Return the model in the dialect that vLLM reads by itself."""
    target = source.with_name(f"{source.name}-compressed-tensors")
    if not target.exists():
        command = [sys.executable, "-m", "mxfp4_core", "quantize", str(source), str(target)]
        subprocess.run([*command, "--dialect", "compressed-tensors"], check=True)
    return target


async def ask(client: Any, number: int, at_once: int) -> list[tuple[float, int]]:
    """Send requests, so many at a time, and return for each the seconds to the first token and the number of tokens."""
    gate = asyncio.Semaphore(at_once)

    async def one(seed: int) -> tuple[float, int]:
        made = torch.Generator().manual_seed(seed)
        prompt = torch.randint(2, VOCABULARY, (PROMPT_TOKENS,), generator=made).tolist()
        async with gate:
            began, first, count = time.perf_counter(), 0.0, 0
            stream = await client.completions.create(
                model="m", prompt=prompt, max_tokens=OUTPUT_TOKENS, temperature=0, stream=True,
                extra_body={"ignore_eos": True, "detokenize": False, "stream_options": {"include_usage": True}},
            )  # fmt: skip
            async for piece in stream:
                first = first or time.perf_counter() - began
                count = piece.usage.completion_tokens if piece.usage else count
            return first, count

    return await asyncio.gather(*(one(seed) for seed in range(number)))


def serve(model: str, kind: str, folder: Path, log: Path) -> Run:
    """Start a server, ask it, and return what it did."""
    import openai

    source = write(model, folder)
    path = quantised(source) if kind == "theirs" else source
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(path), "--port", str(port)]
    command += ["--served-model-name", "m", "--skip-tokenizer-init", "--max-model-len", "2048", *FLAGS[kind]]
    variables = {**os.environ, "VLLM_LOGGING_LEVEL": "DEBUG", "HF_HUB_OFFLINE": "1"}
    if kind == "theirs":
        variables["VLLM_DISABLED_KERNELS"] = "Mxfp4CoreLinearKernel"
    run = Run(model, kind)
    with log.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, env=variables)
        try:
            address = f"http://127.0.0.1:{port}/v1"
            wait_for(openai.OpenAI(base_url=address, api_key="none"), server, log)
            for at_once in CONCURRENCY:
                asked = (
                    openai.AsyncOpenAI(base_url=address, api_key="none", timeout=600),
                    at_once * 4,
                    at_once,
                )
                asyncio.run(ask(asked[0], at_once, at_once))  # graphs and caches
                began = time.perf_counter()
                answers = asyncio.run(ask(*asked))
                seconds = time.perf_counter() - began
                run.speed[at_once] = sum(count for _, count in answers) / seconds
                run.first[at_once] = statistics.median(first for first, _ in answers)
        finally:
            server.terminate()
            server.wait(timeout=120)
    text = log.read_text(errors="replace")
    found = re.search(r"Peak GPU memory after loading weights: ([0-9.]+)", text)
    run.peak = float(found[1]) if found else None
    run.kernels = sorted(
        set(re.findall(r"Using (\S+ for MXFP4 GEMM|'\S+' Mxfp4 MoE backend|\S+ for MXFP4 MoE)", text))
    )
    run.kernels += sorted(set(re.findall(r"mxfp4: .*(backend [\w, -]+), profile", text)))
    return run


def wait_for(client: Any, server: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the server answers; say its last words where it ends before."""
    for _ in range(1200):
        if server.poll() is not None:
            raise SystemExit(f"the server ended:\n{log.read_text(errors='replace')[-3000:]}")
        try:
            client.models.list()
            return
        except Exception:
            time.sleep(0.5)
    raise SystemExit("the server does not answer after ten minutes")


def table(runs: list[Run]) -> str:
    """Return the runs as Markdown."""
    heads = [f"{each} at once: tokens/s, first token" for each in CONCURRENCY]
    lines = [f"| model | run | {' | '.join(heads)} | peak while loading | kernels |"]
    lines.append("|---|---" + "|--:" * (len(heads) + 1) + "|---|")
    for run in runs:
        cells = [f"{run.speed[each]:.0f}, {run.first[each] * 1e3:.0f} ms" for each in CONCURRENCY]
        peak = "not said" if run.peak is None else f"{run.peak:.2f} GiB"
        lines.append(
            f"| {run.model} | {run.kind} | {' | '.join(cells)} | {peak} | {'; '.join(run.kernels)} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="dense,experts")
    parser.add_argument("--runs", default="bf16,ours,theirs")
    parser.add_argument("--folder", type=Path, default=Path("build/vllm_serve"))
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--remove", action="store_true", help="remove a model when its runs are done: disk is short"
    )
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing is measured")
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    runs: list[Run] = []
    for model in options.models.split(","):
        for kind in options.runs.split(","):
            runs.append(serve(model, kind, options.folder, options.folder / f"{model}-{kind}.log"))
            print(table(runs[-1:]), flush=True)
        if options.remove:
            for left in options.folder.glob(f"{model}*"):
                shutil.rmtree(left) if left.is_dir() and left.name != "logs" else None
    print(table(runs))
    if options.json:
        options.json.write_text(json.dumps([asdict(run) for run in runs], indent=1))


if __name__ == "__main__":
    main()
