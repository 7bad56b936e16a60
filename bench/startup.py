"""How long do the commands take that read no weights, from their start to their end?

Usage: python bench/startup.py [--runs 7]

Each command runs as a process of its own, with bytecode as pip leaves it, and the least time counts: a start does the
same work every time, and what else the machine does only adds to it. The large checkpoint has the headers of
Qwen3-30B-A3B in files that take no space on disk. `--models none` goes by headers and names alone; without it the
provider of the library that owns the model is asked: its table where that knows the model, else the library itself, as
for a model with one more tensor.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SMALL = ROOT / "models" / "qwen3-tiny"
LAYERS, EXPERTS, HIDDEN, INTERMEDIATE, VOCABULARY = 48, 128, 2048, 768, 151936

# Runs the command line and says on stderr whether it needed torch.
CODE = (
    "import sys\n"
    "from mxfp4_core.cli import main\n"
    "try:\n"
    "    main(sys.argv[1:])\n"
    "finally:\n"
    "    print('torch' if 'torch' in sys.modules else 'no torch', file=sys.stderr)\n"
)


def tensors() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for layer in range(LAYERS):
        block = f"model.layers.{layer}."
        for name, rows in (("q_proj", 4096), ("k_proj", 512), ("v_proj", 512)):
            yield f"{block}self_attn.{name}.weight", (rows, HIDDEN)
        yield f"{block}self_attn.o_proj.weight", (HIDDEN, 4096)
        yield f"{block}mlp.gate.weight", (EXPERTS, HIDDEN)
        for expert in range(EXPERTS):
            for name in ("gate_proj", "up_proj"):
                yield f"{block}mlp.experts.{expert}.{name}.weight", (INTERMEDIATE, HIDDEN)
            yield f"{block}mlp.experts.{expert}.down_proj.weight", (HIDDEN, INTERMEDIATE)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{block}{name}.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)


def write_headers(folder: Path, *more: tuple[str, tuple[int, ...]]) -> tuple[int, int]:
    """Write a checkpoint whose data are holes, with these tensors more; return the number of its tensors and bytes."""
    table, offset = {}, 0
    for name, shape in (*tensors(), *more):
        size = 2 * math.prod(shape)
        table[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    header = json.dumps(table).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + offset)
    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": HIDDEN,
        "moe_intermediate_size": INTERMEDIATE,
        "num_experts": EXPERTS,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "tie_word_embeddings": False,
        "vocab_size": VOCABULARY,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return len(table), offset


def least(arguments: list[str], runs: int) -> tuple[float, float, bool]:
    """Return the least wall and processor time of a command in seconds, and whether it imported torch."""
    times, spent, said = [], [], ""
    # What pip installs has its bytecode beside it, whatever this machine is told about other code.
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    for _ in range(runs):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, check=False, env=env
        )
        times.append(time.perf_counter() - start)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        said = done.stderr.strip().splitlines()[-1]
        if done.returncode or said not in ("torch", "no torch"):
            raise SystemExit(f"mxfp4 {' '.join(arguments)} failed:\n{done.stderr}")
    return min(times), min(spent), said == "torch"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as name:
        large, odd = Path(name) / "large", Path(name) / "odd"
        large.mkdir()
        odd.mkdir()
        count, size = write_headers(large)
        write_headers(odd, ("model.extra.weight", (2,)))
        commands = {
            "`mxfp4 --help`": ["--help"],
            "`mxfp4 plan`": ["plan", str(SMALL)],
            f"the same, {count} tensors of {size / 1e9:.0f} GB": ["plan", str(large)],
            "the same, and one that no table knows": ["plan", str(odd)],
            "`mxfp4 plan --models none`": ["plan", str(SMALL), "--models", "none"],
            "`mxfp4 doctor`": ["doctor"],
            "`mxfp4 plan --models none --backend reference`": [
                *("plan", str(SMALL), "--models", "none", "--backend", "reference")
            ],
        }
        print("| command | seconds | of a processor | imports torch |\n|---|--:|--:|---|")
        for label, arguments in commands.items():
            seconds, spent, torch = least(arguments, runs)
            print(f"| {label} | {seconds:.2f} | {spent:.2f} | {'yes' if torch else 'no'} |", flush=True)
    print(
        f"\nMeasured on {date.today()} with `python bench/startup.py --runs {runs}`: {os.cpu_count()} processors, "
        f"{platform.machine()}; Python {platform.python_version()}, torch {version('torch')}."
    )


if __name__ == "__main__":
    main()
