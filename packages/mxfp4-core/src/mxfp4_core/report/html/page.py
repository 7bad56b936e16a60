"""One HTML page that stands alone: no script, style, font or picture from elsewhere, and nothing sent anywhere.

The plots and tables are complete without scripts. The script adds sorting, filtering, the choice of the rule and the
reading of single dots. A content security policy on the page forbids everything that the page does not bring itself.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import PurePath

from mxfp4_core._text import short_size_text
from mxfp4_core.report.html.charts import plots
from mxfp4_core.report.html.plots import HOLLOW
from mxfp4_core.report.html.scene import Scene
from mxfp4_core.report.html.tables import details, name_html, tensor_table, text, variant_table
from mxfp4_core.report.html.worst import worst
from mxfp4_core.report.model import Report
from mxfp4_core.report.wording import number_db, percent


def render_html(report: Report) -> str:
    """Return the whole page."""
    scene = Scene.of(report)
    style = _asset("page.css") + _variant_style(report)
    script = _asset("page.js")
    title = text(f"MXFP4 report: {PurePath(report.source).name or report.source}")
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src '{_digest(script)}'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="generator" content="mxfp4-core">'
        f'<link rel="icon" href="data:,"><title>{title}</title>\n<style>{style}</style></head>\n'
        f'<body data-v="{_best(report)}"><main><header><h1>{title}</h1>{_paths(report)}</header>\n'
        f"{_findings(report)}{_tiles(report)}{_chooser(report)}{_legend(scene)}\n"
        f'<section class="plots" aria-label="Plots">{worst(scene)}\n'
        f"{''.join(plot.html() + chr(10) for plot in plots(scene))}</section>\n"
        f"{_table_section(scene)}{_about(report)}</main>"
        f'<div id="tip" role="status" aria-live="polite" hidden></div><script>{script}</script></body></html>\n'
    )


def _asset(name: str) -> str:
    return files("mxfp4_core.report.html").joinpath(name).read_text("utf-8")


def _digest(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _variant_style(report: Report) -> str:
    count, width = len(report.variants), len(details(report))
    rules = [f'[data-v="{chosen}"] .v:not(.v{chosen}){{display:none}}' for chosen in range(count)]
    first = 2 + count
    for chosen in range(count):
        for other in range(count):
            if other != chosen:
                start = first + other * width
                cells = f":nth-child(n+{start}):nth-child(-n+{start + width - 1})"
                rules.append(f'[data-v="{chosen}"] #tensors {cells}:is(td,th){{display:none}}')
    return "\n".join(rules)


def _paths(report: Report) -> str:
    rows = [("Source", report.source)]
    if report.quantised is not None:
        rows += [("Quantised", report.quantised), ("Rule", report.variants[0])]
    else:
        rows += [("Compared", ", ".join(report.variants))]
    if created := report.environment.get("created"):
        rows += [("Made", str(created))]
    return f"<dl>{''.join(f'<div><dt>{name}</dt><dd>{text(value)}</dd></div>' for name, value in rows)}</dl>"


def _findings(report: Report) -> str:
    if not report.findings:
        return ""
    count = len(report.findings)
    items = "".join(f"<li>{text(finding)}</li>" for finding in report.findings)
    word = "finding" if count == 1 else "findings"
    return f'<section class="alert" role="alert"><h2>⚠ {count} {word}</h2><ul>{items}</ul></section>'


def _tiles(report: Report) -> str:
    before, after = report.bytes_before, report.bytes_after
    quantised = report.quantised_layers
    tiles = [
        (
            "Size",
            short_size_text(after),
            f"from {short_size_text(before)}, {before / after:.2f} times smaller" if after else "",
        )
    ]
    tensors = sum(layer.tensors for layer in report.layers)
    done = sum(layer.tensors for layer in quantised)
    share = sum(layer.bytes_before for layer in quantised) / before if before else 0.0
    tiles.append(("Quantised", f"{done} of {tensors}", f"tensors; {percent(share)} of the bytes"))
    if len(report.variants) != 1:
        return _tile_html(tiles) + f'<section class="card">{variant_table(report)}</section>'
    summary = report.summary(report.variants[0])
    total = summary.total
    worst_name = (summary.worst or "").removesuffix(".weight")
    tiles += [
        (
            "SQNR, all weights",
            f"{number_db(total.sqnr_db)} dB",
            f"median tensor {number_db(summary.median)} dB",
        ),
        ("Worst tensor", f"{number_db(summary.worst_db)} dB", worst_name),
        ("Flushed to zero", percent(total.flushed_share), "of the values"),
        ("Clipped", percent(total.saturated_share), "of the values"),
    ]
    return _tile_html(tiles)


def _tile_html(tiles: list[tuple[str, str, str]]) -> str:
    parts = (
        f"<div class=tile><dt>{name}</dt><dd><b>{text(value)}</b><small>{name_html(note)}</small></dd></div>"
        for name, value, note in tiles
    )
    return f'<dl class="tiles">{"".join(parts)}</dl>'


def _chooser(report: Report) -> str:
    if len(report.variants) < 2:
        return ""
    best = _best(report)
    choices = "".join(
        f'<label><input type="radio" name="variant" value="{number}"{" checked" * (number == best)}>'
        f"<span>{text(variant)}</span></label>"
        for number, variant in enumerate(report.variants)
    )
    return f'<fieldset class="chooser" id="chooser"><legend>Rule shown below</legend>{choices}</fieldset>'


def _best(report: Report) -> int:
    found = [report.summary(variant).total.sqnr_db or 0.0 for variant in report.variants]
    return found.index(max(found))


def _legend(scene: Scene) -> str:
    items = "".join(
        f'<li><button type="button" data-k="{kind}" aria-pressed="false">{_mark(kind)}{text(name)}</button></li>'
        for kind, name in scene.legend()
    )
    return (
        f'<ul class="legend" aria-label="Kinds of tensors; press one to see it alone">{items}</ul>'
        if items
        else ""
    )


def _mark(kind: int) -> str:
    hole = f'<path class="hole k{kind}" d="M7 7z"/>' if kind in HOLLOW else ""
    drawing = f'<path class="k k{kind}" d="M7 7z"/>{hole}'
    return f'<svg class="mark" width="14" height="14" aria-hidden="true">{drawing}</svg>'


def _table_section(scene: Scene) -> str:
    return (
        '<section class="card wide" id="table"><h2>All tensors</h2><div class="tools">'
        '<label>Name contains <input type="search" id="filter" autocomplete="off" spellcheck="false"></label>'
        '<label>Stored as <select id="stored"><option value="">all<option value="quantised">MXFP4'
        '<option value="kept">high precision</select></label><output id="count" aria-live="polite"></output></div>'
        '<div class="scroll" tabindex="0" role="region" aria-label="All tensors, scrolls sideways">'
        f"{tensor_table(scene)}</div></section>"
    )


def _about(report: Report) -> str:
    versions: Mapping[str, str] = report.environment.get("versions", {})
    machine: Mapping[str, object] = report.environment.get("machine", {})
    rows = [
        ("Command", report.environment.get("command", "")),
        ("Machine", ", ".join(str(machine[key]) for key in ("processor", "system") if machine.get(key))),
        ("Versions", ", ".join(f"{name} {number}" for name, number in versions.items() if number)),
    ]
    shown = "".join(
        f"<div><dt>{name}</dt><dd><code>{text(str(value))}</code></dd></div>" for name, value in rows if value
    )
    return (
        f'<section class="card wide about"><h2>How to read this</h2>{_DEFINITIONS}<dl>{shown}</dl></section>'
    )


_DEFINITIONS = """<p><b>SQNR</b> is 10 log10 of the sum of squared weights over the sum of squared errors, in float64;
<b>exact</b> means no error at all. <b>Relative error</b> is the inverse ratio. <b>Flushed</b>: not zero before, zero
after. <b>Clipped</b>: larger than six times the scale of the block. A <b>scale byte</b> b stands for 2 to the power of
b - 127.</p><p>For scale: normally distributed weights give 19.0 dB with the rule even. A tensor a decibel below others
of its kind has outliers or rows of different size. These figures are about weights; what a model loses is measured on
text, not here.</p>"""

__all__ = ["render_html"]
