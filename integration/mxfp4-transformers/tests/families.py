"""Tiny models of families that differ in what their weights are, beside those of ``tiny.py``."""

from __future__ import annotations

from typing import Any

import transformers
from tiny import CONFIGS, SIZES

GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 96, "n_positions": 64, "bos_token_id": 1}
T5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 96}
MODELS: dict[str, Any] = {
    **{
        name: lambda name=name: transformers.AutoModelForCausalLM.from_config(CONFIGS[name]())
        for name in CONFIGS
    },
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2, eos_token_id=2)),
    "t5": lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**T5)),
    # infinity in its config
    "mamba2": lambda: transformers.Mamba2ForCausalLM(
        transformers.Mamba2Config(
            hidden_size=64,
            num_heads=4,
            head_dim=32,
            state_size=32,
            num_hidden_layers=2,
            n_groups=1,
            vocab_size=96,
        )
    ),
    # stacks of experts under a name and a call of their own
    "jetmoe": lambda: transformers.JetMoeForCausalLM(
        transformers.JetMoeConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_key_value_heads=2,
            kv_channels=32,
            num_local_experts=2,
            vocab_size=96,
        )
    ),
    # weights with three axes that are no experts
    "xlnet": lambda: transformers.XLNetLMHeadModel(
        transformers.XLNetConfig(d_model=64, n_layer=1, n_head=4, d_inner=96, vocab_size=96)
    ),
    "phi3": lambda: transformers.Phi3ForCausalLM(transformers.Phi3Config(**SIZES, intermediate_size=96)),
}


CLASSES: dict[str, Any] = {"t5": transformers.T5ForConditionalGeneration}
"""Classes that load them, where that is not ``AutoModelForCausalLM``."""
