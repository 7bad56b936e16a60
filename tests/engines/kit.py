"""What the tests of all engines share: models, an engine in a process of its own, and what transformers says.

An engine has an environment of its own and a script ``<engine>_run.py``, which runs scenarios there and writes down
what the engine says and holds. What that must be is said by ``mxfp4_core.testing.engine_kit``.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import select
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mxfp4_core import quantize
from mxfp4_core.testing import PROMPTS, ExpectedTokens, check_parts, expected_parts

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MODELS = {"dense": ROOT / "models" / "qwen3-tiny", "experts": ROOT / "models" / "qwen3-moe-tiny"}
"""Trained on the documentation of Python; with their tokenizers."""
LORA = "base_model.model."
"""What stands before the names of a model in those of an adapter."""


def need(module: str) -> None:
    """Skip where an engine is not installed; in its own session that is an error."""
    if importlib.util.find_spec(module) is None:
        if os.environ.get("MXFP4_REQUIRE_ENGINE") == module:
            raise RuntimeError(f"this session is about {module}, which is not installed")
        pytest.skip(f"{module} is not installed; nox -s engines has it", allow_module_level=True)


class Models:
    """Models by name, each made when it is first asked for.

    Args:
        folder: where they are made.
        made: how, by name: each gets the folder to write, and this table for others that it starts from.
    """

    def __init__(self, folder: Path, made: Mapping[str, Callable[[Path, Models], object]]) -> None:
        self._folder, self._made = folder, made

    def __getitem__(self, name: str) -> Path:
        if name in MODELS:
            return MODELS[name]
        target = self._folder / name
        if not target.exists():
            self._made[name](target, self)
        return target


class Engine:
    """An engine in a process of its own, which runs each scenario once, when a test asks for it.

    Args:
        script: name of a file here.
        models: by name.
        scenarios: by name, see the script; models in ``model``, ``adapter`` and ``again`` are named. Those without
            prompts get those of the kit.
        folder: for what is written.
        seconds: how long a scenario may take.
    """

    def __init__(
        self,
        script: str,
        models: Models,
        scenarios: Mapping[str, Mapping[str, Any]],
        folder: Path,
        seconds: int = 600,
    ) -> None:
        self.models, self.scenarios, self.folder, self._seconds = models, scenarios, folder, seconds
        self._answers: dict[str, dict[str, Any]] = {}
        self._log, self._command = folder / "log", [sys.executable, str(HERE / script)]
        self._process: subprocess.Popen[str] | None = None

    def __getitem__(self, name: str) -> dict[str, Any]:
        """Return what a scenario gave, with its ``log``."""
        if name not in self._answers:
            self._answers[name] = self._ask(name)
        return self._answers[name]

    def fine(self, name: str) -> dict[str, Any]:
        """Return what a scenario gave that had no error."""
        result = self[name]
        assert "error" not in result, f"{result['error']}\n{result['log'][-3000:]}"
        return result

    def parts(self, name: str, rank: int = 0) -> dict[str, torch.Tensor]:
        """Return the bytes that a rank held in a scenario."""
        return load_file(self.folder / f"{name}.{rank}")

    def close(self) -> None:
        """End the process; the next scenario gets another one."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            with self._log.open("w") as log:
                pipe = subprocess.PIPE
                self._process = subprocess.Popen(
                    self._command, stdin=pipe, stdout=pipe, stderr=log, text=True, bufsize=1
                )
            self._heard(self._process, "ready")
        return self._process

    def _ask(self, name: str) -> dict[str, Any]:
        scenario = {"prompts": PROMPTS, **self.scenarios[name], "name": name}
        scenario["model"] = str(self.models[scenario["model"]])
        if "adapter" in scenario:
            scenario["adapter"] = str(self.models[scenario["adapter"]])
        scenario["again"] = [(str(self.models[model]), how) for model, how in scenario.get("again", ())]
        answer, log = self.folder / f"{name}.json", self.folder / f"{name}.log"
        scenario |= {"answer": str(answer), "log": str(log), "parts": str(self.folder / f"{name}.{{rank}}")}
        process = self._started()
        print(json.dumps(scenario), file=process.stdin)
        self._heard(process, name)
        text = log.read_text(errors="replace") if log.exists() else ""
        result: dict[str, Any] = json.loads(answer.read_text()) if answer.exists() else {"error": "it died"}
        return {**result, "log": text}

    def _heard(self, process: subprocess.Popen[str], word: str) -> None:
        said, out = "", process.stdout
        if out is not None and select.select([out], [], [], self._seconds)[0]:
            said = out.readline().strip()
        if said != word:
            self.close()
            logs = [self._log, self.folder / f"{word}.log"]
            tails = [each.read_text(errors="replace")[-3000:] for each in logs if each.exists()]
            what = f"said {said!r}" if said else f"ended, or took more than {self._seconds} s"
            raise RuntimeError("\n".join([f"{word}: the process of the engine {what}", *tails]))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a checkpoint."""
    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def check_held(
    held: Mapping[str, torch.Tensor],
    source: Path,
    rank: int = 0,
    ranks: int = 1,
    *,
    whole_experts: bool = False,
) -> None:
    """Check the bytes that a rank of an engine holds of a model in high precision."""
    weights = {name: each for name, each in tensors(source).items() if name.endswith("_proj.weight")}
    check_parts(held, expected_parts(weights, rank, ranks, whole_experts=whole_experts))


def widened(folder: Path, dtype: torch.dtype, kept: str = "", adapter: Path | None = None) -> Any:
    """Return a model in transformers whose weights have the values that their codes stand for.

    What is quantised: all projections, or in gpt-oss the experts, which its checkpoints have in MXFP4.

    Args:
        folder: the model in high precision.
        dtype: in which it computes.
        kept: a regular expression; what it finds in the name of a weight stays as it is.
        adapter: of LoRA, with a factor of 1, whose products are added to the values.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    gpt_oss = model.config.model_type == "gpt_oss"
    for name, parameter in model.named_parameters():
        if kept and re.search(kept, name):
            continue
        last = name.removesuffix(".weight").rpartition(".")[2]
        if gpt_oss and last in ("gate_up_proj", "down_proj"):  # stored [expert, K, N]
            values = quantize(parameter.data.transpose(-1, -2).contiguous()).dequantize(torch.float32)
            parameter.data = values.transpose(-1, -2).contiguous()
        elif not gpt_oss and last.endswith("_proj"):
            parameter.data = quantize(parameter.data).dequantize(torch.float32)
    low = tensors(adapter) if adapter else {}
    for name in (each for each in low if each.endswith(".lora_A.weight")):
        weight = model.get_parameter(f"{name.removeprefix(LORA).removesuffix('.lora_A.weight')}.weight")
        weight.data = weight.data + low[name.replace("lora_A", "lora_B")].float() @ low[name].float()
    return model.to(dtype)


@functools.cache
@torch.no_grad()
def reference(folder: Path, kept: str = "", adapter: Path | None = None) -> ExpectedTokens:
    """Return what transformers says of the first token after each prompt of the kit."""
    first = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = widened(folder, dtype, kept, adapter)
        first[dtype] = [model(torch.tensor([prompt])).logits[0, -1].float() for prompt in PROMPTS]
    return ExpectedTokens.of(first[torch.float32], first[torch.bfloat16])


def check_said(
    outputs: Sequence[Mapping[str, Any]], folder: Path, kept: str = "", adapter: Path | None = None
) -> None:
    """Check what an engine says of the first token after each prompt against transformers; see `widened`."""
    wanted = reference(folder, kept, adapter)
    assert len(outputs) == len(PROMPTS)
    for number, output in enumerate(outputs):
        said = {int(token): each for token, each in output["first"].items()}
        wanted.check(number, output["tokens"][0], said)
