"""Start SGLang's engine on the CPU, once for each scenario, and write down what it says.

    python sglang_run.py SCENARIOS.json RESULTS.json

A scenario is a table: ``name``, ``model``, ``arguments`` of ``sglang.Engine``, ``prompts`` as token ids, ``tokens`` to
generate, and ``again``, a folder whose weights are loaded afterwards by ``update_weights_from_disk``. An error is a
result, too. Each scenario has a process of its own: SGLang ends the whole group of a process when it fails.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

DEFAULTS = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    "grammar_backend": "none",
    "skip_tokenizer_init": True,
    "disable_radix_cache": True,
    "disable_overlap_schedule": True,
    "max_total_tokens": 512,
    "mem_fraction_static": 0.3,
    "log_level": "info",
    "dtype": "bfloat16",
}


def said(engine: Any, prompts: list[list[int]], tokens: int) -> list[dict[str, Any]]:
    how = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
    outputs = []
    for prompt in prompts:
        (out,) = engine.generate(
            input_ids=[prompt], sampling_params=how, return_logprob=True, top_logprobs_num=20
        )
        first = out["meta_info"]["output_top_logprobs"][0]
        outputs.append({"tokens": out["output_ids"], "first": {str(token): each for each, token, _ in first}})
    return outputs


def run(scenario: dict[str, Any]) -> dict[str, Any]:
    import sglang

    engine = sglang.Engine(model_path=scenario["model"], **{**DEFAULTS, **scenario.get("arguments", {})})
    try:
        result: dict[str, Any] = {"outputs": said(engine, scenario["prompts"], scenario.get("tokens", 4))}
        if "again" in scenario:
            result["updated"] = engine.update_weights_from_disk(scenario["again"])[0]
            result["again"] = said(engine, scenario["prompts"], scenario.get("tokens", 4))
        return result
    finally:
        engine.shutdown()


def main(scenarios: Path, results: Path) -> None:
    found = {}
    for scenario in json.loads(scenarios.read_text()):
        began, answer = time.perf_counter(), results.with_name(f"{results.name}.{scenario['name']}")
        command = [sys.executable, __file__, "--one", json.dumps(scenario), str(answer)]
        # A group of its own: what SGLang kills when it fails is that group.
        ended = subprocess.run(
            command, start_new_session=True, timeout=400, capture_output=True, text=True, check=False
        )
        log = ended.stdout + ended.stderr
        found[scenario["name"]] = json.loads(answer.read_text()) if answer.exists() else {"error": log}
        found[scenario["name"]].update(seconds=time.perf_counter() - began, log=log)
    results.write_text(json.dumps(found))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if sys.argv[1] == "--one":
        Path(sys.argv[3]).write_text(json.dumps(run(json.loads(sys.argv[2]))))
    else:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
