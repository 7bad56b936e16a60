"""The vocabulary of a GGUF file, from the ``tokenizer.json`` of a model; torch-free, no package of tokenizers.

llama.cpp has two kinds that the models known here use: BPE of bytes (``gpt2``), whose texts are cut by an expression of
its own that a name chooses, and SentencePiece (``llama``), which joins by scores. A tokenizer is translated where that
gives the same tokens, and is else left out with a reason: one that is almost right would be silently wrong.
Sources: llama.cpp, ``llama-vocab.cpp`` and ``conversion/base.py``; gguf 0.19, ``vocab.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from mxfp4_core.dialects.source import Source

TOKENIZER: Final = "tokenizer.json"
_MOST_TOKENS: Final = 1 << 20
"""Of a vocabulary; the largest that is known has 262,144."""

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_END = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD, _UPPER, _LOWER = (
    r"[^\r\n\p{L}\p{N}]?",
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]",
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]",
)
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORD}\p{{L}}+|\p{{N}}{{1,3}}|{_END}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORD}\p{{L}}+|\p{{N}}|{_END}"
_O200K = (
    rf"{_WORD}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_WORD}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}|"
    + _END.replace(r"[\r\n]*", r"[\r\n/]*", 1)
)
_NAMES: Final = {
    (_LLAMA3, True): "llama-bpe",
    (_LLAMA3, False): "smaug-bpe",
    (_QWEN2, False): "qwen2",
    (_O200K, False): "gpt-4o",
    ("", False): "gpt-2",
}
"""llama.cpp's names of ways to cut a text, by expression ("" for that of GPT-2) and whether whole words go first."""

_SPECIAL: Final = {
    "bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding", "mask": "mask"
}  # fmt: skip
"""Words of transformers and of GGUF, which spells one so."""


class _Kind(IntEnum):
    NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


class _LeftOutError(Exception):
    """Why a tokenizer is not translated; never leaves this module."""


@dataclass(frozen=True)
class Vocabulary:
    """What a file says of its tokens.

    Attributes:
        settings: numbers, texts and lists by key; empty where there is a reason.
        reason: why there is none, "" where there is one.
    """

    settings: Mapping[str, Any]
    reason: str = ""


def vocabulary_of(source: Source | None, model: Mapping[str, Any]) -> Vocabulary:
    """Translate the tokenizer of a model.

    Args:
        source: the checkpoint; ``tokenizer.json``, ``tokenizer_config.json`` and ``chat_template.jinja`` are read.
        model: its ``config.json``.

    Raises:
        CheckpointError: one of these is damaged.
    """
    found = source.document(TOKENIZER) if source is not None else None
    if source is None or found is None:
        return Vocabulary({}, f"there is no {TOKENIZER}")
    said = source.document("tokenizer_config.json") or {}
    try:
        settings = _translated(found, said, model)
    except _LeftOutError as error:
        return Vocabulary({}, f"{TOKENIZER}: {error}")
    template = said.get("chat_template")
    if isinstance(template, list):
        named = [each for each in template if isinstance(each, dict) and each.get("name") == "default"]
        template = named[0].get("template") if named else None
    template = source.text("chat_template.jinja") or template
    if isinstance(template, str):
        settings["tokenizer.chat_template"] = template
    return Vocabulary(settings)


def _translated(
    tokenizer: Mapping[str, Any], said: Mapping[str, Any], model: Mapping[str, Any]
) -> dict[str, Any]:
    bpe = _object(tokenizer.get("model"), "model")
    if bpe.get("type") != "BPE":
        raise _LeftOutError(f"a model of type {bpe.get('type')!r}, BPE is translated")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if bpe.get(key):
            raise _LeftOutError(f"BPE with {key} = {bpe[key]!r}, which llama.cpp does not have")
    added = [_object(each, "added_tokens") for each in _list(tokenizer.get("added_tokens"))]
    tokens = _tokens(_object(bpe.get("vocab"), "vocab"), added, model.get("vocab_size"))
    merges = list(_merges(bpe.get("merges")))
    steps = _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    if any(each.get("type") == "ByteLevel" for each in steps):
        found = _of_bytes(tokenizer, bpe, steps, tokens, merges)
    elif bpe.get("byte_fallback") is True:
        found = _of_sentencepiece(tokenizer, bpe, steps, tokens, merges)
    else:
        raise _LeftOutError("BPE neither of bytes nor with bytes to fall back on")
    return found | _special(tokenizer, said, model, {text: number for number, (text, _) in enumerate(tokens)})


