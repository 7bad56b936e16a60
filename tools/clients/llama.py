"""llama.cpp, through its Python binding xllamacpp: each architecture gives the model's tokens and log-probabilities.

The binding serves HTTP on this machine alone. llama.cpp quantises activations to 8 bits before it multiplies, so its
log-probabilities are near those of the dequantised model in F32, and not equal.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from clients.models import KINDS, TEXTS, save
from mxfp4_core import Mxfp4Config
from mxfp4_core.jobs import convert_checkpoint, dequantize_checkpoint, quantize_checkpoint

LARGEST = 0.15
"""Distance of two log-probabilities; those of these models spread by 0.7, and 0.03 to 0.08 were seen."""


def check(folder: Path) -> Iterator[tuple[str, str]]:
    """Write a GGUF file of each architecture, load it, and compare tokens and log-probabilities.

    Returns:
        The dialect, and the binding with its version; nothing where it is not installed.
    """
    try:
        told = f"llama.cpp (xllamacpp {version('xllamacpp')})"
    except PackageNotFoundError:
        return
    for number, kind in enumerate(KINDS):
        worst = _check(kind, folder / kind, 18800 + number)
        print(f"gguf: {kind}: the same tokens, log-probabilities within {worst:.3f} in {told}", flush=True)
    yield "gguf", told


def _check(kind: str, folder: Path, port: int) -> float:
    import torch
    import transformers

    tokenizer = save(kind, folder / "source")
    config = Mxfp4Config(dialect="mxfp4-core")
    quantize_checkpoint(folder / "source", folder / "native", config, models="none")
    result = convert_checkpoint(folder / "native", folder / "gguf", "gguf")
    dequantize_checkpoint(folder / "native", folder / "plain")
    if any("vocabulary" in note for note in result.notes):
        raise SystemExit(f"gguf: {kind}: {result.notes}")
    wanted = [tokenizer.encode(text).ids for text in TEXTS]
    prompts = [*wanted, list(range(3, 200, 2))]
    letter = json.loads((folder / "source" / "tokenizer.json").read_text())["model"]["vocab"]["a"]
    post = _served(folder / "gguf" / "model.gguf", port)
    for text, numbers in zip(TEXTS, wanted, strict=True):
        asked = {"content": text, "add_special": True, "parse_special": True}
        if (found := post("/tokenize", asked)["tokens"]) != numbers:
            raise SystemExit(f"gguf: {kind}: llama.cpp reads {text!r} as {found}, the tokenizer as {numbers}")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "plain", dtype=torch.float32)
    worst = 0.0
    for prompt in prompts:
        with torch.no_grad():
            logits = model(torch.tensor([prompt])).logits[0, -1]
        # The letter is what is answered: llama.cpp says nothing of a token that is part of a character.
        asked = {"prompt": prompt, "n_predict": 1, "n_probs": len(logits), "logit_bias": [[letter, 1000.0]],
                 "cache_prompt": False}  # fmt: skip
        (answer,) = post("/completion", asked)["completion_probabilities"]
        found = {each["id"]: each["logprob"] for each in answer["top_logprobs"]}
        if len(found) != len(logits):
            raise SystemExit(f"gguf: {kind}: {len(found)} probabilities of {len(logits)} tokens")
        made = torch.tensor([found[number] for number in range(len(logits))])
        worst = max(worst, float((made - logits.log_softmax(-1)).abs().max()))
    if worst > LARGEST:
        raise SystemExit(f"gguf: {kind}: log-probabilities of llama.cpp are {worst:.3f} away")
    return worst


def _served(path: Path, port: int) -> Any:
    """Load a file, and return what asks the server about it."""
    import xllamacpp

    given = xllamacpp.CommonParams()
    given.model.path, given.port = str(path), port
    given.n_ctx, given.n_parallel, given.n_gpu_layers, given.verbosity = 512, 1, 0, 0
    given.warmup = given.fit_params = False
    given.cpuparams.n_threads = 1
    server = xllamacpp.Server(given)

    def post(where: str, body: dict[str, Any]) -> Any:
        text, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(server.listening_address + where, text, kind)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    return post


if __name__ == "__main__":  # with xllamacpp on the path: python tools/linked.py tools/clients/llama.py FOLDER
    print(list(check(Path(sys.argv[1]))))

__all__ = ["check"]
