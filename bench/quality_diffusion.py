"""What MXFP4 costs a small diffusion transformer: images, PSNR, and the distance of their distribution from the data's.

    python3 tools/linked.py bench/quality_diffusion.py --images docs/diffusers.png

The model is ``demo/digits-dit``. Each row draws the same digits from the same noise as the row in BF16, so PSNR says
how far an image moves; the distance (as FID, on the features of the small classifier beside the model) and the share of
digits that it recognises say whether the images are still as good. Errors are those of the mean over the seeds; the
change of the distance is taken seed by seed, so that it has a smaller one.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image
from torch import Tensor

import mxfp4_diffusers
from mxfp4_core.checkpoint import open_checkpoint
from mxfp4_core.jobs import plan_checkpoint
from mxfp4_core.report.budget import keep_within
from mxfp4_diffusers import Mxfp4Config, precise_steps, sensitivities

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "demo"))

from digits import CLASSES, DigitsPipeline, Gaussian, load_judge  # noqa: E402

FOLDER = ROOT / "demo" / "digits-dit"
SHOWN = tuple(range(CLASSES)) * 2


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: what it is.
        pipe: makes it.
        nbytes: bytes of the transformer's weights.
    """

    name: str
    pipe: DigitsPipeline
    nbytes: int


def nbytes(model: torch.nn.Module) -> int:
    """Return the bytes of what a saved copy holds."""
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def load(config: Mxfp4Config | None = None) -> DigitsPipeline:
    """Return the pipeline, its transformer by this config."""
    given = {} if config is None else {"quantization_config": config}
    transformer = diffusers.AutoModel.from_pretrained(
        str(FOLDER), subfolder="transformer", dtype=torch.bfloat16, **given
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(str(FOLDER), subfolder="scheduler")
    return DigitsPipeline(transformer, scheduler)


def hurts() -> dict[str, float]:
    """Measure how far the velocity moves, at four times, when one weight is quantised."""
    model = load().transformer
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(80, 1, 8, 8, generator=generator).to(torch.bfloat16)
    labels, t = torch.arange(80) % CLASSES, torch.tensor([950.0, 700.0, 400.0, 100.0]).repeat(20)
    return sensitivities(model, lambda: model(x, t, labels, return_dict=False)[0].float())


def rows() -> list[Row]:
    """Return every variant: rules, formats, and what is kept."""
    found: list[Row] = []

    def add(
        name: str, config: Mxfp4Config | None, arrange: Callable[[Any], None] = lambda pipe: None
    ) -> None:
        pipe = load(config)
        found.append(Row(name, pipe, nbytes(pipe.transformer)))
        arrange(pipe)

    add("BF16", None)
    for rule in ("even", "floor", "rceil", "ceil"):
        add(f"mxfp4, {rule}", Mxfp4Config(rule=rule))
    add("mxfp4, even, x in MXFP4", Mxfp4Config(activation="mxfp4"))
    add("mxfp4-dual", Mxfp4Config(format="mxfp4-dual", tail="pad"))
    add(
        "mxfp4-dual, x in MXFP4",
        Mxfp4Config(format="mxfp4-dual", tail="pad", activation="mxfp4"),
    )
    add("mxfp8", Mxfp4Config(format="mxfp8"))
    ends = ["transformer_blocks.0", "transformer_blocks.3"]
    modulation = [{"pattern": "norm1.linear", "keep": False}]
    add("mxfp4, the modulation too", Mxfp4Config(overrides=modulation))
    add("mxfp4, first and last block kept", Mxfp4Config(ignore=ends))
    room = found[-1].nbytes
    plan = plan_checkpoint(FOLDER / "transformer")
    extra = (
        sum(info.nbytes for info in open_checkpoint(FOLDER / "transformer").tensors.values())
        - plan.bytes_before
    )
    kept = keep_within(plan, room - extra, hurts())
    print(f"the budget of that keeps {', '.join(kept.names)}; {kept.share_left:.0%} of the hurt is left\n")
    add("mxfp4, the same bytes by sensitivity", Mxfp4Config(ignore=kept.config.ignore))
    precise = load().transformer
    add("mxfp4, first 8 % and last step precise", Mxfp4Config(), lambda pipe: precise_steps(pipe, precise))
    return found


def measured(
    row: Row, plain: dict[int, tuple[Tensor, float]], labels: Sequence[int], seeds: range
) -> list[str]:
    """Return the cells of a line; the first row of all is what the others are compared with."""
    judge, written = load_judge(FOLDER / "judge.safetensors")
    psnr, distance, change, right = list[float](), list[float](), list[float](), list[float]()
    for seed in seeds:
        images = row.pipe(labels, seed=seed)
        with torch.no_grad():
            distance.append(Gaussian.of(judge.features(images)).distance(written))
            right.append(float((judge(images).argmax(-1) == torch.tensor(labels)).float().mean()))
        first, before = plain.setdefault(seed, (images, distance[-1]))
        change.append(distance[-1] - before)
        error = float((images - first).square().mean())
        psnr.append(-10 * math.log10(error) if error else math.inf)
    same = math.inf in psnr
    return [
        row.name,
        f"{row.nbytes / 1000:.0f}",
        "" if same else f"{statistics.mean(psnr):.1f}",
        _mean(distance),
        "" if same else _mean(change, sign="+"),
        f"{statistics.mean(right):.1%}",
    ]


def _mean(values: Sequence[float], sign: str = "") -> str:
    return f"{statistics.mean(values):{sign}.2f} ± {statistics.stdev(values) / len(values) ** 0.5:.2f}"


def draw(found: Sequence[Row], path: Path) -> None:
    """Write one line of images for each row, the same digits from the same noise."""
    lines = [torch.cat([*row.pipe(SHOWN, seed=11)], dim=1) for row in found]
    gap = torch.zeros(3, lines[0].shape[1])
    sheet = torch.cat([piece for line in lines for piece in (line, gap)][:-1])
    pixels = Image.fromarray((255 * (1 - sheet)).round().to(torch.uint8).numpy())
    pixels.resize((pixels.width * 4, pixels.height * 4), Image.Resampling.NEAREST).save(path, optimize=True)


def main() -> None:
    """Print the table, and write the images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=500, help="images of a seed")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--images", type=Path, help="a PNG file")
    parser.add_argument("--rows", nargs="*", default=[""], help="only lines with one of these in their name")
    options = parser.parse_args()
    torch.set_num_threads(1)
    diffusers.utils.logging.disable_progress_bar()
    found = rows()
    labels = [number % CLASSES for number in range(options.number)]
    if options.images:
        draw(found, options.images)
    print("| weights | kB | PSNR, dB | distance | change | recognised |\n|---|--:|--:|--:|--:|--:|")
    plain: dict[int, tuple[Tensor, float]] = {}
    for row in found[:1] + [row for row in found[1:] if any(text in row.name for text in options.rows)]:
        began = time.monotonic()
        cells = measured(row, plain, labels, range(options.seeds))
        print(f"| {' | '.join(cells)} |", flush=True)
        print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    print(f"\n{options.number} images of each of {options.seeds} seeds; torch {torch.__version__}, ", end="")
    print(f"diffusers {mxfp4_diffusers.compat.VERSION}")


if __name__ == "__main__":
    main()
