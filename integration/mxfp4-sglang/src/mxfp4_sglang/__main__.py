"""Say whether SGLang can load this package here, and if not, why: ``python -m mxfp4_sglang``."""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points

from mxfp4_core.errors import Mxfp4Error
from mxfp4_sglang.words import FIRST, FIRST_DIFFUSION, METHOD, METHOD_FP8, check_version, installed_version

GROUPS = {"sglang.srt.plugins": FIRST, "sglang.multimodal_gen.plugins": FIRST_DIFFUSION}
"""The groups of entry points that SGLang reads, each with its first release."""


def problems(group: str) -> list[str]:
    """Return what keeps SGLang from loading this package by one group of entry points."""
    found = []
    if not any(point.name == "mxfp4" for point in entry_points(group=group)):
        found.append("no entry point mxfp4: install mxfp4-sglang with pip into this environment")
    allowed = [name.strip() for name in os.environ.get("SGLANG_PLUGINS", "").split(",") if name.strip()]
    if allowed and "mxfp4" not in allowed:
        found.append(f"SGLANG_PLUGINS allows {', '.join(allowed)} only: add mxfp4")
    try:
        check_version(installed_version(), GROUPS[group])
    except Mxfp4Error as error:
        found.append(str(error))
    return found


def main() -> int:
    """Print one line for each group, and return 1 where language models cannot use the package."""
    found = {group: problems(group) for group in GROUPS}
    for group, texts in found.items():
        print(f"{group}: " + ("; ".join(texts) or f"--quantization {METHOD} and {METHOD_FP8} are there"))
    return int(bool(found["sglang.srt.plugins"]))


if __name__ == "__main__":
    sys.exit(main())
