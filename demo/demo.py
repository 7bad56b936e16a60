"""The main job, shown: BF16 language models become MXFP4 while they load, run, and are saved for others to read.

    python demo/demo.py            (both models of this repository, about a minute on two cores)
    python demo/demo.py MODEL      (any folder with a BF16 model and its tokenizer)

It compares each model with its MXFP4 self: text, perplexity with its standard error, memory, disk and time. Then
it saves the MXFP4 model in the compressed-tensors dialect, lets transformers' own reader load that, compares the
weights bit for bit, and writes a report about every layer.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import io
import os
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from perplexity import Perplexity, cut, measure
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import mxfp4_core
import mxfp4_transformers
from mxfp4_core import dialects
from mxfp4_core.errors import Mxfp4Error, OutputError
from mxfp4_core.jobs import verify_checkpoint
from mxfp4_core.loader import MemoryMeter
from mxfp4_core.report import files
from mxfp4_core.report import measure as report_on

ROOT = Path(__file__).resolve().parent.parent
MODELS = [ROOT / "models" / "qwen3-tiny", ROOT / "models" / "qwen3-moe-tiny"]
HELD_OUT = ROOT / "models" / "heldout.txt"
DIALECT = "compressed-tensors"
PROMPTS = ('The "for" statement', "class TestStack(unittest.TestCase):\n", "Return a new list")
MIB = 1 << 20


@dataclass(frozen=True)
class Side:
    """What one of the two precisions did.

    Args:
        model: the loaded model.
        seconds: time to load it.
        added: most memory that the process took on top while it loaded, in bytes, with what it read of the file,
            which is mapped; None where unknown.
        texts: the continuation of each prompt.
        speed: tokens a second, all prompts in one batch.
        found: losses on the held-out text.
    """

    model: Any
    seconds: float
    added: int | None
    texts: list[str]
    speed: float
    found: Perplexity

    @property
    def nbytes(self) -> int:
        """Bytes of all weights and buffers, shared ones once."""
        tensors = (*self.model.parameters(), *self.model.buffers())
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def return_free_memory() -> None:
    """Give the system what earlier work has freed: a load that takes that again would seem to need no memory."""
    gc.collect()
    if os.name == "posix" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


def run(folder: Path, tokenizer: Any, windows: torch.Tensor, tokens: int, **options: Any) -> Side:
    """Load a model with these options for `from_pretrained`, let it write and measure it."""
    return_free_memory()
    meter, began = MemoryMeter(), time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **options)
    seconds, memory = time.perf_counter() - began, meter.read()
    prompts = tokenizer(list(PROMPTS), return_tensors="pt", padding=True)
    torch.manual_seed(0)  # the same random numbers for both sides: texts part where the models do
    began = time.perf_counter()
    ids = model.generate(
        **prompts, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=True, temperature=0.7, top_k=40
    )
    speed = len(PROMPTS) * tokens / (time.perf_counter() - began)
    texts = tokenizer.batch_decode(ids[:, prompts.input_ids.shape[1] :])
    added = memory and memory.peak - memory.before
    return Side(model, seconds, added, texts, speed, measure(model, windows))


def differing(path: Path, model: Any) -> list[str]:
    """Load a saved model with transformers' own compressed-tensors integration; name the weights that differ.

    Args:
        path: a model in the compressed-tensors dialect.
        model: the MXFP4 model that was saved; it is widened to BF16 in place, so this comes last.
    """
    with redirect_stderr(io.StringIO()):  # a progress bar for each of its steps
        theirs = AutoModelForCausalLM.from_pretrained(path)
        theirs(input_ids=torch.zeros(1, 1, dtype=torch.long))  # the first call decompresses the weights
    found = dict(theirs.named_parameters())
    expected = dict(model.dequantize(torch.bfloat16).named_parameters())
    return [name for name in expected if name not in found or not torch.equal(found[name], expected[name])]


def print_texts(console: Console, before: Side, after: Side) -> None:
    """Print what both wrote, side by side."""
    table = Table("BF16", "MXFP4", show_lines=True, expand=True)
    for prompt, left, right in zip(PROMPTS, before.texts, after.texts, strict=True):
        table.add_row(*(Text.assemble((prompt, "bold"), text.rstrip()) for text in (left, right)))
    console.print(table)


def print_figures(console: Console, before: Side, after: Side, disk: tuple[int, int]) -> None:
    """Print sizes, times and perplexities of both."""

    def mib(nbytes: int | None) -> str:
        return "unknown" if nbytes is None else f"{nbytes / MIB:.2f} MiB"

    table = Table("", "BF16", "MXFP4", expand=True)
    table.add_row("weights in memory", mib(before.nbytes), mib(after.nbytes))
    table.add_row("weights on disk", *map(mib, disk))
    table.add_row("peak memory added by loading", mib(before.added), mib(after.added))
    table.add_row("time to load", f"{before.seconds:.2f} s", f"{after.seconds:.2f} s")
    table.add_row("writing", f"{before.speed:.0f} tokens/s", f"{after.speed:.0f} tokens/s")
    table.add_row("loss, nats a token", str(before.found.loss), str(after.found.loss))
    table.add_row("perplexity", str(before.found.perplexity), str(after.found.perplexity))
    console.print(table)
    rise = after.found.minus(before.found)
    console.print(
        f"MXFP4 adds {rise.value:.4f} ± {rise.error:.4f} to the loss (paired over {len(after.found.losses)} "
        "windows of text that neither was trained on; ± is one standard error). Loading maps the BF16 file: its "
        "pages count as memory of the process once they are read, and can be reclaimed. What Python and the kernels "
        "take counts, too, some tens of MiB, which says more than the weights of a small model."
    )


def places(folder: Path, output: Path, *, force: bool) -> tuple[Path, dict[str, Path]]:
    """Return the folder for a saved model and the paths of its report, refusing to replace either unasked."""
    saved = output / f"{folder.name}-mxfp4"
    if saved.exists() and not force:
        raise OutputError(
            f"cannot save to {saved}",
            seen="it exists",
            rule="nothing is replaced unasked",
            fix="choose another --output, or add --force",
        )
    return saved, files.destinations(output / f"{folder.name}-report", list(files.RENDERERS), force=force)


def show(console: Console, folder: Path, args: argparse.Namespace) -> tuple[Path, Path]:
    """Do it all for one model; return the folder of the saved model and the path of the page about it."""
    console.rule(f"[bold]{folder.name}")
    saved, pages = places(folder, args.output, force=args.force)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    windows = cut(tokenizer(args.text.read_text(encoding="utf-8")).input_ids, count=args.windows)

    # What is done once a process is in no figure: imports, and kernels that are read from a cache.
    with torch.device("meta"):
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    mxfp4_core.quantize(torch.ones(1, 32))

    console.print("loading and measuring BF16, then MXFP4 …", style="dim")
    before = run(folder, tokenizer, windows, args.tokens)
    config = mxfp4_transformers.Mxfp4Config()
    after = run(folder, tokenizer, windows, args.tokens, quantization_config=config)
    console.print(after.model.mxfp4_report.line(), highlight=False, markup=False)
    print_texts(console, before, after)

    mxfp4_transformers.save(after.model, saved, DIALECT, force=args.force)
    tokenizer.save_pretrained(saved)
    disk = [sum(path.stat().st_size for path in where.glob("*.safetensors")) for where in (folder, saved)]
    print_figures(console, before, after, (disk[0], disk[1]))

    report = report_on(folder, saved, command=sys.argv)
    files.write(report, pages)
    checked = verify_checkpoint(saved, folder)
    if not checked.ok or report.findings:
        raise SystemExit(f"{saved} is damaged: {checked.findings or report.findings}")
    console.print(
        f"verified {checked.weights} weights in {saved.name}: quantised again from the file, the bytes are equal"
    )
    if find_spec("compressed_tensors"):
        if names := differing(saved, after.model):
            raise SystemExit(f"read back by transformers, these weights differ: {', '.join(names)}")
        console.print(
            "read back by transformers' own compressed-tensors integration: every weight is equal, bit for bit"
        )
    else:
        console.print("not read back by transformers: the package compressed-tensors is not installed")
    return saved, pages["html"]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="*", type=Path, default=MODELS, help="folders with BF16 models")
    parser.add_argument("--output", type=Path, default=ROOT / "demo-output", help="default: demo-output")
    parser.add_argument("--force", action="store_true", help="replace what an earlier run saved there")
    parser.add_argument("--text", type=Path, default=HELD_OUT, help="text to measure perplexity on")
    parser.add_argument("--windows", type=int, default=64, help="windows of 256 tokens (default: 64)")
    parser.add_argument(
        "--tokens", type=int, default=60, help="tokens to write for each prompt (default: 60)"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="more only pays for larger models (default: 1)"
    )
    args = parser.parse_args(argv)

    torch.set_num_threads(args.threads)
    console = Console()
    console = Console(width=min(100, max(80, console.width)))
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for folder in args.models:
        places(folder, args.output, force=args.force)
    began = time.perf_counter()
    made = [show(console, folder, args) for folder in args.models]

    console.rule("[bold]done")
    console.print(
        f"{time.perf_counter() - began:.0f} s, torch {torch.__version__} with {torch.get_num_threads()} threads"
    )
    for saved, page in made:
        print(f"report: {page} - open it in a browser")
        print(f"model:  {saved} - load it with:\n  {dialects.get(DIALECT).how_to_load(str(saved))}")


if __name__ == "__main__":
    try:
        main()
    except Mxfp4Error as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
