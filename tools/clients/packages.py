"""The packages that dialects are for, loaded through transformers: each gives the values that `dequantize` gives."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mxfp4_core.checkpoint import open_checkpoint
from mxfp4_core.jobs import convert_checkpoint, dequantize_checkpoint


def tiny_llama(folder: Path) -> Path:
    """Save a Llama of two layers whose sizes are whole blocks of 128."""
    import torch
    import transformers

    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=64, max_position_embeddings=64,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def loaded(path: Path, **settings: Any) -> dict[str, Any]:
    """Load a folder through transformers, and return the values of the linears in its own words."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, **settings)
    found = {}
    for name, module in model.named_modules():
        if not name.endswith("_proj"):
            continue
        weight = getattr(module, "weight", None)
        if hasattr(weight, "dequantize") and type(weight.data).__name__ != "Tensor":
            weight = weight.dequantize(torch.bfloat16)
        elif hasattr(module, "dequant_weight_online"):
            weight = module.dequant_weight_online()
        elif hasattr(module, "weight_quantizer"):  # Quark: unpacks and dequantises when it runs
            weight = module(torch.eye(module.in_features, dtype=torch.bfloat16)).T
        found[f"{name}.weight"] = weight.detach().to(torch.bfloat16)
    return found


def clients() -> dict[str, tuple[str, tuple[str, ...], Callable[[Path], dict[str, Any]]]]:
    """Return the package that reads each dialect, and how."""
    import transformers

    ct = transformers.CompressedTensorsConfig(dequantize=True)
    fp8 = transformers.FineGrainedFP8Config(dequantize=True)
    return {
        "compressed-tensors": ("compressed-tensors", (), lambda path: loaded(path, quantization_config=ct)),
        "nvfp4": ("compressed-tensors", (), lambda path: loaded(path, quantization_config=ct)),
        "fp8": ("transformers", (), lambda path: loaded(path, quantization_config=fp8)),
        "torchao": ("torchao", (), loaded),
        "torchao-plain": ("torchao", (), loaded),
        "auto-round": ("auto-round", (), lambda path: loaded(path, device_map="cpu")),
        "quark": ("amd-quark", (), loaded),
        "gguf": ("gguf", (), lambda path: loaded(path, gguf_file="model.gguf")),
    }


def check(folder: Path) -> list[tuple[str, str]]:
    """Load each dialect with its own package, and compare every weight with what `dequantize` makes of it.

    Returns:
        Dialect, and the packages that read it with their versions.
    """
    import torch

    from mxfp4_core import Mxfp4Config
    from mxfp4_core.jobs import quantize_checkpoint

    source = tiny_llama(folder / "llama")
    quantize_checkpoint(
        source, folder / "native", Mxfp4Config(dialect="mxfp4-core", activation="mxfp4"), models="none"
    )
    dequantize_checkpoint(folder / "native", folder / "plain")
    plain = open_checkpoint(folder / "plain")
    found = []
    for name, (package, _, load) in clients().items():
        try:
            told = f"{package} {version(package)}, transformers {version('transformers')}"
        except PackageNotFoundError:
            continue
        activation = "none" if name == "quark" else None
        convert_checkpoint(folder / "native", folder / name, name, activation=activation)
        values = load(folder / name)
        wanted = [weight for weight in plain.tensors if weight.endswith("_proj.weight")]
        differing = [weight for weight in wanted if not torch.equal(values[weight], plain.load(weight))]
        if differing or len(values) != len(wanted):
            raise SystemExit(f"{name}: {package} reads other values of {differing or sorted(values)}")
        told = f"transformers {version('transformers')}" if package == "transformers" else told
        found.append((name, told))
        print(f"{name}: {len(wanted)} weights with the same values in {told}", flush=True)
    check_mixed(source, folder)
    check_experts(folder)
    return found


def check_mixed(source: Path, folder: Path) -> None:
    """Load MXFP4 beside MXFP8 in compressed-tensors, and decompress each linear by the scheme that it found for it."""
    import torch
    import transformers
    from compressed_tensors.compressors import BaseCompressor

    from mxfp4_core import Mxfp4Config
    from mxfp4_core.jobs import quantize_checkpoint

    wide = {"pattern": "mlp.down_proj", "format": "mxfp8"}
    asked = Mxfp4Config(dialect="compressed-tensors", overrides=[wide])
    quantize_checkpoint(source, folder / "mixed", asked, models="none")
    dequantize_checkpoint(folder / "mixed", folder / "mixed-plain")
    plain = open_checkpoint(folder / "mixed-plain")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "mixed", dtype=torch.bfloat16)
    linears = {name: module for name, module in model.named_modules() if name.endswith("_proj")}
    kinds = set()
    for name, module in linears.items():
        scheme = module.quantization_scheme
        kinds.add(scheme.format)
        stored = {key: tensor.data for key, tensor in module.named_parameters()}
        values = BaseCompressor.get_value_from_registry(scheme.format).decompress(stored, scheme)["weight"]
        if not torch.equal(values.to(torch.bfloat16), plain.load(f"{name}.weight")):
            raise SystemExit(f"compressed-tensors reads other values of {name} in a mixed folder")
    if len(kinds) != 2:
        raise SystemExit(f"compressed-tensors sees the formats {sorted(kinds)} in a mixed folder")
    print(f"mixed: {len(linears)} weights with the same values, {' and '.join(sorted(kinds))}", flush=True)


def check_experts(folder: Path) -> None:
    """Load experts in FP8, which are written one by one, in transformers, which stacks them."""
    import torch
    import transformers

    from mxfp4_core import Mxfp4Config
    from mxfp4_core.jobs import quantize_checkpoint

    torch.manual_seed(4)
    config = transformers.Qwen3MoeConfig(
        hidden_size=128, intermediate_size=256, moe_intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, num_experts=4, num_experts_per_tok=2, vocab_size=64, head_dim=32,
    )  # fmt: skip
    transformers.Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "experts")
    quantize_checkpoint(
        folder / "experts", folder / "experts-native", Mxfp4Config(dialect="mxfp4-core"), models="none"
    )
    dequantize_checkpoint(folder / "experts-native", folder / "experts-plain")
    convert_checkpoint(folder / "experts-native", folder / "experts-fp8", "fp8")
    models = transformers.AutoModelForCausalLM
    wide = transformers.FineGrainedFP8Config(dequantize=True)
    made = models.from_pretrained(folder / "experts-fp8", dtype=torch.bfloat16, quantization_config=wide)
    states = made.state_dict(), models.from_pretrained(folder / "experts-plain").state_dict()
    if differing := [name for name in states[1] if not torch.equal(states[0][name], states[1][name])]:
        raise SystemExit(f"transformers reads other values of {differing} in FP8")
    print(f"experts in fp8: {len(states[1])} tensors with the same values in transformers", flush=True)


__all__ = ["check"]
