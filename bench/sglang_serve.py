"""How fast does SGLang serve on a GPU with MXFP4, against BF16 and against its own MXFP4?

Usage: python bench/sglang_serve.py [--models dense moe] [--methods bf16 ours own] [--json FILE]

Run it with a Python that has SGLang, mxfp4-sglang and a backend for the GPU (mxfp4-cuda-marlin on Hopper); elsewhere
it says so and ends with exit code 0. It was written for one H200 and SGLang 0.5.17 and has not run yet.

Writes random BF16 checkpoints, dense (8.2 billion parameters, the shape of Qwen3-8B) and MoE (16.8 billion, 26 layers
of Qwen3-30B-A3B), and starts SGLang's engine with each, CUDA graphs on:

  bf16  as it is
  ours  --quantization mxfp4-core, on the backend that is chosen
  own   what SGLang has itself: --quantization humming with MXFP4 weights (0.5.18 and later, if it is installed)

For 1, 16 and 64 requests at a time: time to the first token (a request of one token), and tokens a second over all
(each request 512 tokens in, 256 out). The median of three counts, after one that is not counted. Peak while loading:
what NVML says is used until SGLang logs that weights are loaded, less what was used before; the KV cache comes later.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

GIB = 1 << 30
PROMPT, OUTPUT, REQUESTS = 512, 256, (1, 16, 64)
SHARED: dict[str, Any] = {
    "vocab_size": 151936,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "head_dim": 128,
}
MODELS: dict[str, dict[str, Any]] = {
    "dense": {
        **SHARED, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 4096,
        "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
    },
    "moe": {
        **SHARED, "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 2048,
        "intermediate_size": 6144, "moe_intermediate_size": 768, "num_hidden_layers": 26, "num_experts": 128,
        "num_experts_per_tok": 8, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "num_attention_heads": 32, "num_key_value_heads": 4,
    },
}  # fmt: skip
METHODS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "bf16": ({}, {}),
    "ours": ({"quantization": "mxfp4-core"}, {}),
    "own": (
        {"quantization": "humming"},
        {
            "SGLANG_HUMMING_ONLINE_QUANT_CONFIG": json.dumps(
                {"dtype": "float4e2m1", "group_size": 32, "scale_dtype": "float8e8m0"}
            )
        },
    ),
}


def write(folder: Path, config: dict[str, Any]) -> int:
    """Write a random checkpoint, a file for each layer, and return its parameters."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    index: dict[str, str] = {}
    h, hd = config["hidden_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * hd, config["num_key_value_heads"] * hd
    made = torch.Generator("cuda").manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=made, device="cuda") * shape[-1] ** -0.5).bfloat16().cpu()

    def ones(size: int) -> torch.Tensor:
        return torch.ones(size, dtype=torch.bfloat16)

    def save(number: int, tensors: dict[str, torch.Tensor]) -> int:
        name = f"model-{number:05}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, name))
        return sum(each.numel() for each in tensors.values())

    vocabulary = config["vocab_size"]
    total = save(
        0,
        {
            "model.embed_tokens.weight": random(vocabulary, h),
            "lm_head.weight": random(vocabulary, h),
            "model.norm.weight": ones(h),
        },
    )
    mlp, i = [""], config["intermediate_size"]
    if experts := config.get("num_experts"):
        mlp, i = [f"experts.{number}." for number in range(experts)], config["moe_intermediate_size"]
    for layer in range(config["num_hidden_layers"]):
        stem = f"model.layers.{layer}."
        shapes = {"self_attn.q_proj": (q, h), "self_attn.k_proj": (kv, h), "self_attn.v_proj": (kv, h)}
        shapes["self_attn.o_proj"] = (h, q)
        for part in mlp:
            shapes |= {
                f"mlp.{part}gate_proj": (i, h),
                f"mlp.{part}up_proj": (i, h),
                f"mlp.{part}down_proj": (h, i),
            }
        if experts:
            shapes["mlp.gate"] = (experts, h)
        norms = {
            "input_layernorm": h,
            "post_attention_layernorm": h,
            "self_attn.q_norm": hd,
            "self_attn.k_norm": hd,
        }
        tensors = {f"{stem}{name}.weight": random(*shape) for name, shape in shapes.items()}
        total += save(
            layer + 1, tensors | {f"{stem}{name}.weight": ones(size) for name, size in norms.items()}
        )
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return total


