"""Kinds of modules beside plain linears and plain experts: they become MXFP4 by every route, with the right numbers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny import SIZES, settings

import mxfp4_transformers
from mxfp4_core import quantize
from mxfp4_core.backend import SILU, Gate
from mxfp4_core.backend.reference.backend import ReferenceBackend
from mxfp4_core.errors import BackendError
from mxfp4_core.jobs import plan_checkpoint, quantize_checkpoint, verify_checkpoint
from mxfp4_core.modules import LogicalWeight, Mxfp4Experts, Mxfp4Held, Mxfp4Linear, find_gate, find_sites

IDS = torch.tensor([[1, 5, 9, 3, 7]])
SMALL: dict[str, Any] = {**SIZES, "intermediate_size": 96, "num_hidden_layers": 1}
GPT: dict[str, Any] = {"n_embd": 64, "n_layer": 1, "n_head": 4, "vocab_size": 96, "n_positions": 64}
T5: dict[str, Any] = {
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 1,
    "num_heads": 4,
    "vocab_size": 96,
}


def _nemotron() -> Any:
    return transformers.NemotronHConfig(
        **{**SMALL, "num_hidden_layers": 2},
        **{"mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 1, "chunk_size": 8},
        moe_shared_expert_intermediate_size=64,
        moe_intermediate_size=64,
        n_routed_experts=4,
        num_experts_per_tok=2,
    )


def _longcat() -> Any:
    return transformers.LongcatFlashConfig(
        **{"hidden_size": 64, "num_layers": 1, "num_attention_heads": 4, "vocab_size": 96, "head_dim": 16},
        **{"ffn_hidden_size": 96, "expert_ffn_hidden_size": 96, "n_routed_experts": 4, "zero_expert_num": 2},
        **{
            "moe_topk": 3,
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 16,
        },
        v_head_dim=16,
    )


def _gemma4() -> Any:
    sizes = {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 64, "enable_moe_block": True}
    heads = {"num_global_key_value_heads": 2, "global_head_dim": 16, "hidden_size_per_layer_input": 0}
    return transformers.Gemma4TextConfig(**SMALL, **sizes, **heads)


def _jetmoe() -> Any:
    sizes = {"num_key_value_heads": 2, "kv_channels": 32, "num_local_experts": 4, "vocab_size": 96}
    return transformers.JetMoeConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=1, **sizes)


def _llama4() -> Any:
    experts = {"num_local_experts": 4, "num_experts_per_tok": 1, "interleave_moe_layer_step": 1}
    return transformers.Llama4TextConfig(**SMALL, **experts, intermediate_size_mlp=128)


KINDS: dict[str, tuple[Callable[[], Any], Any]] = {
    # K-first linears, of which one shape is square; and those of another class with the same source
    "gpt2": (lambda: transformers.GPT2Config(**GPT), transformers.GPT2LMHeadModel),
    "gpt1": (lambda: transformers.OpenAIGPTConfig(**GPT), transformers.OpenAIGPTLMHeadModel),
    # a subclass of Linear that adds nothing, with a forward of its own
    "falcon": (
        lambda: transformers.FalconConfig(
            hidden_size=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=96, bias=True
        ),
        transformers.FalconForCausalLM,
    ),
    # experts: under other names, in batches with K first, without a gate, with experts that do nothing
    "jetmoe": (_jetmoe, transformers.JetMoeForCausalLM),
    "llama4": (_llama4, transformers.Llama4ForCausalLM),
    "nemotron_h": (_nemotron, transformers.NemotronHForCausalLM),
    # a gate of another function than SiLU
    "gemma4": (_gemma4, transformers.Gemma4ForCausalLM),
    "longcat": (_longcat, transformers.LongcatFlashForCausalLM),
    # code that reads the dtype of a weight, and code that multiplies with it
    "longt5": (
        lambda: transformers.LongT5Config(**T5, local_radius=4, decoder_start_token_id=0),
        transformers.LongT5ForConditionalGeneration,
    ),
    "mobilebert": (
        lambda: transformers.MobileBertConfig(
            **{"vocab_size": 96, "hidden_size": 128, "embedding_size": 32, "num_hidden_layers": 1},
            **{"num_attention_heads": 4, "intermediate_size": 128, "intra_bottleneck_size": 64},
            max_position_embeddings=64,
        ),
        transformers.MobileBertForMaskedLM,
    ),
    "mamba": (
        lambda: transformers.MambaConfig(
            hidden_size=64, num_hidden_layers=1, vocab_size=96, state_size=8, time_step_rank=32
        ),
        transformers.MambaForCausalLM,
    ),
    # weights that are written while the model runs stay
    "rwkv": (
        lambda: transformers.RwkvConfig(hidden_size=64, num_hidden_layers=8, vocab_size=96),
        transformers.RwkvForCausalLM,
    ),
}
HELD = {"jetmoe": 4, "llama4": 1, "longcat": 1}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One BF16 checkpoint of each kind."""
    root = tmp_path_factory.mktemp("kinds")
    for name, (config, kind) in KINDS.items():
        torch.manual_seed(0)
        kind(config()).to(torch.bfloat16).save_pretrained(root / name)
    return {name: root / name for name in KINDS}


