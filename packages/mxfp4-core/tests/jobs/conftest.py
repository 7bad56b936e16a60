"""What several tests of the jobs share."""

from __future__ import annotations

from pathlib import Path

import pytest
from plan_models import moe, write


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "moe", *moe())