def one(model: str, arguments: dict[str, Any], answer: str) -> None:
    """Start an engine and measure; all of it in this process and its children."""
    import sglang

    settings = {
        "skip_tokenizer_init": True, "attention_backend": "triton", "sampling_backend": "pytorch",
        "grammar_backend": "none", "disable_radix_cache": True, "dtype": "bfloat16", "mem_fraction_static": 0.8,
        "cuda_graph_max_bs": max(REQUESTS), "log_level": "info",
    }  # fmt: skip
    engine = sglang.Engine(model_path=model, **settings, **arguments)
    made = torch.Generator().manual_seed(1)
    prompts = torch.randint(0, SHARED["vocab_size"], (max(REQUESTS), PROMPT), generator=made).tolist()

    def timed(count: int, tokens: int) -> float:
        how = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
        began = time.perf_counter()
        engine.generate(input_ids=prompts[:count], sampling_params=how)
        return time.perf_counter() - began

    results = {}
    for count in REQUESTS:
        timed(count, 8)  # not counted: compiles
        first = statistics.median(timed(count, 1) for _ in range(3))
        whole = statistics.median(timed(count, OUTPUT) for _ in range(3))
        results[str(count)] = {"first_token_s": first, "tokens_per_s": count * OUTPUT / whole}
    Path(answer).write_text(json.dumps(results))
    engine.shutdown()


def measure(model: Path, arguments: dict[str, Any], variables: dict[str, str], place: Path) -> dict[str, Any]:
    """Return what one engine does, and its peak while loading."""
    answer, log = place / "answer.json", place / "log"
    answer.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--one", str(model), json.dumps(arguments), str(answer)]
    before, peak, loaded = torch.cuda.device_memory_used(0), 0, False
    with log.open("w") as out:
        child = subprocess.Popen(
            command, start_new_session=True, stdout=out, stderr=out, env={**os.environ, **variables}
        )
        while child.poll() is None:
            if not loaded:
                peak = max(peak, torch.cuda.device_memory_used(0) - before)
                loaded = "Load weight end" in log.read_text()
            time.sleep(0.02 if not loaded else 1)
    text = log.read_text()
    if not answer.exists():
        return {"error": text[-1500:]}
    line = next((x[x.index("mxfp4: ") :] for x in text.splitlines() if "mxfp4: quantised" in x), "")
    return {"requests": json.loads(answer.read_text()), "load_peak_gib": peak / GIB, "report": line}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        for model in given.models:
            folder = Path(place) / model
            count = write(folder, MODELS[model])
            print(f"\n{model}: {count / 1e9:.1f} billion parameters\n")
            print(
                "| | load peak | " + " | ".join(f"first token, {n} | tokens/s, {n}" for n in REQUESTS) + " |"
            )
            print("|---|--:|" + "--:|--:|" * len(REQUESTS))
            for method in given.methods:
                found = results[f"{model}/{method}"] = measure(folder, *METHODS[method], Path(place))
                if "error" in found:
                    print(f"| {method} | did not run: {found['error'].splitlines()[-1][:120]} |")
                    continue
                cells = [
                    f"{each['first_token_s'] * 1e3:.0f} ms | {each['tokens_per_s']:.0f}"
                    for each in found["requests"].values()
                ]
                print(
                    f"| {method} | {found['load_peak_gib']:.2f} GiB | " + " | ".join(cells) + " |", flush=True
                )
    if given.json:
        given.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], json.loads(sys.argv[3]), sys.argv[4])
    elif importlib.util.find_spec("sglang") is None or not torch.cuda.is_available():
        print("this needs SGLang and a GPU")
    else:
        main()