def run(model: Any) -> torch.Tensor:
    given = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        result: torch.Tensor = model.eval()(IDS, **given)[0]
    return result


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_by_every_route(sources: dict[str, Path], tmp_path: Path, name: str) -> None:
    kind, source = KINDS[name][1], sources[name]
    model = kind.from_pretrained(source, quantization_config=settings(), dtype=torch.float32)
    model.save_pretrained(tmp_path / "saved")
    held = {
        key: tensor.clone() for key, tensor in model.state_dict().items()
    }  # one kind changes when it runs
    weights = model.hf_quantizer.plan.weights
    plain = kind.from_pretrained(source, dtype=torch.float32)
    parameters = dict(plain.named_parameters())
    for each, weight in weights.items():
        values = parameters[each].data
        rows = (values.mT if weight.transposed else values).contiguous()
        wide = quantize(rows, tail="pad").dequantize(torch.float32)
        assert wide.shape == weight.shape
        parameters[each].data = wide.mT.contiguous() if weight.transposed else wide
    expected = run(plain)
    torch.testing.assert_close(run(model), expected, rtol=1e-5, atol=1e-5)
    assert sum(isinstance(each, Mxfp4Held) for each in model.modules()) == HELD.get(name, 0)

    quantize_checkpoint(source, tmp_path / "file")
    assert verify_checkpoint(tmp_path / "file", source).ok
    again = kind.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    by_file = mxfp4_transformers.from_pretrained(
        tmp_path / "file", settings(), auto_class=kind, dtype=torch.float32
    )
    for other in (again, by_file):
        found = other.state_dict()
        assert found.keys() == held.keys()
        assert all(torch.equal(found[key], held[key]) for key in held)
    torch.testing.assert_close(run(model.dequantize()), expected, rtol=1e-5, atol=1e-5)
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in parameters.items()}


def test_experts_without_a_gate_are_asked_about_by_plan(sources: dict[str, Path]) -> None:
    model = _loaded(sources)
    (experts,) = (each for each in model.modules() if isinstance(each, Mxfp4Experts))
    assert experts.problem.gate == Gate(function="relu2", gated=False)
    assert experts.up_proj.shape == (4, 64, 64) and not hasattr(experts, "gate_up_proj")
    (fit,) = (
        each
        for each in plan_checkpoint(sources["nemotron_h"], backend="reference").fits
        if "moe" in each.question
    )
    assert fit.backend == "reference" and "gate:none gate:relu2" in fit.question


@pytest.mark.parametrize(
    ("word", "gate"),
    [
        ("silu", SILU),
        ("gelu", Gate(function="gelu")),
        ("gelu_pytorch_tanh", Gate(function="gelu_tanh")),
        ("gelu_new", Gate(function="gelu_tanh")),
        ("quick_gelu", Gate(alpha=1.702)),
        ("relu", Gate(function="relu")),
        ("relu2", Gate(function="relu2")),
        ("tanh", None),
        ("mish", None),
    ],
)
def test_each_word_for_an_activation(word: str, gate: Gate | None) -> None:
    with torch.device("meta"):
        gated = transformers.MixtralForCausalLM(transformers.MixtralConfig(**SMALL, hidden_act=word))
        config = _nemotron()
        config.mlp_hidden_act = word
        plain = transformers.NemotronHForCausalLM(config)
    for model, wanted in ((gated, gate), (plain, gate and replace(gate, gated=False))):
        (site,) = (site for site in find_sites(model) if site.is_experts)
        assert find_gate(site.module) == wanted and bool(site.held) == (wanted is None)


