"""What does one call of a layer cost the host, beside torch's own layers?

Usage: python bench/hopper_calls.py [--calls 20] [--repeats 100]

So few calls follow each other that the driver queues all of their launches, so the host never waits for the device. The
median over the repeats counts, of the mean over the calls of one. Linears are 4096 x 4096. Experts are those of
Qwen3-30B-A3B, against the module that transformers builds for it, with its default way to compute them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version

import torch
from hopper import timing
from torch import nn

from mxfp4_core import Mxfp4Config
from mxfp4_core.modules import quantize_

DEVICE, DTYPE = "cuda", torch.bfloat16
N = K = 4096


def microseconds(call: Callable[[], object], calls: int, repeats: int) -> float:
    """Return what one call takes the host: the median of means."""
    for _ in range(20):
        call()
    found = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        found.append((time.perf_counter() - start) / calls)
    torch.cuda.synchronize()
    return statistics.median(found) * 1e6


def linear() -> nn.Module:
    """Return a model that is one linear."""
    return nn.Sequential(nn.Linear(K, N, bias=False, device=DEVICE, dtype=DTYPE))


def experts() -> nn.Module:
    """Return one layer of Qwen3-30B-A3B, with random weights."""
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    config = Qwen3MoeConfig(
        hidden_size=2048, moe_intermediate_size=768, num_experts=128, num_experts_per_tok=8, num_hidden_layers=1,
        num_attention_heads=32, num_key_value_heads=4, head_dim=128, vocab_size=1024, norm_topk_prob=True,
    )  # fmt: skip
    with torch.device(DEVICE):
        return AutoModelForCausalLM.from_config(config, dtype=DTYPE).eval()


def arguments_of_experts(m: int) -> tuple[torch.Tensor, ...]:
    """Return tokens and a router's choice as transformers gives it."""
    ids = torch.stack([torch.randperm(128, device=DEVICE)[:8] for _ in range(m)])
    return torch.randn(m, 2048, device=DEVICE, dtype=DTYPE), ids, torch.rand(m, 8, device=DEVICE, dtype=DTYPE)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=100)
    options = parser.parse_args()
    timing.require_sm90()
    config = Mxfp4Config(backend="cuda-marlin")
    print("| layer | tokens | BF16 us | MXFP4 us | ratio |\n|---|--:|--:|--:|--:|")
    with torch.no_grad():
        model, whole = linear(), experts()
        torch_linear, layer = model[0], whole.model.layers[0].mlp
        torch_experts = layer.experts
        inputs = {m: (torch.randn(m, K, device=DEVICE, dtype=DTYPE),) for m in (1, 8)}
        routed = {m: arguments_of_experts(m) for m in (1, 8)}
        theirs = {
            (label, m): microseconds(lambda run=run, given=given: run(*given), options.calls, options.repeats)
            for label, run, each in (("linear", torch_linear, inputs), ("experts", torch_experts, routed))
            for m, given in each.items()
        }
        quantize_(model, config)
        quantize_(whole, config)
        for label, run, each in (("linear", model[0], inputs), ("experts", layer.experts, routed)):
            for m, given in each.items():
                ours = microseconds(lambda run=run, given=given: run(*given), options.calls, options.repeats)
                before = theirs[label, m]
                print(f"| {label} | {m} | {before:.1f} | {ours:.1f} | {ours / before:.2f} |", flush=True)
    print(
        f"\nMeasured on {date.today()} with `python bench/hopper_calls.py`: {torch.cuda.get_device_name()}, torch "
        f"{torch.__version__}, transformers {version('transformers')}."
    )


if __name__ == "__main__":
    main()