def _tokens(
    vocabulary: Mapping[str, Any], added: list[Mapping[str, Any]], size: object
) -> list[tuple[str, _Kind]]:
    """Return text and kind of every token; numbers that are not used get texts of their own."""
    found: dict[int, tuple[str, _Kind]] = {}
    for text, number in vocabulary.items():
        _put(found, number, text, _Kind.NORMAL)
    for each in added:
        said, at = each.get("content"), each.get("id")
        if type(at) is int and at in found and found[at][0] == said:
            del found[at]
        _put(found, at, said, _Kind.CONTROL if each.get("special") is True else _Kind.USER_DEFINED)
    count = max(found, default=-1) + 1
    rows = size if type(size) is int else count
    if not 0 < count <= rows <= _MOST_TOKENS:
        raise _LeftOutError(f"{count} tokens, the vocab_size of config.json is {size!r}")
    if len({text for text, _ in found.values()}) != len(found):
        raise _LeftOutError("one text for two tokens")
    return [found.get(number, (f"[PAD{number}]", _Kind.UNUSED)) for number in range(rows)]


def _put(found: dict[int, tuple[str, _Kind]], number: object, text: object, kind: _Kind) -> None:
    if type(number) is not int or not 0 <= number < _MOST_TOKENS or not isinstance(text, str) or not text:
        raise _LeftOutError(f"token {str(text)[:80]!r} with number {str(number)[:40]}")
    if number in found:
        raise _LeftOutError(f"number {number} for {found[number][0][:80]!r} and {text[:80]!r}")
    found[number] = text, kind


def _merges(merges: object) -> Iterator[tuple[str, str]]:
    for each in _list(merges):
        pair = each.split(" ") if isinstance(each, str) else each
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(half, str) for half in pair):
            raise _LeftOutError(f"the merge {str(each)[:80]!r}, two texts are one")
        yield pair[0], pair[1]


def _of_bytes(
    tokenizer: Mapping[str, Any],
    bpe: Mapping[str, Any],
    steps: list[Mapping[str, Any]],
    tokens: list[tuple[str, _Kind]],
    merges: list[tuple[str, str]],
) -> dict[str, Any]:
    before = [each.get("type") for each in _steps(tokenizer.get("normalizer"), "normalizers")]
    if before not in ([], ["NFC"]):  # llama.cpp leaves NFC out, too
        raise _LeftOutError(f"texts are normalised first: {before}")
    *cuts, last = steps
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        raise _LeftOutError("bytes are not the last step, or a space is put before a text")
    expression = _expression(cuts, last.get("use_regex", True) is not False)
    name = _NAMES.get((expression, bpe.get("ignore_merges") is True)) if expression is not None else None
    if name is None:
        raise _LeftOutError(f"it cuts texts in a way that is not known here: {str(steps)[:200]}")
    if any(" " in half for pair in merges for half in pair):
        raise _LeftOutError("a merge with a space in it, bytes have other signs for it")
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": [text for text, _ in tokens],
        "tokenizer.ggml.token_type": [int(kind) for _, kind in tokens],
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in merges],
    }


def _expression(cuts: list[Mapping[str, Any]], own: bool) -> str | None:
    """Return the expression that cuts a text, "" for that of the step of bytes, None for anything else."""
    if own or not cuts:
        return "" if own and not cuts else None
    if len(cuts) > 1 or cuts[0].get("type") != "Split":
        return None
    behaviour = cuts[0].get("behavior"), cuts[0].get("invert") is True
    if behaviour not in (("Isolated", False), ("Removed", True)):
        return None
    found = _object(cuts[0].get("pattern"), "pattern").get("Regex")
    return found or None if isinstance(found, str) else None


