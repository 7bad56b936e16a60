"""The pages on names and config: their Python runs and gives what it says, their tables are complete."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from mxfp4_core.config.schema import Mxfp4Config, Override

DOCS = Path(__file__).parents[4] / "docs"


@pytest.mark.parametrize("page", ["names.md", "config.md"])
def test_the_examples_give_what_they_say(page: str) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    scope: dict[str, Any] = {}
    compared = 0
    for line in code.splitlines():
        expression, _, comment = line.partition("  # ") if "  # " in line else line.partition(" # ")
        try:
            expected = eval(comment) if comment else None
        except SyntaxError:
            expected = None
        if expected is None:
            exec(line, scope)
        else:
            compared += 1
            assert eval(expression, scope) == expected, line
    assert compared


def test_the_example_file_is_a_config() -> None:
    texts = re.findall(r"```toml\n(.*?)```", (DOCS / "config.md").read_text(encoding="utf-8"), re.DOTALL)
    whole, options = (Mxfp4Config.from_dict(tomllib.loads(text)) for text in texts)
    assert [override.keep for override in whole.overrides] == [None, False]
    assert options.backend_options == {"rocm": {"provider": "triton"}}


def test_the_tables_list_every_key_with_its_default() -> None:
    text = (DOCS / "config.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", text, re.MULTILINE))
    assert set(rows) == set(Mxfp4Config.model_fields)
    default = {"format": Mxfp4Config().format, **Mxfp4Config().to_dict()}
    for key, shown in rows.items():
        if shown.startswith("`"):
            assert shown.strip("`") == default.get(key, "even"), key
    assert all(f"`{key}" in text for key in Override.model_fields)
