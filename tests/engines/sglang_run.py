"""Start SGLang's engine on the CPU, once for each scenario, and write down what it says.

A scenario (see ``scenarios``) has ``model``, ``arguments`` of ``sglang.Engine``, ``prompts`` as token ids, ``tokens``
to generate, and may have ``again``, pairs of a folder whose weights are loaded afterwards and the way:
``update_weights_from_disk``.
"""

from __future__ import annotations

import os
from typing import Any

from scenarios import serve

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


def said(engine: Any, prompts: list[list[int]], tokens: int, adapter: str = "") -> list[dict[str, Any]]:
    how = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
    outputs, more = [], {"lora_path": [adapter]} if adapter else {}
    for prompt in prompts:
        (out,) = engine.generate(
            input_ids=[prompt], sampling_params=how, return_logprob=True, top_logprobs_num=20, **more
        )
        first = out["meta_info"]["output_top_logprobs"][0]
        outputs.append({"tokens": out["output_ids"], "first": {str(token): each for each, token, _ in first}})
    return outputs


def run(scenario: dict[str, Any]) -> dict[str, Any]:
    import sglang

    arguments = {**DEFAULTS, **scenario.get("arguments", {})}
    if adapter := scenario.get("adapter"):
        arguments |= {
            "enable_lora": True,
            "lora_backend": "torch_native",
            "lora_paths": [f"adapter={adapter}"],
        }
    engine = sglang.Engine(model_path=scenario["model"], **arguments)
    try:
        result: dict[str, Any] = {"outputs": said(engine, scenario["prompts"], scenario.get("tokens", 4))}
        if adapter:
            result["adapted"] = said(engine, scenario["prompts"], scenario.get("tokens", 4), "adapter")
        result["again"], result["updated"] = [], []
        for folder, _ in scenario.get("again", ()):
            result["updated"].append(engine.update_weights_from_disk(folder)[0])
            result["again"].append(said(engine, scenario["prompts"], scenario.get("tokens", 4)))
        return result
    finally:
        engine.shutdown()


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import sglang  # noqa: F401

    serve(run)
