"""What does SGLang hold at most while it loads a model: in BF16, and quantised as it loads?

Usage: python bench/sglang_memory.py [--layers 12] [--experts 0] [--arguments JSON] [--json FILE]

Run it with the Python of an environment that has SGLang and mxfp4-sglang (``~/.cache/mxfp4/engine-sglang`` after
``nox -s engines -- sglang``); elsewhere it says so and ends with exit code 0.

Writes a random BF16 checkpoint (the shape of Qwen3, hidden size 2048, dense, or with ``--experts`` of 768), and starts
SGLang's engine with it: as it is, with ``mxfp4-core``, with ``mxfp8-core``, and with a folder that ``mxfp4 quantize``
made. Before them a model of one thin layer, whose peak is what SGLang itself takes. On a CPU the peak is the largest
VmHWM of its processes, less mapped files that can be reclaimed (RssAnon is sampled every 20 ms); on CUDA it is what the
engine's scheduler logs.

SGLang's own online methods hold the whole BF16 model before they quantise it, so their peak is at least that of BF16.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

GIB = 1 << 30
BASE: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 4096,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
EXPERTS: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}


def write(folder: Path, layers: int, intermediate: int, experts: int = 0) -> int:
    """Write a checkpoint, a file for each layer, and return the bytes of its linears and experts."""
    config = {**BASE, "num_hidden_layers": layers, "intermediate_size": intermediate}
    if experts:
        config |= {**EXPERTS, "num_experts": experts}
        intermediate = EXPERTS["moe_intermediate_size"]
    h, i, q = config["hidden_size"], intermediate, config["num_attention_heads"] * config["head_dim"]
    kv, v = config["num_key_value_heads"] * config["head_dim"], config["vocab_size"]
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    made, index, total = torch.Generator().manual_seed(0), {}, 0

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=made) * shape[-1] ** -0.5).bfloat16()

    linears = {"self_attn.q_proj": (q, h), "self_attn.k_proj": (kv, h), "self_attn.v_proj": (kv, h)}
    linears["self_attn.o_proj"] = (h, q)
    for stem in [f"mlp.experts.{expert}" for expert in range(experts)] or ["mlp"]:
        linears |= {f"{stem}.gate_proj": (i, h), f"{stem}.up_proj": (i, h), f"{stem}.down_proj": (h, i)}
    shared = {"model.embed_tokens.weight": random(v, h), "lm_head.weight": random(v, h)}
    _save(folder, 0, {**shared, "model.norm.weight": torch.ones(h).bfloat16()}, index)
    norms = {
        "input_layernorm": h,
        "post_attention_layernorm": h,
        "self_attn.q_norm": 128,
        "self_attn.k_norm": 128,
    }
    for layer in range(layers):
        stem = f"model.layers.{layer}."
        weights = {f"{stem}{name}.weight": random(*shape) for name, shape in linears.items()}
        total += sum(each.nbytes for each in weights.values())
        more = {f"{stem}{name}.weight": torch.ones(n).bfloat16() for name, n in norms.items()}
        if experts:
            more[f"{stem}mlp.gate.weight"] = random(experts, h)
        _save(folder, layer + 1, weights | more, index)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return total


def _save(folder: Path, number: int, tensors: dict[str, torch.Tensor], index: dict[str, str]) -> None:
    name = f"model-{number:05}.safetensors"
    save_file(tensors, folder / name, metadata={"format": "pt"})
    index.update(dict.fromkeys(tensors, name))


def anonymous(root: int) -> int:
    """Return the anonymous memory of the largest process below one."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getsid(int(entry.name)) == root:
                text = (entry / "status").read_text()
                found.append(
                    int(next(x for x in text.splitlines() if x.startswith("RssAnon")).split()[1]) * 1024
                )
        except (OSError, StopIteration):
            continue
    return max(found, default=0)


def one(model: str, arguments: dict[str, Any]) -> None:
    """Start an engine, generate a token, and end."""
    import sglang

    engine = sglang.Engine(model_path=model, **arguments)
    engine.generate(
        input_ids=[[1, 2, 3]], sampling_params={"temperature": 0, "max_new_tokens": 1, "ignore_eos": True}
    )
    engine.shutdown()


def measure(model: Path, arguments: dict[str, Any]) -> tuple[float, float, str]:
    """Return the peak in bytes, seconds, and the line of our report, of an engine in a session of its own."""
    command = [sys.executable, __file__, "--one", str(model), json.dumps(arguments)]
    began, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as log:
        child = subprocess.Popen(command, start_new_session=True, stdout=log, stderr=log)
        done = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.02):
                peak = max(peak, anonymous(child.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        code = child.wait(timeout=1500)
        done.set()
        watcher.join()
        log.seek(0)
        text = log.read()
    if code:
        raise RuntimeError(f"the engine ended with {code}\n{text[-3000:]}")
    line = next((x[x.index("mxfp4: ") :] for x in text.splitlines() if "mxfp4: quantised" in x), "")
    return peak, time.perf_counter() - began, line


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--experts", type=int, default=0, help="of each layer; a dense model if 0")
    parser.add_argument("--arguments", default="{}", help="further arguments of sglang.Engine, as JSON")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    common = {
        "device": "cpu", "attention_backend": "torch_native", "sampling_backend": "pytorch", "grammar_backend": "none",
        "skip_tokenizer_init": True, "disable_radix_cache": True, "disable_overlap_schedule": True,
        "max_total_tokens": 256, "mem_fraction_static": 0.3, "log_level": "info", "dtype": "bfloat16",
        **json.loads(given.arguments),
    }  # fmt: skip
    from mxfp4_core.jobs import quantize_checkpoint

    with tempfile.TemporaryDirectory() as place:
        thin, model, stored = Path(place) / "thin", Path(place) / "model", Path(place) / "stored"
        write(thin, 1, 256)
        linears = write(model, given.layers, BASE["intermediate_size"], given.experts)
        quantize_checkpoint(model, stored, models="none")
        runs: dict[str, tuple[Path, dict[str, Any]]] = {
            "SGLang itself (one thin layer)": (thin, {}),
            "BF16, as SGLang's own online methods hold it": (model, {}),
            "`--quantization mxfp4-core`": (model, {"quantization": "mxfp4-core"}),
            "`--quantization mxfp8-core`": (model, {"quantization": "mxfp8-core"}),
            "a saved folder": (stored, {"quantization": "mxfp4-core"}),
        }
        results = {name: measure(path, {**common, **more}) for name, (path, more) in runs.items()}
    base = results["SGLang itself (one thin layer)"][0]
    print(f"linears {linears / GIB:.2f} GiB in BF16, {linears * 17 / 64 / GIB:.2f} GiB in MXFP4\n")
    print("| what | peak | above SGLang itself | seconds |\n|---|--:|--:|--:|")
    for name, (peak, seconds, _) in results.items():
        print(f"| {name} | {peak / GIB:.2f} GiB | {(peak - base) / GIB:.2f} GiB | {seconds:.0f} |")
    for name, (_, _, line) in results.items():
        if line:
            print(f"\n{name}: {line}")
    if given.json:
        given.json.write_text(json.dumps({name: list(each) for name, each in results.items()}))


if __name__ == "__main__":
    if importlib.util.find_spec("sglang") is None:
        print(
            "sglang is not installed here: nox -s engines -- sglang makes ~/.cache/mxfp4/engine-sglang, which has it"
        )
    elif sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], json.loads(sys.argv[3]))
    else:
        main()
