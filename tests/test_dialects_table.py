"""docs/dialects.md says what the code does."""

from __future__ import annotations

from pathlib import Path

import dialects_table


def test_the_page_has_the_table(tmp_path: Path) -> None:
    text = dialects_table.PAGE.read_text(encoding="utf-8")
    assert text == dialects_table.page(text, dialects_table.table(tmp_path / "table")), (
        "run: python tools/linked.py tools/dialects_table.py"
    )
