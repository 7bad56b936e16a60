"""How much memory does loading onto AMD's kernels take, beside what SGLang does? Peaks of a process, as Markdown.

    python bench/amd_memory.py

Ours: ``mxfp4_transformers.from_pretrained`` onto the emulated backend ``rocm``, laid out as the device wants weights.
SGLang's: the same tensors through the steps of its loader (0.5.23, ``quark_w4a4_mxfp4.py``, ``quark_w4a4_mxfp4_moe``),
with our quantizer in the place of AITER's: a dense weight is quantised whole, and shuffled for ``gemm_a4w4``; experts
are collected in a BF16 stack, quantised one by one, then shuffled, which copies the stack. Both run on a CPU whose
anonymous memory is watched, with an allocator that gives back what is freed; files are mapped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
SUPPORT = ROOT / "packages" / "mxfp4-rocm" / "tests" / "support"
WAYS = ("ours", "sglang")
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
SIZES: dict[str, dict[str, Any]] = {
    "dense, 4 layers of 2048 x 6144": {"num_hidden_layers": 4, "hidden_size": 2048, "intermediate_size": 6144},
    "MoE, 2 layers of 32 experts of 1024 x 512": {
        "num_hidden_layers": 2, "hidden_size": 1024, "intermediate_size": 1024, "moe_intermediate_size": 512,
        "num_experts": 32, "num_experts_per_tok": 4,
    },
}  # fmt: skip
COMMON = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 512}


def anonymous() -> int:
    """Return RssAnon of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))


class Watch(threading.Thread):
    """Note the peak of the anonymous memory every half millisecond."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.done = threading.Event()
        self.first = self.peak = anonymous()

    def run(self) -> None:
        """Look until it is done."""
        while not self.done.wait(0.0005):
            self.peak = max(self.peak, anonymous())


def ours(folder: Path) -> Any:
    """Load through the adapter onto the emulated backend."""
    import mxfp4_transformers

    config = mxfp4_transformers.Mxfp4Config(backend="rocm-emulated", activation="auto")
    return mxfp4_transformers.from_pretrained(folder, config=config)


def sglang(folder: Path) -> Any:
    """Do with each tensor what SGLang's loader does; return everything that it keeps."""
    from safetensors import safe_open

    from mxfp4_core import quantize
    from mxfp4_rocm import shuffle_weight, swizzle_scales

    kept: list[Any] = []
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
        stacks: dict[str, dict[int, dict[str, str]]] = {}
        for name in sorted(names):
            if ".experts." in name:
                layer, _, rest = name.partition(".experts.")
                number, part, _ = rest.split(".")
                stacks.setdefault(layer, {}).setdefault(int(number), {})[part] = name
            elif name.endswith("proj.weight"):
                whole = file.get_tensor(name).clone()  # on the device
                made = quantize(whole)
                del whole
                kept += [shuffle_weight(made.codes), swizzle_scales(made.scales)]
                del made
            else:
                kept.append(file.get_tensor(name).clone())
        for experts in stacks.values():
            for parts in (("gate_proj", "up_proj"), ("down_proj",)):
                stack = torch.stack(
                    [torch.cat([file.get_tensor(one[p]) for p in parts]) for one in experts.values()]
                )
                codes = torch.empty((*stack.shape[:2], stack.shape[2] // 2), dtype=torch.uint8)
                scales = torch.empty((*stack.shape[:2], stack.shape[2] // 32), dtype=torch.uint8)
                for index, one in enumerate(stack):
                    made = quantize(one)
                    codes[index], scales[index] = made.codes, made.scales
                del stack, one, made
                kept += [shuffle_weight(codes), swizzle_scales(scales.flatten(0, 1))]
                del codes, scales
    return kept


def child(way: str, small: str, folder: str) -> None:
    """Load a small model first, so that imports and compiled kernels do not count; print the peak and the result."""
    sys.path.insert(0, str(SUPPORT))
    from rocm_emulated import aiter, registered

    torch.set_num_threads(1)
    with aiter("wheel"), registered():
        load = {"ours": ours, "sglang": sglang}[way]
        load(Path(small))
        watch = Watch()
        watch.start()
        result = load(Path(folder))
        watch.done.set()
        watch.join()
    parts = result if isinstance(result, list) else [*result.parameters(), *result.buffers()]
    held = sum(
        {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in parts}.values()
    )
    print(json.dumps({"peak": watch.peak - watch.first, "result": held}))


def save(folder: Path, sizes: dict[str, Any], layers: int | None = None) -> Path:
    """Write a random model in BF16."""
    import transformers

    sizes = sizes | COMMON | ({} if layers is None else {"num_hidden_layers": layers})
    kind = transformers.Qwen3MoeConfig if "num_experts" in sizes else transformers.Qwen3Config
    model = transformers.AutoModelForCausalLM.from_config(kind(**sizes), dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="100GB")
    return folder


def main() -> None:
    print("| model | BF16 MiB | way | result MiB | peak MiB | above the result |\n|---|--:|---|--:|--:|--:|")
    for name, sizes in SIZES.items():
        with tempfile.TemporaryDirectory() as place:
            small, whole = save(Path(place) / "small", sizes, 1), save(Path(place) / "whole", sizes)
            size = (whole / "model.safetensors").stat().st_size
            for way in WAYS:
                command = [sys.executable, __file__, way, str(small), str(whole)]
                done = subprocess.run(
                    command, env=os.environ | GIVES_BACK, capture_output=True, text=True, check=True
                )
                found = json.loads(done.stdout.splitlines()[-1])
                mib = [found["result"] / 2**20, found["peak"] / 2**20]
                cells = [
                    name,
                    f"{size / 2**20:.0f}",
                    way,
                    *(f"{one:.0f}" for one in mib),
                    f"{mib[1] - mib[0]:.0f}",
                ]
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        child(*sys.argv[1:])
    else:
        main()
