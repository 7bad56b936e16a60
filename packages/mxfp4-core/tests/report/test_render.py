"""The renderers: what they show is what was measured, whatever the names, and the page stands alone."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import random
import re
from html.parser import HTMLParser
from itertools import combinations

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from mxfp4_core.report import Layer, Metrics, Report, Spread
from mxfp4_core.report.html import render_html
from mxfp4_core.report.html.plots import linear, logarithmic
from mxfp4_core.report.naming import kind_of, layer_of, printable
from mxfp4_core.report.render import render_csv, render_json, render_markdown, render_text
from mxfp4_core.report.trades import trades
from mxfp4_core.report.wording import decibels, percent

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</table></style><style>*{display:none}",
    "=HYPERLINK(0)",
    "a|b`c`*d*\nnew line\x1b[31m",
    "\u202egnp.exe",
    "model.layers.&lt;b&gt;.'quoted'",
)
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def some_metrics(seed: int) -> Metrics:
    source = random.Random(seed)
    values = source.randrange(1000, 10**8)
    return Metrics(
        values,
        signal=values * 1e-4,
        noise=values * 1e-6 * source.uniform(1, 2),
        saturated=source.randrange(values // 50),
        flushed=source.randrange(values // 8),
        max_error=source.random(),
        histogram={byte: source.randrange(1, 10**6) for byte in range(112, 125)},
    )


def layer(name: str, seed: int, variants: tuple[str, ...], *, experts: int = 1) -> Layer:
    size = 1 << random.Random(seed).randrange(12, 24)
    spread = {each: Spread(experts, 17.0, 18.0, 19.0, 3) for each in variants} if experts > 1 else {}
    return Layer(
        name=name,
        kind=kind_of(name),
        index=layer_of(name),
        dtype="BF16",
        shape=(size // 64, 32),
        tensors=experts,
        decision="quantised",
        reason="a linear or expert weight",
        bytes_before=size,
        bytes_after=size * 17 // 64,
        results={each: some_metrics(seed + place) for place, each in enumerate(variants)},
        spread=spread,
    )


def kept(name: str) -> Layer:
    return Layer(
        name, kind_of(name), layer_of(name), "BF16", (64,), 1, "kept", "a vector has no rows", 128, 128
    )


def report(
    layers: int = 4, variants: tuple[str, ...] = ("even/even",), extra: tuple[Layer, ...] = ()
) -> Report:
    names = [f"model.layers.{n}.block.{kind}.weight" for n in range(layers) for kind in KINDS]
    found = [layer(name, seed, variants) for seed, name in enumerate(names)]
    environment = {
        "created": "2026-11-20T12:00:00Z",
        "command": "mxfp4 report",
        "versions": {"python": "3.11"},
    }
    mode = "measured" if len(variants) == 1 else "compared"
    target = "/models/q" if mode == "measured" else None
    return Report(mode, "/models/m", target, variants, (*found, kept("norm.weight"), *extra), (), environment)


class Page(HTMLParser):
    """Collects what a browser would act on."""

    VOID = frozenset({"meta", "link", "input", "wbr", "br", "path"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self._in = ""
        self._cell = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self._cell = tag in ("td", "th") or (self._cell and tag in ("wbr", "small", "button", "b"))
        if tag in ("script", "style"):
            self._in = tag

    def handle_endtag(self, tag: str) -> None:
        if tag in ("table", "td", "th"):
            self._cell = False
        if tag == self._in:
            self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in == "script":
            self.scripts.append(data)
        elif not self._in:
            self.words.append(data)
            if self._cell:
                self.rows[-1][-1] += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def test_the_table_holds_the_figures() -> None:
    data = report(2)
    rows = {row[0].strip(): row for row in Page(render_html(data)).rows if row}
    for each in data.layers:
        row = rows[each.name]
        if each.decision == "quantised":
            found = each.results["even/even"]
            assert row[1] == decibels(found)
            assert row[2] == percent(found.flushed_share)
            assert row[3] == percent(found.saturated_share)
            assert row[7] == "MXFP4"
        else:
            assert row[1] == ""
            assert row[11].strip() == each.reason


@pytest.mark.parametrize("variants", [("even/even",), ("floor/even", "even/even", "quark")])
def test_the_page_stands_alone(variants: tuple[str, ...]) -> None:
    text = render_html(report(variants=variants))
    page = Page(text)
    for _, attributes in page.tags:
        for name in ("src", "href", "action", "data"):
            target = attributes.get(name) or "#"
            assert target.startswith("#") or target == "data:,", target
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"@import|url\(|https?:|fetch\(|XMLHttpRequest|eval\(|innerHTML", text)
    assert page.count("script") == 1
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    (policy,) = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


@pytest.mark.parametrize("variants", [("even/even",), ("floor/even", "even/even", "quark")])
def test_the_page_can_be_read_by_all(variants: tuple[str, ...]) -> None:
    page = Page(render_html(report(variants=variants)))
    identities = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(identities) == len(set(identities))
    drawings = [a for tag, a in page.tags if tag == "svg" and a.get("role") == "img"]
    assert len(drawings) == 6 * len(variants)
    for attributes in drawings:
        title, description = str(attributes["aria-labelledby"]).split()
        assert {title, description} <= set(identities)
    assert page.count("desc") == len(drawings)
    assert ("html", {"lang": "en"}) in page.tags
    assert all(a.get("scope") in ("col", "row") for tag, a in page.tags if tag == "th")
    radios = [a for _, a in page.tags if a.get("type") == "radio"]
    assert len(radios) == (0 if len(variants) == 1 else len(variants))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_text(name: str) -> None:
    plain, variants = report(), ("even/even",)
    extra = (layer(name, 1, variants), layer(f"model.layers.1.{name}.weight", 2, variants), kept(name))
    data = Report("measured", name, name, variants, (*plain.layers, *extra), (name,), {"command": name})
    expected = Report("measured", "s", "q", variants, (*plain.layers, *extra), ("x",), {"command": "c"})
    page, usual = Page(render_html(data)), Page(render_html(expected))
    for tag in ("script", "style", "img", "b", "table", "svg", "a"):
        assert page.count(tag) == usual.count(tag)
    assert page.count("script") == 1
    assert page.count("img") == 0
    assert printable(name) in "".join(page.words).replace("\n", "")
    for text in (render_html(data), render_markdown(data), render_text(data), render_csv(data)):
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert all(
        line.count("|") - line.count("\\|") in (0, 4, 8, 12) for line in render_markdown(data).splitlines()
    )
    assert name in json.loads(render_json(data))["tensors"][-1]["name"]


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=60))
@example("o_proj")
@example("o_proj.weight")
def test_any_name_gives_the_same_page_structure(name: str) -> None:
    assume(layer_of(name) is None)  # a layer of its own would move the axis
    data = report(1, extra=(layer(name, 5, ("even/even",)),))
    # A kind that other layers have shares their line of the legend and their dots; any other has its own.
    like = kind_of(name) if kind_of(name) in KINDS else "plain"
    usual = report(1, extra=(layer(f"model.{like}.weight", 5, ("even/even",)),))
    strip = [tag for tag, _ in Page(render_html(data)).tags if tag != "wbr"]
    assert strip == [tag for tag, _ in Page(render_html(usual)).tags if tag != "wbr"]


@pytest.mark.parametrize("variants", [("even/even",), ("floor/even", "even/even", "rceil/even", "ceil/even")])
def test_a_thousand_tensors_take_less_than_500_kb(variants: tuple[str, ...]) -> None:
    layers = tuple(kept(f"model.layers.{number}.input_layernorm.weight") for number in range(22))
    data = report(140, variants, layers)
    assert len(data.layers) > 1000
    assert len(render_html(data).encode()) < 500_000


def test_every_state_is_shown_in_words() -> None:
    base = layer("x.weight", 1, ("even/even",))
    states = {
        "exact": Metrics(10, 1.0, 0.0),
        "no signal": Metrics(10, 0.0, 1.0, zeros=10),
        "not finite": Metrics(10, 1.0, 0.1, nonfinite=3, histogram={255: 1}),
    }
    for word, found in states.items():
        extra = Layer(**{**vars(base), "name": f"odd.{word}", "results": {"even/even": found}})
        for data in (report(extra=(extra,)), Report("measured", "s", "q", ("even/even",), (extra,))):
            assert word in render_html(data)
            assert word in render_markdown(data)
            row = next(line for line in csv.DictReader(io.StringIO(render_csv(data))) if word in line["name"])
            assert row["sqnr_db"] == ""
            assert row["sqnr_state"] == found.state
            json.loads(render_json(data), parse_constant=lambda text: pytest.fail(text))


def test_a_report_without_quantised_tensors_has_a_page() -> None:
    data = Report("measured", "s", "q", ("even/even",), (kept("norm.weight"),))
    assert "norm" in render_html(data)
    assert render_text(data)
    assert render_markdown(data)
    json.loads(render_json(data))
    assert render_html(Report("compared", "s", None, ("even/even", "quark"), ()))


def test_problems_are_on_the_page() -> None:
    data = Report("measured", "s", "q", ("even/even",), (kept("a"),), ("a: is odd",))
    assert 'role="alert"' in render_html(data)
    assert "a: is odd" in render_html(data)
    assert "a: is odd" in render_markdown(data)


def test_csv_has_a_line_per_tensor_and_variant_in_full_precision() -> None:
    data = report(2, ("floor/even", "even/even"))
    rows = list(csv.DictReader(io.StringIO(render_csv(data))))
    assert len(rows) == 2 * 14 + 1
    for row in rows:
        found = next(each for each in data.layers if each.name == row["name"])
        if row["variant"]:
            assert float(row["sqnr_db"]) == found.results[row["variant"]].sqnr_db
            assert float(row["squared_error"]) == found.results[row["variant"]].noise


def test_json_says_its_schema_and_where_it_was_made() -> None:
    data = json.loads(render_json(report()))
    assert (data["schema"], data["schema_version"]) == ("mxfp4-report", 1)
    assert data["versions"] == {"python": "3.11"}
    assert data["tensors"][0]["results"]["even/even"]["scale_byte_histogram"]["112"] > 0


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), min_size=1, max_size=7))
def test_each_prefix_of_the_trade_is_the_best_for_its_bytes(sizes: list[tuple[int, int]]) -> None:
    layers = [
        Layer(
            f"t{n}",
            "t",
            None,
            "BF16",
            (1,),
            1,
            "quantised",
            "",
            grow + 1,
            1,
            {"v": Metrics(1, 1.0, float(error))},
        )
        for n, (grow, error) in enumerate(sizes)
    ]
    total = sum(error for _, error in sizes)
    for step in trades(layers, "v"):
        best = max(
            sum(error for _, error in chosen)
            for count in range(len(sizes) + 1)
            for chosen in combinations(sizes, count)
            if sum(grow for grow, _ in chosen) <= step.total_added
        )
        assert step.share_left * total == pytest.approx(total - best, abs=1e-9)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5), st.booleans())
@example([5e-324], True)
@example([1e6, 1e6 + 1e-9], False)
def test_a_linear_axis_holds_its_values(values: list[float], zero: bool) -> None:
    axis = linear("x", values, str, zero=zero)
    span = axis.high - axis.low
    assert all(axis.low - span * 1e-6 <= value <= axis.high + span * 1e-6 for value in values)
    assert 2 <= len(axis.ticks) <= 9
    assert axis.place(axis.low) == 0.0
    assert axis.place(axis.high) == 1.0


@given(st.lists(st.floats(1e-12, 1e12), min_size=1, max_size=5), st.sampled_from([2, 10]))
def test_a_logarithmic_axis_holds_its_values(values: list[float], base: int) -> None:
    axis = logarithmic("x", values, str, base=base)
    assert axis.low <= min(values) * (1 + 1e-6)
    assert axis.high >= max(values) * (1 - 1e-6)
    assert 2 <= len(axis.ticks) <= 8
    places = [axis.place(value) for value in sorted(values)]
    assert places == sorted(places)
