"""Models of random weights, made on a GPU: in BF16, and the same in MXFP4 as engines read it by themselves."""

from __future__ import annotations

import json
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mxfp4_core import Mxfp4Config, quantize
from mxfp4_core.arithmetic import quantize_triton
from mxfp4_core.jobs import quantize_checkpoint
from serving import pieces
from serving.sizes import Shapes, Written, config_of, is_quantised, shapes_of, written

_NAMES = {torch.bfloat16: "BF16", torch.uint8: "U8"}


def prepare(name: str, options: Any) -> Written:
    """Write a model in a process of its own, say how long it took, and return it; end everything where that fails.

    Args:
        name: one of `MODELS`.
        options: ``layers``, ``folder``, ``device``.
    """
    work = partial(write, name, options.layers, options.folder, options.device)
    found = pieces.apart(work, options.folder / f"{name}-made", 300)
    if "error" in found:
        raise SystemExit("\n".join([f"{name} could not be made", *found["error"]]))
    one = written(name, options.layers, options.folder)
    count = one.parameters / 1e9
    print(f"    {name}: {count:.2f} billion parameters, made in {found['seconds']} s", flush=True)
    return one


def write(name: str, layers: int, folder: Path, device: str, keep: Any) -> None:
    """Write a model in both forms, a file for each layer; nothing where it is there.

    Args:
        name: one of `MODELS`.
        layers: how many; all if 0.
        folder: for the folders of the model.
        device: where weights are made and quantised.
        keep: not used: there is no answer.
    """
    config, places = config_of(name, layers), written(name, layers, folder)
    if (places.stored / "config.json").exists():
        return
    for each in (places.source, places.stored):
        each.mkdir(parents=True, exist_ok=True)
    described = {**config, "quantization_config": description(config)}
    with ThreadPoolExecutor(4) as writers:  # files are written while the next layers are made
        waiting: list[Future[None]] = []
        for number, one in enumerate(shapes_of(config)):
            while len(waiting) > 6:
                waiting.pop(0).result()
            made = random(one, device, seed=number)
            file = f"model-{number:05}.safetensors"
            waiting += [
                writers.submit(save, places.source / file, made),
                writers.submit(save, places.stored / file, in_mxfp4(made)),
            ]
        for each in waiting:
            each.result()
    for place, what in ((places.source, config), (places.stored, described)):
        index = {key: file.name for file in sorted(place.glob("*.safetensors")) for key in names_in(file)}
        (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
        (place / "config.json").write_text(json.dumps(what))


def random(shapes: Shapes, device: str, seed: int) -> dict[str, torch.Tensor]:
    """Return weights whose products keep the size of their input, and ones for norms."""
    made = torch.Generator(device).manual_seed(seed)
    total = sum(torch.Size(shape).numel() for shape in shapes.values())
    flat, start, tensors = torch.empty(total, dtype=torch.bfloat16, device=device), 0, {}
    flat.normal_(generator=made)
    for key, shape in shapes.items():
        size = torch.Size(shape).numel()
        view = flat[start : start + size].view(shape)
        tensors[key] = view.mul_(shape[-1] ** -0.5) if len(shape) > 1 else view.fill_(1)
        start += size
    return tensors


def in_mxfp4(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of a layer under the names of compressed-tensors, quantised as the adapters do it."""
    profile, found = Mxfp4Config().resolved_profile(), {}
    for key, tensor in tensors.items():
        if not is_quantised(key):
            found[key] = tensor
        elif tensor.is_cuda:
            found[f"{key}_packed"], found[f"{key}_scale"] = quantize_triton(tensor, profile)
        else:
            parts = quantize(tensor, profile=profile).parts
            found[f"{key}_packed"], found[f"{key}_scale"] = parts["codes"], parts["scales"]
    return found


def save(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a file of safetensors straight from the device: each tensor into its place in the mapped file."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for key, tensor in tensors.items():
        table[key] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, start + tensor.nbytes],
        }
        start += tensor.nbytes
    head = json.dumps(table).encode()
    head += b" " * (-len(head) % 8)
    head = len(head).to_bytes(8, "little") + head
    mapped = torch.from_file(str(path), shared=True, size=len(head) + start, dtype=torch.uint8)
    mapped[: len(head)] = torch.frombuffer(bytearray(head), dtype=torch.uint8)
    flat = torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in tensors.values()])
    mapped[len(head) :].copy_(flat)


def names_in(file: Path) -> list[str]:
    """Return the names of the tensors in a file."""
    with file.open("rb") as data:
        table = json.loads(data.read(int.from_bytes(data.read(8), "little")))
    return [key for key in table if key != "__metadata__"]


def description(config: dict[str, Any]) -> dict[str, Any]:
    """Return the ``quantization_config`` that ``mxfp4 quantize`` writes for a model of these layers."""
    tiny = {**config, "hidden_size": 64, "intermediate_size": 64, "vocab_size": 64, "head_dim": 32}
    tiny |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    if "num_experts" in config:
        tiny |= {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32}
    with tempfile.TemporaryDirectory() as place:
        source, target = Path(place) / "source", Path(place) / "target"
        source.mkdir()
        tensors = {
            key: torch.ones(shape, dtype=torch.bfloat16)
            for one in shapes_of(tiny)
            for key, shape in one.items()
        }
        save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
        (source / "config.json").write_text(json.dumps(tiny))
        quantize_checkpoint(source, target, Mxfp4Config(dialect="compressed-tensors"), models="none")
        found: dict[str, Any] = json.loads((target / "config.json").read_text())["quantization_config"]
    return found