def _of_sentencepiece(
    tokenizer: Mapping[str, Any],
    bpe: Mapping[str, Any],
    steps: list[Mapping[str, Any]],
    tokens: list[tuple[str, _Kind]],
    merges: list[tuple[str, str]],
) -> dict[str, Any]:
    before = _steps(tokenizer.get("normalizer"), "normalizers")
    first = [each.get("type") for each in before] + [each.get("type") for each in steps]
    if any(each not in ("Prepend", "Replace", "Metaspace") for each in first) or first.count("Replace") > 1:
        raise _LeftOutError(f"SentencePiece with the steps {first}")
    prepend = "Prepend" in first or any(each.get("prepend_scheme") in ("first", "always") for each in steps)
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    _check_scores(tokens, merges)
    kinds = [_piece_kind(text, kind, bpe.get("unk_token")) for text, kind in tokens]
    if kinds.count(_Kind.BYTE) != 256:
        raise _LeftOutError(f"{kinds.count(_Kind.BYTE)} bytes to fall back on, there are 256")
    worst = -float(len(merges) + 1)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [text for text, _ in tokens],
        "tokenizer.ggml.scores": [-float(ranks[text]) if text in ranks else worst for text, _ in tokens],
        "tokenizer.ggml.token_type": [int(kind) for kind in kinds],
        "tokenizer.ggml.add_space_prefix": prepend,
    }


def _piece_kind(text: str, kind: _Kind, unknown: object) -> _Kind:
    if text == unknown:
        return _Kind.UNKNOWN
    is_byte = len(text) == 6 and text.startswith("<0x") and text.endswith(">")
    return _Kind.BYTE if is_byte and kind is not _Kind.CONTROL else kind


def _check_scores(tokens: list[tuple[str, _Kind]], merges: list[tuple[str, str]]) -> None:
    """Refuse merges that scores cannot say: SentencePiece joins any two pieces whose joint text is one."""
    known = {text for text, kind in tokens if kind is _Kind.NORMAL}
    pairs = set(merges)
    for text in known:
        for at in range(1, len(text)):
            left, right = text[:at], text[at:]
            if left in known and right in known and (left, right) not in pairs:
                raise _LeftOutError(f"no merge of {left!r} and {right!r}, which SentencePiece would join")


def _special(
    tokenizer: Mapping[str, Any],
    said: Mapping[str, Any],
    model: Mapping[str, Any],
    numbers: Mapping[str, int],
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for word, name in _SPECIAL.items():
        token = said.get(f"{word}_token")
        token = token.get("content") if isinstance(token, dict) else token
        number = numbers.get(token) if isinstance(token, str) else model.get(f"{word}_token_id")
        number = number[0] if isinstance(number, list) and number else number
        if type(number) is int and 0 <= number < len(numbers):
            found[f"tokenizer.ggml.{name}_token_id"] = number
    template = next(
        (
            each
            for each in _steps(tokenizer.get("post_processor"), "processors")
            if each.get("type") == "TemplateProcessing"
        ),
        {},
    )
    single = _list(template.get("single"))
    for word, at in (("bos", 0), ("eos", -1)):
        there = bool(single) and "SpecialToken" in _object(single[at], "single")
        asked = said.get(f"add_{word}_token")
        found[f"tokenizer.ggml.add_{word}_token"] = asked if isinstance(asked, bool) else there
    return found


def _steps(found: object, key: str) -> list[Mapping[str, Any]]:
    """Return the steps of a part of a tokenizer, one or a sequence."""
    if found is None:
        return []
    step = _object(found, key)
    if step.get("type") != "Sequence":
        return [step]
    return [_object(each, key) for each in _list(step.get(key))]


def _list(found: object) -> list[Any]:
    if found is not None and not isinstance(found, list):
        raise _LeftOutError(f"{str(found)[:80]!r}, it is a list")
    return found or []


def _object(found: object, what: str) -> Mapping[str, Any]:
    if not isinstance(found, dict):
        raise _LeftOutError(f"{what} is {str(found)[:80]!r}, it is an object")
    return found


__all__ = ["Vocabulary", "vocabulary_of"]
