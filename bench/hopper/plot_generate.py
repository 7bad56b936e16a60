"""Draw what ``hopper_generate.py`` measured: how many times as fast MXFP4 is as BF16, a panel for each model.

Usage: python bench/hopper/plot_generate.py bench/hopper/results/generate.json --out docs/generation.svg

Of files that have the same figure of a model, the last one counts.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

COLOURS = {"eager": "#9aa5b1", "static": "#edae49", "step": "#0b6e4f", "prefill": "#8d6a9f"}
Ratios = dict[str, float]


def _part(name: str) -> str:
    return name.replace(",", " ").split()[0]


def ratios(paths: list[Path]) -> dict[str, Ratios]:
    """Return the speeds of MXFP4 over those of BF16, by model and by what they are of."""
    found: dict[str, Ratios] = defaultdict(dict)
    for path in paths:
        for model, figures in json.loads(path.read_text(encoding="utf-8")).items():
            for what, was in figures["bf16"].items():
                name, _, unit = what.rpartition(", ")
                if name and _part(name) in COLOURS:
                    now = figures["mxfp4"][what]
                    found[model][name] = was / now if unit == "ms" else now / was
    return found


def panel(axes: Axes, model: str, rows: Ratios) -> None:
    """Draw one model."""
    order = sorted(rows, key=lambda name: [*COLOURS].index(_part(name)))
    values = [rows[name] for name in order]
    bars = axes.barh(order, values, color=[COLOURS[_part(name)] for name in order])
    axes.bar_label(bars, [f"{value:.2f}" for value in values], padding=3, fontsize=8)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_title(model, fontsize=10)
    axes.set_xlim(0, 3.4)
    axes.tick_params(labelsize=8)
    axes.set_xlabel("times as fast as BF16", fontsize=8)


def main() -> None:
    """Write one figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", help="files that --json wrote")
    parser.add_argument("--out", type=Path, required=True, help="SVG file")
    options = parser.parse_args()
    models = ratios(options.results)
    mpl.rcParams.update({"svg.hashsalt": "mxfp4", "svg.fonttype": "none"})  # the same bytes, text as text
    figure, grid = plt.subplots(1, len(models), figsize=(4.2 * len(models), 3.4), squeeze=False)
    for axes, (model, rows) in zip(grid[0], models.items(), strict=True):
        panel(axes, model, rows)
    figure.tight_layout()
    figure.savefig(options.out, metadata={"Date": None})


if __name__ == "__main__":
    main()
