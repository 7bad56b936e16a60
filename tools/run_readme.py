"""Run every Python block of the READMEs, so that what they show works."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def main() -> int:
    """Run the blocks of each README as one program in a folder of its own; return the number that failed."""
    failed = 0
    for readme in [ROOT / "README.md", *sorted(ROOT.glob("*/mxfp4-*/README.md"))]:
        program = "\n".join(BLOCK.findall(readme.read_text(encoding="utf-8")))
        if not program:
            continue
        print(f"{readme.relative_to(ROOT)}: {len(program.splitlines())} lines", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "models").symlink_to(ROOT / "models")
            failed += subprocess.run([sys.executable, "-c", program], cwd=folder, check=False).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
