"""Small models of every architecture that GGUF files are written of here, each with a tokenizer that was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TEXTS = (
    "Hello world, I've 12345 things to say!\n\n  Don't we'LL go?  ",
    "naïve café 東京 \t tabs\r\nand 3.14159",
    "the quick brown fox jumps over the lazy dog " * 5,
    "<|end|>special 🚀",
)
KINDS = ("llama", "llama3", "llama-tied", "sentencepiece", "qwen2", "qwen3", "qwen3moe", "gpt-oss")
_END = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_END}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SHORT}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SHORT}?|"
    rf"\p{{N}}{{1,3}}|{_END}"
).replace(r"+[\r\n]*|", r"+[\r\n/]*|")
_CUTS = {"llama": "", "llama3": _LLAMA3, "llama-tied": _LLAMA3, "gpt-oss": _O200K}
_TOKENS = 512


def _of_bytes(kind: str) -> Any:
    """Train BPE of bytes, with the expression that files of this kind have."""
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    made = Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    expression = _CUTS.get(kind, _LLAMA3.replace("{1,3}", ""))
    step = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not expression)
    if expression:
        step = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(expression), "isolated"), step])
    made.pre_tokenizer, made.decoder = step, decoders.ByteLevel()
    if kind.startswith("qwen"):
        made.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=_TOKENS - 8, special_tokens=["<|begin|>", "<|end|>"], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    made.train_from_iterator([*TEXTS, Path(__file__).read_text(encoding="utf-8")], trainer)
    if kind == "llama3":
        begin = [("<|begin|>", 0)]
        made.post_processor = processors.TemplateProcessing("<|begin|> $A", special_tokens=begin)
    return made


def _of_pieces() -> Any:
    """Train pieces, and write their merges as transformers does: all that two pieces allow."""
    import json

    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers

    trained = Tokenizer(models.BPE())
    steps = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    trained.normalizer = normalizers.Sequence(steps)
    texts = [*TEXTS[:3], Path(__file__).read_text(encoding="utf-8")]
    trained.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, show_progress=False))
    numbers = json.loads(trained.to_str())["model"]["vocab"]
    pieces = sorted(numbers, key=numbers.get)
    names = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256))]
    names += sorted(pieces, key=lambda piece: len(piece) == 1)
    merges = [
        (piece[:at], piece[at:])
        for piece in pieces
        for at in range(1, len(piece))
        if piece[:at] in numbers and piece[at:] in numbers
    ]
    vocabulary = {name: number for number, name in enumerate(names)}
    made = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    made.normalizer = trained.normalizer
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(names[:3])
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return made


def _model(kind: str, tokens: int) -> Any:
    import transformers as t

    sizes: dict[str, Any] = {
        "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 256, "vocab_size": tokens,
    }  # fmt: skip
    if kind == "qwen2":
        return t.Qwen2ForCausalLM(t.Qwen2Config(**sizes))
    if kind == "qwen3":
        return t.Qwen3ForCausalLM(t.Qwen3Config(**sizes, head_dim=32))
    experts = {"num_experts_per_tok": 4, "head_dim": 32}  # all of them: a choice would turn on rounding
    if kind == "qwen3moe":
        experts |= {"num_experts": 4, "moe_intermediate_size": 64, "norm_topk_prob": True}
        return t.Qwen3MoeForCausalLM(t.Qwen3MoeConfig(**sizes, **experts))
    if kind == "gpt-oss":
        rope = {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0,
                "truncate": False, "original_max_position_embeddings": 64}  # fmt: skip
        sizes |= {
            "intermediate_size": 64,
            "num_local_experts": 4,
            "sliding_window": 32,
            "rope_parameters": rope,
        }
        return t.GptOssForCausalLM(t.GptOssConfig(**sizes, **experts))
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    if kind == "llama3":
        rope |= {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                 "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
    tied = kind == "llama-tied"
    return t.LlamaForCausalLM(t.LlamaConfig(**sizes, tie_word_embeddings=tied, rope_parameters=rope))


def save(kind: str, folder: Path) -> Any:
    """Save a model of this kind in BF16 with its tokenizer, and return the tokenizer."""
    import torch
    import transformers

    torch.manual_seed(5)
    pieces = kind == "sentencepiece"
    tokenizer = _of_pieces() if pieces else _of_bytes(kind)
    model = _model(kind, -(-tokenizer.get_vocab_size() // 32) * 32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)  # else the logits are nearly equal
            elif "norm" not in name:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    model.to(torch.bfloat16).save_pretrained(folder)
    words = ("<s>", "</s>") if pieces else ("<|begin|>", "<|end|>")
    special = dict(zip(("bos_token", "eos_token"), words, strict=True))
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return tokenizer


__all__ = ["KINDS", "TEXTS", "save"]
