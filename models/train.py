"""Train the two small language models of this folder, dense and mixture of experts, on CPython's own text.

    python models/train.py --stdlib cpython-3.13.0/Lib                  (as committed; README.md says where)
    python models/train.py --steps 20 --batch 4 --out /tmp/models       (any machine, to see that it runs)

The seeds are fixed: the same steps on the same machine give the same models, up to the order in which a GPU
adds. The text is small, so that a dense model of this size begins to learn it by heart after 1500 steps.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import platform
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "demo")]

from corpus import END_OF_TEXT, REPEATS, Document, documents, join, split  # noqa: E402
from perplexity import cut, measure  # noqa: E402

VOCABULARY = 4096
WINDOW = 512
PEAK_RATE = 3e-3
WARM_UP = 100
WEIGHT_DECAY = 0.5
STEPS = 1400
PROMPTS = (
    'The "for" statement',
    "def read_config(path):\n",
    "class TestStack(unittest.TestCase):\n",
    "Return a new",
)

COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 1024,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    "tie_word_embeddings": True,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "dtype": "bfloat16",
}
# The shards are small so that one model of the two has an index, as every large checkpoint does.
MODELS = {
    "qwen3-tiny": ("20MB", transformers.Qwen3Config(**COMMON, num_hidden_layers=6, intermediate_size=768)),
    "qwen3-moe-tiny": (
        "5MB",
        transformers.Qwen3MoeConfig(
            **COMMON,
            num_hidden_layers=5,
            intermediate_size=768,
            moe_intermediate_size=128,
            num_experts=8,
            num_experts_per_tok=2,
            norm_topk_prob=True,
            router_aux_loss_coef=0.01,
        ),
    ),
}


def train_tokenizer(texts: Iterator[str]) -> transformers.PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer whose token 0 ends a text."""
    tokenizer = Tokenizer(tokenizer_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def tokenise(tokenizer: transformers.PreTrainedTokenizerFast, docs: list[Document]) -> Tensor:
    """Make one stream of all documents, prose repeated as `REPEATS` says; returns int64 ``[tokens]``."""
    encoded = tokenizer.backend_tokenizer.encode_batch([join([doc]) for doc in docs])
    parts = [[*one.ids, 0] * REPEATS[doc.kind] for doc, one in zip(docs, encoded, strict=True)]
    return torch.tensor(list(itertools.chain.from_iterable(parts)), dtype=torch.long)


def rate(step: int, steps: int) -> float:
    """Give the learning rate of a step: linear warm-up, then a cosine to zero."""
    warm = min(1.0, (step + 1) / min(WARM_UP, max(1, steps // 10)))
    return PEAK_RATE * warm * 0.5 * (1 + math.cos(math.pi * step / steps))


def optimizer_for(model: nn.Module, device: torch.device) -> torch.optim.AdamW:
    """Make AdamW with weight decay on matrices, none on norms."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95), fused=device.type == "cuda")


def train(model: nn.Module, stream: Tensor, held_out: Tensor, *, steps: int, batch: int) -> dict[str, float]:
    """Train in place, weights in FP32 and matrix products in BF16.

    Args:
        model: a causal language model on the device that holds `stream`.
        stream: int64 ``[tokens]``; each step draws windows of it at random.
        held_out: int64 ``[windows, length]``, only measured.
        steps: how many.
        batch: windows of 512 tokens in a step.

    Returns:
        steps, tokens, seconds, and the last training loss.
    """
    device, draw = stream.device, torch.Generator().manual_seed(0)
    optimizer = optimizer_for(model, device)
    offsets = torch.arange(WINDOW, device=device)
    experts = {"output_router_logits": True} if hasattr(model.config, "num_experts_per_tok") else {}
    began = time.perf_counter()
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps)
        starts = torch.randint(len(stream) - WINDOW, (batch, 1), generator=draw).to(device)
        ids = stream[starts + offsets]
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False, **experts).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % max(1, steps // 10) == 0:
            found, seconds = measure(model, held_out[::4]).loss, time.perf_counter() - began
            print(f"  step {step + 1}: loss {loss.item():.3f}, held out {found}, {seconds:.0f} s", flush=True)
    return {
        "steps": steps,
        "tokens": steps * batch * WINDOW,
        "seconds": round(time.perf_counter() - began, 1),
        "last_training_loss": round(loss.item(), 4),
    }


def write_samples(model: nn.Module, tokenizer: transformers.PreTrainedTokenizerFast) -> None:
    """Print how the model continues a few prompts."""
    model.eval()
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids.to(next(model.parameters()).device)
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=80,
            do_sample=True,
            top_p=0.9,
            temperature=0.8,
        )
        print("-" * 80 + "\n" + tokenizer.decode(out[0]), flush=True)


def main() -> None:
    """Read the text, train the tokenizer and both models, and write them beside the held-out text."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--stdlib", type=Path, default=Path(sysconfig.get_path("stdlib")), help="Lib folder of CPython"
    )
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--only", choices=list(MODELS), help="train one of the two")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batch", type=int, default=64, help=f"windows of {WINDOW} tokens in a step")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.set_float32_matmul_precision("high")

    docs, held_docs = split(documents(args.stdlib))
    held_text = join(held_docs)
    tokenizer = train_tokenizer(doc.text for doc in docs)
    stream = tokenise(tokenizer, docs).to(device)
    held_out = cut(tokenizer(held_text).input_ids)
    print(f"{len(docs)} documents, {len(stream)} tokens; held out: {held_out.numel()} tokens", flush=True)

    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "heldout.txt").write_text(held_text, encoding="utf-8")
    record: dict[str, object] = {
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "date": time.strftime("%Y-%m-%d"),
        "command": "python models/train.py " + " ".join(sys.argv[1:]),
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, tokenizers)},
        "documents": len(docs),
        "tokens": len(stream),
        "training_text_sha256": hashlib.sha256(join(docs).encode()).hexdigest(),
        "held_out_sha256": hashlib.sha256(held_text.encode()).hexdigest(),
    }
    for name, (shard, config) in MODELS.items():
        if args.only not in (None, name):
            continue
        torch.manual_seed(0)
        # Autocast reaches the eager loop over experts; the other implementations multiply in FP32.
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, experts_implementation="eager"
        ).to(device)
        parameters = sum(p.numel() for p in model.parameters())
        print(f"{name}: {parameters / 1e6:.2f} M parameters on {device}", flush=True)
        result = train(model, stream, held_out, steps=args.steps, batch=args.batch)
        model = model.to(torch.bfloat16)
        found = measure(model, held_out)
        print(f"  BF16, held out: loss {found.loss}, perplexity {found.perplexity}", flush=True)
        record[name] = {**result, "held_out_loss": found.loss.value, "held_out_loss_error": found.loss.error}
        model.save_pretrained(args.out / name, max_shard_size=shard)
        tokenizer.save_pretrained(args.out / name)
        write_samples(model, tokenizer)
    (args.out / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
