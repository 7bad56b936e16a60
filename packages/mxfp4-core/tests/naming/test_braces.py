from __future__ import annotations

from mxfp4_core.naming.braces import collapse


def test_numbers_become_ranges() -> None:
    assert collapse(["a.0.b", "a.1.b", "a.3.b"]) == ["a.{0-1, 3}.b"]
    assert collapse(["a.0.b.1", "a.0.b.2", "a.1.b.1"]) == ["a.0.b.{1-2}", "a.1.b.1"]


def test_names_from_anyone() -> None:
    assert collapse(["a.*.0", "a.*.1", "*"]) == ["a.*.{0-1}", "*"]
    big = "9" * 5000
    assert collapse([f"a.{big}", "a.7"]) == [f"a.{big}", "a.7"]
