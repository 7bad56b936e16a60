"""Run by two processes at once (``test_parallel.py``): models spread over them, against the whole model in each."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny import DEVICE, PROMPT, settings
from torch import distributed
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

from mxfp4_core.errors import ConfigError, ShapeError
from mxfp4_core.modules import Mxfp4Experts, Mxfp4Linear, Mxfp4Module
from mxfp4_transformers import refit

try:
    import peft
except ImportError:
    peft = None
warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)


def load(path: Path, config: Any = None, **given: Any) -> Any:
    if config is not None:
        given["quantization_config"] = config
    if "distributed_config" not in given and DEVICE != "cpu":
        given["device_map"] = f"cuda:{distributed.get_rank()}"
    return AutoModelForCausalLM.from_pretrained(path, **given)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(PROMPT.to(model.device)).logits.float().cpu()


def weights(model: Any) -> dict[str, dict[str, torch.Tensor]]:
    return {
        f"{path}.{name}": {part: each.cpu() for part, each in module.canonical(matrix).parts.items()}
        for path, module in model.named_modules()
        if isinstance(module, Mxfp4Module)
        for matrix, name in module.matrices.items()
    }


def gathered(own: torch.Tensor) -> list[torch.Tensor]:
    place = own.to(DEVICE if DEVICE == "cpu" else f"cuda:{distributed.get_rank()}").contiguous()
    found = [torch.empty_like(place) for _ in range(distributed.get_world_size())]
    distributed.all_gather(found, place)
    return [each.cpu() for each in found]


def check_bytes(whole: Any, mine: Any) -> int:
    """Check that the parts of all processes, put together, are the bytes of the whole; return how many were cut."""
    cut = 0
    there, here = weights(whole), weights(mine)
    assert there.keys() == here.keys()
    for name, parts in there.items():
        for part, full in parts.items():
            own = here[name][part]
            if own.shape == full.shape:
                assert torch.equal(own, full), name
                continue
            pieces = gathered(own)
            axis = next(i for i, (a, b) in enumerate(zip(own.shape, full.shape, strict=True)) if a != b)
            if name.endswith("gate_up_proj") and axis == 1:  # the halves of gate and of up
                halves = [each.chunk(2, 1) for each in pieces]
                pieces = [half for side in zip(*halves, strict=True) for half in side]
            assert torch.equal(torch.cat(pieces, axis), full), f"{name} {part}"
            cut += 1
    return cut


def bound(model: Any) -> float:
    """Return the relative error that cutting may make: float32 sums in another order, a few for each layer."""
    rounding = 2.0**-23 if model.dtype == torch.float32 else 2.0**-8
    return rounding * 8 * model.config.num_hidden_layers


def check(path: Path, config: Any, asked: Any, dtype: torch.dtype) -> str:
    given = {"dtype": dtype}
    whole = load(path, config(), **given)
    mine = load(path, config(), distributed_config=asked(), **given)
    cut = check_bytes(whole, mine)
    assert cut, "nothing was cut"
    a, b = logits(whole), logits(mine)
    error = float((a - b).norm() / a.norm())
    assert error < bound(whole), f"{path}: {error:.2e} > {bound(whole):.2e}"
    if dtype == torch.float32:
        a, b = gradient(whole), gradient(mine)
        error = max(error, float((a - b).norm() / a.norm()))
        assert error < 4 * bound(whole), f"{path}: gradients differ by {error:.2e}"
    kinds = {type(each) for each in mine.modules()} & {Mxfp4Linear, Mxfp4Experts}
    return f"{path.name}: {cut} parts cut, {len(kinds)} kinds, relative error {error:.1e}"


def gradient(model: Any) -> torch.Tensor:
    x = model.get_input_embeddings()(PROMPT.to(model.device)).detach().requires_grad_()
    out = model(inputs_embeds=x).logits
    out.backward(torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape).to(out.dtype))
    assert x.grad is not None
    return x.grad.float().cpu()


def refused(root: Path, config: Any) -> list[str]:
    """Check what cannot be split, and what a model that is split cannot do."""
    asked = {"distributed_config": DistributedConfig(tp_plan="auto")}
    try:
        load(root / "odd", config(), **asked)
    except ShapeError as error:
        lines = [f"refused: {error.what}"]
    model = load(root / "llama", config(), **asked)
    for act in (lambda: model.save_pretrained(root / "never"), model.dequantize, lambda: refit(model, {})):
        try:
            act()
        except ConfigError as error:
            lines.append(f"refused: {error.what}")
    assert not (root / "never" / "model.safetensors").exists()
    linear = model.model.layers[0].self_attn.o_proj
    assert tuple(linear.weight.shape) == (linear.out_features, linear.in_features)
    try:
        linear.weight.sum()
    except ConfigError as error:
        lines.append(f"refused: {error.what}")
    return lines


def full(tensor: Any) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def adapted(path: Path, config: Any, dtype: torch.dtype) -> str:
    """Check that an adapter of the whole model does the same above the shared one, is trained, and is saved."""
    torch.manual_seed(0)
    lora = peft.LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
    whole = peft.get_peft_model(load(path, config(), dtype=dtype), lora)
    folder = path / "adapter"
    if distributed.get_rank() == 0:
        whole.save_pretrained(folder)
    distributed.barrier()
    asked = DistributedConfig(tp_plan="auto")
    mine = load(path, config(), dtype=dtype, distributed_config=asked)
    mine = peft.PeftModel.from_pretrained(mine, folder, is_trainable=True)
    a, b = logits(whole), logits(mine)
    error = float((a - b).norm() / a.norm())
    assert error < bound(whole), f"{path}: {error:.2e} > {bound(whole):.2e}"
    for model in (whole, mine):
        ids = PROMPT.to(model.device)
        model(ids, labels=ids).loss.backward()
    theirs = {name: each.grad for name, each in whole.named_parameters() if each.requires_grad}
    found = {name: each.grad for name, each in mine.named_parameters() if each.requires_grad}
    assert found.keys() == theirs.keys() and found
    for name, grad in theirs.items():
        own = full(found[name])
        worst = float((own - grad).norm() / grad.norm())
        assert worst < 8 * bound(whole), f"{name}: gradients differ by {worst:.2e}"
    states = [peft.get_peft_model_state_dict(each) for each in (whole, mine)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(full(states[1][name]), each) for name, each in states[0].items())
    return f"adapter: {len(found)} trained, relative error {error:.1e}"


def main(root: Path, backend: str, dtype: torch.dtype) -> None:
    def config() -> Any:
        return settings(backend=backend)

    expert = (
        {"ep_size": 2, "tp_size": 2}
        if "ep_size" in DistributedConfig.__dataclass_fields__
        else {"tp_size": 2, "enable_expert_parallel": True}
    )
    lines = []
    for name in ("llama", "qwen3_moe", "mixtral"):
        lines.append(check(root / name, config, lambda: DistributedConfig(tp_plan="auto"), dtype))
    for name in ("qwen3_moe", "gpt_oss"):
        lines.append("experts " + check(root / name, config, lambda: DistributedConfig(**expert), dtype))
    for name in ("llama-native", "qwen3_moe-native"):
        lines.append(check(root / name, config, lambda: DistributedConfig(tp_plan="auto"), dtype))
    lines += refused(root, config)
    if peft is not None:
        lines.append(adapted(root / "llama", config, dtype))
    if distributed.get_rank() == 0:
        print("\n".join(lines))


if __name__ == "__main__":
    distributed.init_process_group("gloo" if DEVICE == "cpu" else "nccl")
    if DEVICE != "cpu":
        torch.cuda.set_device(distributed.get_rank())
    try:
        main(Path(sys.argv[1]), sys.argv[2], getattr(torch, sys.argv[3]))
    finally:
        distributed.destroy_process_group()
