"""One kit for all engines: the same checkpoints, prompts, reference, tolerance and bytes.

An engine has an environment of its own and a script ``<engine>_run.py``, which runs scenarios there and writes down
what the engine says and holds. What that must be is said here, by transformers and the core.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mxfp4_core import quantize

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MODELS = {"dense": ROOT / "models" / "qwen3-tiny", "experts": ROOT / "models" / "qwen3-moe-tiny"}
"""Trained on the documentation of Python; with their tokenizers."""

PROMPTS = [[5, 17, 99, 3, 250, 7], list(range(40, 90))]
FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


def need(module: str) -> None:
    """Skip where an engine is not installed; in its own session that is an error."""
    if importlib.util.find_spec(module) is None:
        if os.environ.get("MXFP4_REQUIRE_ENGINE") == module:
            raise RuntimeError(f"this session is about {module}, which is not installed")
        pytest.skip(f"{module} is not installed; nox -s engines has it", allow_module_level=True)


def run(
    script: str, scenarios: Sequence[Mapping[str, Any]], folder: Path, **variables: str
) -> dict[str, Any]:
    """Run scenarios of an engine, all in one process with its children, and return its answers by name.

    Args:
        script: name of a file here.
        scenarios: see the script; those without prompts get those of the kit.
        folder: for what is written.
        variables: of the environment.
    """
    asked, said = folder / "scenarios.json", folder / "results.json"
    asked.write_text(json.dumps([{"prompts": PROMPTS, **each} for each in scenarios]))
    command = [sys.executable, str(HERE / script), str(asked), str(said)]
    with (folder / "log").open("w") as log:
        ended = subprocess.run(
            command, env={**os.environ, **variables}, stdout=log, stderr=log, timeout=1800, check=False
        )
    if ended.returncode or not said.exists():
        raise RuntimeError(f"{script} ended with {ended.returncode}\n{(folder / 'log').read_text()[-4000:]}")
    results: dict[str, Any] = json.loads(said.read_text())
    results["log"] = (folder / "log").read_text()
    return results


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a checkpoint."""
    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def loaded(folder: Path, dtype: torch.dtype) -> Any:
    """Return a model in transformers, quantised while it loads where the folder is in high precision."""
    from transformers import AutoModelForCausalLM

    try:
        import mxfp4_transformers  # noqa: F401
    except ImportError:  # the engine pins a release of transformers that our adapter does not know
        return widened(folder, dtype)
    config = json.loads((folder / "config.json").read_text())
    stored = (
        {} if "quantization_config" in config else {"quantization_config": settings(config["model_type"])}
    )
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **stored)


def settings(model_type: str) -> Any:
    """Return what is quantised: all that can be, or in gpt-oss what its checkpoints have in MXFP4."""
    import mxfp4_transformers

    return mxfp4_transformers.Mxfp4Config(targets=["experts"] if model_type == "gpt_oss" else [])


