"""``python -m mxfp4_core`` is the command ``mxfp4``, for where its script is not installed."""

from __future__ import annotations

from mxfp4_core.cli import main

if __name__ == "__main__":
    main()
