"""What does it cost to quantise a model while it loads, against loading it in BF16?

Usage: python bench/hopper_load.py [--model dense] [--layers 9] [--cold] [--json FILE]

Writes a random BF16 checkpoint of more than 4 billion parameters, dense (the shape of Qwen3-4B) and MoE (six layers
of Qwen3-30B-A3B), and loads it with transformers onto the GPU: as it is, and into MXFP4 for cuda-marlin. Every load
runs in a process of its own, forked after the imports and given a CUDA context before the clock starts; the two kinds
alternate, the median counts. All files are in the page cache; --cold adds one load of each kind for which that was
dropped before, which needs root. The first MXFP4 load compiles the Triton kernels where their cache is empty; it is
shown and not counted.

The limit of memory is the loaded model and 5 % of it, plus the largest tensor that is quantised, in BF16; the peak is
torch.cuda.max_memory_allocated. At last the logits of the loaded model are compared with those of the BF16 model, and
with those of the BF16 model whose weights were rounded by mxfp4_core.quantize.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from hopper.timing import has_sm90, relative_error
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig
from transformers.models.qwen3 import modeling_qwen3  # noqa: F401 (loaded before the fork)
from transformers.models.qwen3_moe import modeling_qwen3_moe  # noqa: F401

import mxfp4_core
from mxfp4_core.checkpoint import read_header
from mxfp4_transformers import Mxfp4Config

SHARD_BYTES = 2 << 30
KEPT = ("embed_tokens", "lm_head", "norm", "mlp.gate.")
PROMPT = torch.arange(100, 164)[None]
LAYERS = {"dense": 36, "moe": 6}


@dataclass(frozen=True)
class Load:
    """One load: seconds of ``from_pretrained``, bytes on the device."""

    seconds: float
    allocated: int
    reserved: int
    model: int
    line: str = ""


def configuration(kind: str, layers: int) -> Any:
    """Return the config of the dense or the MoE model."""
    common = {"vocab_size": 151936, "num_hidden_layers": layers, "head_dim": 128, "num_attention_heads": 32}
    common |= {"dtype": "bfloat16", "max_position_embeddings": 4096, "initializer_range": 0.02}
    if kind == "dense":
        sizes = {"hidden_size": 2560, "intermediate_size": 9728, "num_key_value_heads": 8}
        config = Qwen3Config(**common, **sizes, tie_word_embeddings=True)
        config.architectures = ["Qwen3ForCausalLM"]
        return config
    sizes = {"hidden_size": 2048, "intermediate_size": 6144, "num_key_value_heads": 4}
    sizes |= {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
    config = Qwen3MoeConfig(**common, **sizes, norm_topk_prob=True, tie_word_embeddings=False)
    config.architectures = ["Qwen3MoeForCausalLM"]
    return config


def shapes(config: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield every tensor of the checkpoint, as its model saves it."""
    hidden, heads, pairs = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    yield "model.embed_tokens.weight", (config.vocab_size, hidden)
    for layer in range(config.num_hidden_layers):
        at = f"model.layers.{layer}"
        for name, rows in {"q": heads, "k": pairs, "v": pairs}.items():
            yield f"{at}.self_attn.{name}_proj.weight", (rows * config.head_dim, hidden)
        yield f"{at}.self_attn.o_proj.weight", (hidden, heads * config.head_dim)
        yield from ((f"{at}.self_attn.{name}_norm.weight", (config.head_dim,)) for name in "qk")
        yield from ((f"{at}.{name}_layernorm.weight", (hidden,)) for name in ("input", "post_attention"))
        places, inner = [f"{at}.mlp"], config.intermediate_size
        if experts := getattr(config, "num_experts", 0):
            yield f"{at}.mlp.gate.weight", (experts, hidden)
            places, inner = [f"{at}.mlp.experts.{e}" for e in range(experts)], config.moe_intermediate_size
        for place in places:
            yield from ((f"{place}.{name}_proj.weight", (inner, hidden)) for name in ("gate", "up"))
            yield f"{place}.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    if not config.tie_word_embeddings:
        yield "lm_head.weight", (config.vocab_size, hidden)