def widened(folder: Path, dtype: torch.dtype) -> Any:
    """Return a model in transformers whose weights have the values that their codes stand for."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    for name, parameter in model.named_parameters():
        if name.removesuffix(".weight").endswith("_proj"):
            parameter.data = quantize(parameter.data).dequantize(torch.float32)
    return model.to(dtype)


def save_stored(source: Path, folder: Path, dialect: str) -> Path:
    """Save a model in MXFP4 in some dialect, once for all tests of a session."""
    import mxfp4_transformers

    if not folder.exists():
        mxfp4_transformers.save(loaded(source, torch.bfloat16), folder, dialect=dialect)
    return folder


def save_shifted(source: Path, folder: Path) -> Path:
    """Save other weights for a model, as a step of training makes them."""
    folder.mkdir(parents=True)
    made = torch.Generator().manual_seed(1)
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
            continue
        changed = {
            name: (each + torch.randn(each.shape, generator=made).to(each.dtype) * 0.02)
            if "_proj" in name
            else each
            for name, each in load_file(file).items()
        }
        save_file(changed, folder / file.name, metadata={"format": "pt"})
    return folder


def save_random(folder: Path, **sizes: Any) -> Path:
    """Save a Qwen3 or, with ``num_experts``, a Qwen3-MoE of these sizes with weights made at random."""
    from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig

    common = {"head_dim": 32, "vocab_size": 512, "max_position_embeddings": 256, "tie_word_embeddings": True}
    kind: Any = Qwen3MoeConfig if "num_experts" in sizes else Qwen3Config
    config = kind(**{**common, "num_attention_heads": 4, "num_key_value_heads": 2, **sizes})
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def save_gpt_oss(folder: Path) -> Path:
    """Save a small gpt-oss with weights and biases made at random: stacks, gate and up in turn, attention sinks."""
    from transformers import AutoModelForCausalLM, GptOssConfig

    sizes = {
        "hidden_size": 128,
        "intermediate_size": 128,
        "vocab_size": 512,
        "max_position_embeddings": 131072,
    }
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "num_hidden_layers": 2}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 32}
    rope = {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0}
    rope |= {"truncate": False, "original_max_position_embeddings": 4096}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GptOssConfig(
            **sizes, **heads, **experts, rope_parameters=rope, pad_token_id=0, eos_token_id=1
        )
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        for name, parameter in model.named_parameters():
            if "bias" in name:
                parameter.data.normal_(0, 0.2)
    model.save_pretrained(folder)
    return folder


@functools.cache
@torch.no_grad()
def reference(folder: Path) -> tuple[list[torch.Tensor], float]:
    """Return the log-probabilities of the first token after each prompt, and how far an engine may be from them.

    They are computed in float32. An engine computes in BF16: the same sums in another order, each of them rounded. So
    it may be twice as far from float32 as transformers' own run in BF16 is, and its logits are rounded to BF16 at the
    end, where one step of the largest is `eps * |logit|`.
    """
    exact = [_first(loaded(folder, torch.float32), each) for each in PROMPTS]
    rounded = [_first(loaded(folder, torch.bfloat16), each) for each in PROMPTS]
    wanted, lost = [each.log_softmax(-1) for each in exact], 0.0
    for one, other in zip(wanted, rounded, strict=True):
        likely = one.topk(20).indices  # an engine says the most likely tokens only
        lost = max(lost, float((one - other.log_softmax(-1))[likely].abs().max()))
    step = max(float(each.abs().max()) for each in exact) * torch.finfo(torch.bfloat16).eps
    return wanted, 2 * lost + step


def _first(model: Any, prompt: Sequence[int]) -> torch.Tensor:
    logits: torch.Tensor = model(torch.tensor([prompt])).logits[0, -1].float()
    return logits


def check_said(outputs: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Check what an engine says of the first token after each prompt against transformers."""
    wanted, far = reference(folder)
    assert len(outputs) == len(wanted)
    for output, log_probabilities in zip(outputs, wanted, strict=True):
        for token, found in output["first"].items():
            assert abs(found - float(log_probabilities[int(token)])) <= far, (token, found, far)
        best = log_probabilities.topk(2)
        if float(best.values[0] - best.values[1]) > 2 * far:
            assert output["tokens"][0] == int(best.indices[0])


def parts_of(
    source: Path, rank: int = 0, ranks: int = 1, *, whole_experts: bool = False
) -> dict[str, torch.Tensor]:
    """Return the bytes that a rank holds of a model, by name of the engine's fused module and of the part.

    The core quantises every weight as a whole; what a rank holds is cut out of the bytes.

    Args:
        source: a model in high precision.
        rank: number of the rank.
        ranks: over how many the weights are cut.
        whole_experts: ranks share whole experts (EP), instead of cutting each of them.
    """
    stored = {name: each for name, each in tensors(source).items() if name.endswith("_proj.weight")}

    def cut(name: str) -> Mapping[str, torch.Tensor]:
        columns = name.endswith(("o_proj.weight", "down_proj.weight"))
        all_of_it = ".experts." in name and whole_experts
        parts = quantize(stored[name]).parts
        return {
            part: each if all_of_it else each.chunk(ranks, int(columns))[rank] for part, each in parts.items()
        }

    members: dict[str, list[str]] = {}
    for name in stored:
        stem, module = name.removesuffix(".weight").rsplit(".", 1)
        fused = next((each for each, inner in FUSED.items() if module in inner), module)
        if ".experts." not in name:
            members[f"{stem}.{fused}.weight"] = [
                f"{stem}.{each}.weight" for each in FUSED.get(fused, [module])
            ]
    found = {name: _joined([cut(each) for each in inner]) for name, inner in members.items()}
    prefixes = {name[: name.index(".experts.") + len(".experts")] for name in stored if ".experts." in name}
    for prefix in prefixes:
        count = len(
            {name.removeprefix(prefix).split(".")[1] for name in stored if name.startswith(f"{prefix}.")}
        )
        mine = range(count)
        if whole_experts:
            mine = range(rank * count // ranks, (rank + 1) * count // ranks)
        for matrix, inner in (("gate_up", ["gate_proj", "up_proj"]), ("down", ["down_proj"])):
            each = [_joined([cut(f"{prefix}.{number}.{part}.weight") for part in inner]) for number in mine]
            found[f"{prefix}.{matrix}"] = {part: torch.stack([one[part] for one in each]) for part in each[0]}
    return {f"{name}.{part}": each for name, parts in found.items() for part, each in parts.items()}


def _joined(parts: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {part: torch.cat([each[part] for each in parts]) for part in parts[0]}


def check_parts(held: Path, wanted: Mapping[str, torch.Tensor]) -> None:
    """Check that an engine holds these bytes, all of them, and no others."""
    found = load_file(held)
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, wanted[name]), name
