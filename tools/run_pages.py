"""Run what the pages show: every Python block, and every ``mxfp4`` command of the shell blocks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^mxfp4 .*$", re.MULTILINE)
# Pages whose code stands by itself. On the others it is a fragment, with names and files of the reader's.
PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("*/mxfp4-*/README.md")),
    ROOT / "models" / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("backends", "config", "names")),
]


def run(page: Path) -> bool:
    """Run one page in a folder that has nothing but the models of the repository; say whether all of it worked."""
    text = page.read_text(encoding="utf-8")
    commands = [[sys.executable, "-c", "\n".join(PYTHON_BLOCK.findall(text))]]
    commands += [["bash", "-c", line] for line in COMMAND.findall(text)]
    # The command of this interpreter, whether its script is installed or not.
    shell = f'mxfp4() {{ "{sys.executable}" -m mxfp4_core "$@"; }}; export -f mxfp4; exec "$@"'
    with tempfile.TemporaryDirectory() as folder:
        for name in ("demo", "models"):
            (Path(folder) / name).symlink_to(ROOT / name)
        for command in commands:
            print(f"\n{page.relative_to(ROOT)}: {command[2].strip()}\n", flush=True)
            env = {**os.environ, "TQDM_DISABLE": "1"}
            if subprocess.run(
                ["bash", "-c", shell, "bash", *command], cwd=folder, env=env, check=False
            ).returncode:
                print(f"{page.relative_to(ROOT)}: that failed", file=sys.stderr)
                return False
    return True


if __name__ == "__main__":
    sys.exit(not all([run(page) for page in PAGES]))