def generate(kind: str, layers: int, folder: Path) -> int:
    """Write a checkpoint with weights of the size that trained models have; return its parameters."""
    config = configuration(kind, layers)
    config.save_pretrained(folder)
    torch.manual_seed(0)
    files: list[dict[str, torch.Tensor]] = [{}]
    for name, shape in shapes(config):
        scale = 1 / math.sqrt(shape[-1]) if len(shape) > 1 else 0.1
        tensor = torch.randn(shape, device="cuda", dtype=torch.bfloat16) * scale
        files[-1][name] = (tensor + 1 if "norm" in name else tensor).cpu()
        if sum(each.nbytes for each in files[-1].values()) > SHARD_BYTES:
            files.append({})
    where = {}
    for number, tensors in enumerate(filter(None, files)):
        name = f"model-{number:05d}.safetensors"
        save_file(tensors, folder / name, {"format": "pt"})
        where |= dict.fromkeys(tensors, name)
    index = json.dumps({"metadata": {}, "weight_map": where})
    (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    return sum(math.prod(shape) for _, shape in shapes(config))


def load(folder: Path, quantise: bool, logits: Path | None) -> Load:
    """Load in this process; with ``logits``, also run the model and write them there."""
    torch.zeros(1, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    given: dict[str, Any] = {"quantization_config": Mxfp4Config(backend="cuda-marlin")} if quantise else {}
    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map="cuda", **given)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    peaks = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    held = {tensor.data_ptr(): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    line = model.mxfp4_report.line() if quantise else ""
    if logits is not None:
        save_file({"logits": run(model)}, logits)
        ids = PROMPT[:, :8].cuda()
        new = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        line += f"\ngenerated {new[0, 8:].tolist()}"
    return Load(seconds, *peaks, sum(held.values()), line)


def load_rounded(folder: Path, logits: Path, plain: Path) -> None:
    """Run the BF16 model, and again with every weight rounded to MXFP4 by the core."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map="cuda")
    save_file({"logits": run(model)}, plain)
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and not any(part in name for part in KEPT):
            for matrix in weight.data if weight.ndim == 3 else [weight.data]:
                matrix.copy_(mxfp4_core.quantize(matrix).dequantize(torch.bfloat16))
    save_file({"logits": run(model)}, logits)


@torch.no_grad()
def run(model: Any) -> torch.Tensor:
    """Return the logits for a fixed prompt."""
    return model(PROMPT.cuda()).logits.float().cpu().contiguous()


def apart(target: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a forked process and return its result; CUDA is untouched in this one."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def body() -> None:
        transformers.logging.disable_progress_bar()
        theirs.send(target(*arguments))

    process = context.Process(target=body)
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise SystemExit("a load failed, see above") from None
    finally:
        process.join()


def read_files(folder: Path) -> None:
    """Bring all files into the page cache."""
    for path in folder.glob("*.safetensors"):
        with open(path, "rb", buffering=0) as file:
            buffer = bytearray(64 << 20)
            while file.readinto(buffer):
                pass


def drop_cache() -> None:
    """Drop the page cache; needs root."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")


def largest_unit(folder: Path) -> int:
    """Return the bytes of the largest tensor of the checkpoint that is quantised."""
    found = [info for path in folder.glob("*.safetensors") for info in read_header(path)[0].values()]
    return max(info.nbytes for info in found if not any(part in info.name for part in KEPT))


def measure(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """Generate, load and compare one model; return what the table and the JSON need."""
    folder = Path(tempfile.mkdtemp(prefix="mxfp4-load-", dir=options.folder))
    try:
        start = time.perf_counter()
        count = apart(generate, kind, options.layers or LAYERS[kind], folder)
        print(
            f"{kind}: wrote {count / 1e9:.2f} B parameters in {time.perf_counter() - start:.1f} s", flush=True
        )
        read_files(folder)
        first = apart(load, folder, True, folder / "ours")
        print(f"{kind}: first MXFP4 load {first.seconds:.2f} s; {first.line}", flush=True)
        times: dict[bool, list[Load]] = {False: [], True: []}
        for _ in range(options.repeats):
            for quantise, found in times.items():
                found.append(apart(load, folder, quantise, None))
                name = "MXFP4" if quantise else "BF16"
                print(f"{kind}: {name} {found[-1].seconds:.2f} s", flush=True)
        cold = {}
        for quantise, name in ((False, "bf16"), (True, "mxfp4")) if options.cold else ():
            drop_cache()
            cold[f"{name}_cold_seconds"] = apart(load, folder, quantise, None).seconds
            print(f"{kind}: cold {name} {cold[f'{name}_cold_seconds']:.2f} s", flush=True)
        apart(load_rounded, folder, folder / "rounded", folder / "plain")
        ours, rounded, plain = (load_file(folder / name)["logits"] for name in ("ours", "rounded", "plain"))
        unit = largest_unit(folder)
        bf16, mxfp4 = (statistics.median(each.seconds for each in times[key]) for key in (False, True))
        model, peak = times[True][0].model, max(each.allocated for each in times[True])
        limit = int(1.05 * model) + unit
        return {
            "model": kind,
            "parameters": count,
            "bf16_seconds": bf16,
            "mxfp4_seconds": mxfp4,
            "first_mxfp4_seconds": first.seconds,
            "ratio": mxfp4 / bf16,
            "bf16_bytes": times[False][0].model,
            "model_bytes": model,
            "unit_bytes": unit,
            "limit_bytes": limit,
            "peak_bytes": peak,
            "reserved_bytes": max(each.reserved for each in times[True]),
            "bf16_peak_bytes": max(each.allocated for each in times[False]),
            "finite": bool(ours.isfinite().all()),
            "error_to_bf16": relative_error(ours, plain),
            "error_to_rounded": relative_error(ours, rounded),
            "memory_met": peak <= limit,
            "time_met": mxfp4 <= 1.2 * bf16,
            "report": times[True][-1].line,
            **cold,
        }
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("dense", "moe"), nargs="+", default=["dense", "moe"])
    parser.add_argument("--layers", type=int, help="fewer make a smaller model")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", help="where the checkpoint is written; the system's temporary folder")
    parser.add_argument("--cold", action="store_true", help="also load with an empty page cache (root)")
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if not apart(has_sm90):
        print("skipped: this benchmark needs an NVIDIA GPU of compute capability 9.0")
        return
    rows = [measure(kind, options) for kind in options.model]
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"\n{date.today()}, {apart(torch.cuda.get_device_name)}, {versions}\n")
    for row in rows:
        print(row["report"])
    print(
        "\n| model | parameters | BF16 s | MXFP4 s | ratio | model GB | unit GB | limit GB | peak GB | reserved GB |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for row in rows:
        sizes = " | ".join(
            f"{row[key] / 1e9:.3f}"
            for key in ("model_bytes", "unit_bytes", "limit_bytes", "peak_bytes", "reserved_bytes")
        )
        times = f"{row['bf16_seconds']:.2f} | {row['mxfp4_seconds']:.2f} | {row['ratio']:.2f}"
        print(f"| {row['model']} | {row['parameters'] / 1e9:.2f} B | {times} | {sizes} |")
    for row in rows:
        met = {key: "met" if row[f"{key}_met"] else "missed" for key in ("memory", "time")}
        print(
            f"{row['model']}: memory {met['memory']}, time {met['time']}; logits finite {row['finite']}, relative "
            f"error {row['error_to_bf16']:.3g} to BF16, {row['error_to_rounded']:.2g} to weights rounded by the core"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