def test_what_keeps_its_own_code_is_said(sources: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    model = transformers.JetMoeForCausalLM.from_pretrained(sources["jetmoe"], quantization_config=settings())
    assert "widened in each call, since JetMoeParallelExperts is called in a way of its own" in caplog.text
    assert "JetMoeParallelExperts" in str(model.mxfp4_report.to_dict())
    (note,) = plan_checkpoint(sources["jetmoe"]).notes
    assert "by its own code" in note
    asked = plan_checkpoint(sources["jetmoe"], backend="reference").fits
    assert asked and not any("linear" in module for fit in asked for module in fit.modules)
    experts = next(each for each in model.modules() if isinstance(each, Mxfp4Held))
    assert "by its own code" in repr(experts) and type(experts).__name__ == "Mxfp4JetMoeParallelExperts"
    given = torch.randn(7, 64, dtype=torch.bfloat16), [2, 0, 4, 1]
    for twin in (copy.deepcopy(experts), pickle.loads(pickle.dumps(experts))):
        assert torch.equal(twin(*given), experts(*given))


def test_experts_with_an_activation_that_no_backend_has_keep_their_code(
    sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = run(_loaded(sources))
    less = ReferenceBackend.features - {"gate:relu2"}
    monkeypatch.setattr(ReferenceBackend, "features", less)
    model = _loaded(sources)
    model.save_pretrained(sources["nemotron_h"].parent / "held")
    for each in (
        model,
        transformers.NemotronHForCausalLM.from_pretrained(sources["nemotron_h"].parent / "held"),
    ):
        (experts,) = (module for module in each.modules() if isinstance(module, Mxfp4Held))
        assert type(experts).__name__ == "Mxfp4NemotronHExperts"
        torch.testing.assert_close(run(each), expected, rtol=0.02, atol=0.02)
    assert (
        "no backend that may be chosen on cpu" in caplog.text and "has gate:none, gate:relu2" in caplog.text
    )
    said = [
        fit for fit in plan_checkpoint(sources["nemotron_h"], backend="reference").fits if not fit.backend
    ]
    assert len(said) == 1 and "gate:relu2" in said[0].reason and "code of the library" in said[0].runs
    with pytest.raises(BackendError, match=r"gate:relu2"):  # one that rounds x is asked for, and none does
        _loaded(sources, activation="mxfp4")


def _loaded(sources: dict[str, Path], **words: Any) -> Any:
    return transformers.NemotronHForCausalLM.from_pretrained(
        sources["nemotron_h"], quantization_config=settings(**words)
    )


def test_one_expert_is_widened_at_a_time(sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReferenceBackend, "features", ReferenceBackend.features - {"gate:relu2"})
    model = transformers.NemotronHForCausalLM.from_pretrained(
        sources["nemotron_h"], quantization_config=settings()
    )
    rows: list[int] = []
    widened = LogicalWeight.widened

    def counted(self: LogicalWeight) -> torch.Tensor:
        made = widened(self)
        rows.append(made.numel() // 4096)
        return made

    monkeypatch.setattr(LogicalWeight, "widened", counted)
    run(model)
    assert rows and max(rows) == 1


def test_what_model_code_reads_of_a_weight(sources: dict[str, Path]) -> None:
    model = transformers.GPT2LMHeadModel.from_pretrained(sources["gpt2"], quantization_config=settings())
    linear = model.transformer.h[0].attn.c_attn
    assert isinstance(linear, Mxfp4Linear)
    assert (linear.weight.dtype, tuple(linear.weight.shape)) == (torch.bfloat16, (64, 192))
    assert linear.weight.device == linear.where and not linear.weight.requires_grad
    assert model.dtype == torch.bfloat16


def test_attention_below_a_module_that_is_called_a_norm(tmp_path: Path) -> None:
    config = transformers.DbrxConfig(
        **{"d_model": 64, "n_heads": 4, "n_layers": 1, "max_seq_len": 64, "vocab_size": 96},
        attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        ffn_config={"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    )
    torch.manual_seed(0)
    transformers.DbrxForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    plan = plan_checkpoint(tmp_path)
    names = {f"transformer.blocks.0.norm_attn_norm.attn.{name}.weight" for name in ("Wqkv", "out_proj")}
    assert {row.name for row in plan.quantized} == names
    told = [note for note in plan.notes if "ffn.experts.mlp.w1" in note]
    assert len(told) == 1 and "stays in high precision, since the file has it in 'w1'" in told[0]
    model = transformers.DbrxForCausalLM.from_pretrained(tmp_path, quantization_config=settings())
    assert {*model.hf_quantizer.plan.weights} == names
    with torch.no_grad():
        assert bool(model(IDS).logits.isfinite().all())
