"""Draw what ``hopper_moe.py`` and ``hopper_dense.py`` measured: time over the floor, by tokens, a panel for each shape.

Usage: python bench/hopper/plot.py bench/hopper/results/moe.json bench/hopper/results/dense.json --out docs/hopper.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

LINES = {
    "ours": ("ours", "#0b6e4f"),
    "humming": ("Humming", "#d1495b"),
    "marlin": ("Marlin", "#8d6a9f"),
    "triton_kernels": ("triton_kernels", "#edae49"),
    "bf16": ("BF16 weights", "#9aa5b1"),
}


WIDE = 4  # panels in a line


def panel(axes: Axes, shape: str, rows: list[dict[str, Any]]) -> None:
    """Draw one shape."""
    tokens = [row["m"] for row in rows]
    for who, (name, colour) in LINES.items():
        points = []
        for row in rows:
            timing = row["ours"] if who == "ours" else row["peers"].get(who)
            points.append(timing["us"] / row["floor"] if isinstance(timing, dict) else float("nan"))
        style = {"linewidth": 2.4, "zorder": 3} if who == "ours" else {"linewidth": 1.2}
        axes.plot(range(len(tokens)), points, marker="o", markersize=3, color=colour, label=name, **style)
    axes.set_title(shape, fontsize=9)
    axes.set_yscale("log", base=2)
    axes.set_yticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
    axes.set_ylim(0.9, 24)
    axes.set_xticks(range(len(tokens)), [str(m) for m in tokens])
    axes.tick_params(labelsize=7)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.grid(axis="y", linewidth=0.3)


def _shapes(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["shape"] for row in rows))


def batched(names: list[str], count: int) -> list[list[str]]:
    """Cut names into lists of so many."""
    return [names[start : start + count] for start in range(0, len(names), count)]


def main() -> None:
    """Write one figure, of lines of four panels; each file begins a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", help="files that --json wrote")
    parser.add_argument("--out", type=Path, required=True, help="SVG file")
    options = parser.parse_args()
    files = [json.loads(path.read_text(encoding="utf-8")) for path in options.results]
    mpl.rcParams.update(
        {"svg.hashsalt": "mxfp4", "svg.fonttype": "none"}
    )  # the same bytes each time, text as text
    lines = [(file["rows"], some) for file in files for some in batched(_shapes(file["rows"]), WIDE)]
    figure, grid = plt.subplots(len(lines), WIDE, figsize=(12, 2.9 * len(lines)), sharey=True, squeeze=False)
    for line, (rows, shapes) in zip(grid, lines, strict=True):
        for axes, shape in zip(line, shapes, strict=False):  # the last line of a file may be shorter
            panel(axes, shape, [row for row in rows if row["shape"] == shape])
        for axes in line[len(shapes) :]:
            axes.set_visible(False)
        line[0].set_ylabel("time / floor", fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel("tokens", fontsize=8)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=len(labels), loc="lower center", frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(options.out, metadata={"Date": None})


if __name__ == "__main__":
    main()
