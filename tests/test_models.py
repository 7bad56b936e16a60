"""The two trained models of the repository: whole, small, in BF16, and able to predict text they never saw."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest
import torch

from mxfp4_core.checkpoint.reader import Checkpoint, open_checkpoint
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.naming.resolver import Resolver

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
sys.path[:0] = [str(MODELS), str(ROOT / "demo")]

import corpus  # noqa: E402
import perplexity  # noqa: E402

NAMES = ("qwen3-tiny", "qwen3-moe-tiny")
RECORD = json.loads((MODELS / "training.json").read_text(encoding="utf-8"))
HELD_OUT = (MODELS / "heldout.txt").read_text(encoding="utf-8")


@pytest.fixture(params=NAMES)
def checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    return open_checkpoint(MODELS / request.param)


def test_every_tensor_is_finite_bf16(checkpoint: Checkpoint) -> None:
    assert {info.dtype for info in checkpoint.tensors.values()} == {"BF16"}
    assert [name for name in checkpoint.tensors if not checkpoint.load(name).isfinite().all()] == []


def test_the_quantised_weights_are_most_of_a_model_and_made_of_whole_blocks(checkpoint: Checkpoint) -> None:
    resolver = Resolver.for_model(Mxfp4Config(), checkpoint.config)
    shapes = [(name, info.shape) for name, info in checkpoint.tensors.items()]
    decisions = resolver.decide_all(shapes)
    chosen = [checkpoint.tensors[one.name] for one in decisions if one.quantize]
    assert [info.name for info in chosen if info.shape[-1] % 32] == []
    share = sum(info.nbytes for info in chosen) / sum(info.nbytes for info in checkpoint.tensors.values())
    assert 0.8 < share < 0.85


def test_one_model_has_one_file_and_the_other_has_shards_with_an_index() -> None:
    assert len(open_checkpoint(MODELS / "qwen3-tiny").files) == 1
    assert len(open_checkpoint(MODELS / "qwen3-moe-tiny").files) == 3


def test_both_models_together_stay_small_enough_for_git() -> None:
    assert sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file()) < 25e6


def test_the_held_out_text_is_the_one_that_was_held_out_of_the_training() -> None:
    assert hashlib.sha256(HELD_OUT.encode()).hexdigest() == RECORD["held_out_sha256"]
    held_out = len(corpus.HELD_OUT_TOPICS) + len(corpus.HELD_OUT_MODULES)
    assert HELD_OUT.count(corpus.END_OF_TEXT) == held_out - 1


@pytest.mark.parametrize("name", NAMES)
def test_a_model_predicts_the_held_out_text_as_well_as_its_record_says(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(MODELS / name, dtype=torch.bfloat16)
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODELS / name)
    windows = perplexity.cut(tokenizer(HELD_OUT).input_ids, length=256, count=16)
    found = perplexity.measure(model, windows).loss
    # 16 of the 207 windows; three standard errors of such a sample.
    assert found.value == pytest.approx(RECORD[name]["held_out_loss"], abs=3 * found.error)


@pytest.fixture
def stdlib(tmp_path: Path) -> Path:
    shared = "This paragraph is long enough to be told from a coincidence, and it occurs twice."
    (tmp_path / "pydoc_data").mkdir()
    (tmp_path / "test").mkdir()
    topics = {"calls": f"Calls\n\n{shared}\n", "for": f"The statement\n\n{shared}\n\nIts own end.\n"}
    (tmp_path / "pydoc_data" / "topics.py").write_text(f"topics = {topics!r}\n", encoding="utf-8")
    function = 'def {0}(a):\n    """Say what {0} does."""\n'
    for module in ("heapq", "json"):
        (tmp_path / f"{module}.py").write_text(function.format(module), encoding="utf-8")
        (tmp_path / "test" / f"test_{module}.py").write_text(f"import {module}\n", encoding="utf-8")
    (tmp_path / "test" / "broken.py").write_text("this is no Python\n", encoding="utf-8")
    return tmp_path


def test_splitting_holds_out_topics_modules_and_their_tests(stdlib: Path) -> None:
    train, held_out = corpus.split(corpus.documents(stdlib))
    assert [doc.name for doc in held_out] == ["topic:calls", "heapq.py"]
    names = ["help:json.py", "json.py", "test/broken.py", "test/test_json.py", "topic:for"]
    assert sorted(doc.name for doc in train) == names


def test_training_text_loses_the_paragraphs_that_are_held_out(stdlib: Path) -> None:
    train, _ = corpus.split(corpus.documents(stdlib))
    texts = {doc.name: doc.text for doc in train}
    assert texts["topic:for"] == "The statement\n\nIts own end.\n"


def test_perplexity_of_a_model_that_knows_nothing_is_the_size_of_its_vocabulary() -> None:
    class Ignorant(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, input_ids: torch.Tensor) -> torch.nn.Module:
            self.logits = self.weight.expand(*input_ids.shape, 50)
            return self

    windows = perplexity.cut(list(range(48)), length=8, count=3)
    assert windows.tolist() == [list(range(8)), list(range(16, 24)), list(range(32, 40))]
    found = perplexity.measure(Ignorant(), windows, batch=2)
    assert found.perplexity.value == pytest.approx(50, rel=1e-5)
    assert found.minus(found) == perplexity.Estimate(0.0, 0.0)


def test_windows_that_the_text_cannot_fill_are_refused() -> None:
    with pytest.raises(ValueError, match="holds 1"):
        perplexity.cut(list(range(15)), length=8, count=2)
