"""Start vLLM's engine, once for each scenario, and write down what it says and holds.

A scenario (see ``scenarios``) has ``model``, ``arguments`` of ``vllm.LLM``, ``prompts`` as token ids, ``tokens`` to
generate, and ``parts``, a file for the bytes of all MXFP4 modules of each rank. It may have ``again``, pairs of a
folder whose weights are loaded afterwards and the way, ``load_weights`` (of what has ``sent`` in its name) or vLLM's
own ``reload_weights``; ``adapter``, a folder of LoRA; and ``watch``, to note the memory that loading takes.
"""

from __future__ import annotations

import os
import threading
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault(
    "VLLM_ENABLE_V1_MULTIPROCESSING", "0"
)  # the engine lives in the process of its scenario
os.environ.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")  # functions go to workers
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from safetensors.torch import save_file
from scenarios import serve

from mxfp4_core.modules import Mxfp4Module
from mxfp4_core.testing import held_by


def modules(model: Any) -> list[tuple[str, Mxfp4Module]]:
    """Return the MXFP4 modules behind the layers of vLLM, or behind their kernels, with the names of the layers."""
    found = []
    for path, layer in model.named_modules():
        scheme = getattr(layer, "scheme", None)  # of a format of vLLM's own
        for holder in (getattr(layer, "quant_method", None), *getattr(scheme, "__dict__", {}).values()):
            module = getattr(holder, "module", None)
            if isinstance(module, Mxfp4Module):
                found.append((path.removesuffix(".routed_experts"), module))
    return found


def memory(model: Any) -> list[int]:
    """Return the addresses of what the MXFP4 modules compute with."""
    return [buffer.data_ptr() for _, module in modules(model) for buffer in module.buffers()]


def load_again(model: Any, folder: str, sent: str) -> None:
    """Load what is MXFP4: on a CPU vLLM packs other linears for good, and cannot load them a second time."""
    from safetensors.torch import load_file

    for file in sorted(Path(folder).glob("*.safetensors")):
        model.load_weights((name, each) for name, each in load_file(file).items() if sent in name)


def save(model: Any, path: str) -> None:
    from vllm.distributed import get_tensor_model_parallel_rank

    save_file(held_by(modules(model)), path.format(rank=get_tensor_model_parallel_rank()))


def watch_loading(result: dict[str, Any]) -> None:
    """Note how much anonymous memory the weights take when they are loaded, and how much at most while they are."""
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    from mxfp4_core import quantize

    load, done = DefaultModelLoader.load_weights, threading.Event()
    seen: list[int] = []

    def look() -> None:
        while not done.wait(0.002):
            seen.append(anonymous())

    def loading(self: Any, *args: Any, **kwargs: Any) -> Any:
        # It brings its compiler, which takes memory of its own; vLLM 0.32 does not start where that is there before.
        quantize(torch.ones(32, 64, dtype=torch.bfloat16))
        before, thread = anonymous(), threading.Thread(target=look)
        thread.start()
        try:
            return load(self, *args, **kwargs)
        finally:
            done.set()
            thread.join()
            result.update(added=anonymous() - before, peak=max(seen) - before)

    DefaultModelLoader.load_weights = loading


def anonymous() -> int:
    """Return the bytes of this process that are no mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


def said(llm: Any, prompts: list[list[int]], tokens: int, adapter: str = "") -> list[dict[str, Any]]:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    how = SamplingParams(temperature=0, max_tokens=tokens, logprobs=20, detokenize=False, ignore_eos=True)
    lora = LoRARequest("adapter", 1, adapter) if adapter else None
    asked = [{"prompt_token_ids": each} for each in prompts]
    out = llm.generate(asked, how, use_tqdm=False, lora_request=lora)
    return [
        {
            "tokens": list(each.outputs[0].token_ids),
            "first": {str(token): one.logprob for token, one in each.outputs[0].logprobs[0].items()},
        }
        for each in out
    ]


def run(scenario: dict[str, Any]) -> dict[str, Any]:
    from vllm import LLM

    defaults = {
        "skip_tokenizer_init": True,
        "enforce_eager": True,
        "dtype": "bfloat16",
        "max_model_len": 256,
        "kv_cache_memory_bytes": 32 << 20,
        "disable_log_stats": True,
    }
    result: dict[str, Any] = {}
    if scenario.get("watch"):
        watch_loading(result)
    llm = LLM(model=scenario["model"], **{**defaults, **scenario.get("arguments", {})})
    result["outputs"] = said(llm, scenario["prompts"], scenario.get("tokens", 4))
    if "adapter" in scenario:
        result["adapted"] = said(llm, scenario["prompts"], scenario.get("tokens", 4), scenario["adapter"])
    llm.apply_model(partial(save, path=scenario["parts"]))
    result["again"], before = [], llm.apply_model(memory)
    for folder, how in scenario.get("again", ()):
        if how == "reload_weights":
            llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})
        else:
            llm.apply_model(partial(load_again, folder=folder, sent=scenario["sent"]))
        llm.reset_prefix_cache()
        result["again"].append(said(llm, scenario["prompts"], scenario.get("tokens", 4)))
    result["moved"] = llm.apply_model(memory) != before
    return result


if __name__ == "__main__":
    import vllm.entrypoints.llm  # noqa: F401

    serve(run)
