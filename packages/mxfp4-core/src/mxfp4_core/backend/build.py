"""What torch is built for, without importing it: that takes longer than all that a verdict needs."""

from __future__ import annotations

import ast
import functools
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class TorchBuild:
    """What torch's own version file says.

    Attributes:
        version: for example ``2.13.0+cpu``.
        cuda: the CUDA release that it is built for, None for none.
        hip: the same for HIP.
    """

    version: str
    cuda: str | None
    hip: str | None


def torch_build() -> TorchBuild | None:
    """Return what torch is built for, if it is not imported by what its file says; None where nothing says it.

    Whether torch can be imported is another question.
    """
    if (torch := sys.modules.get("torch")) is not None:
        version = torch.version
        return TorchBuild(str(torch.__version__), version.cuda, version.hip)
    return _read(tuple(sys.path))


@functools.cache
def _read(path: tuple[str, ...]) -> TorchBuild | None:
    try:
        spec = find_spec("torch")
        folders = spec.submodule_search_locations if spec is not None else None
        if not folders:
            return None
        text = (Path(folders[0]) / "version.py").read_text(encoding="utf-8")
        found: dict[str, object] = {}
        for line in ast.parse(text).body:
            if isinstance(line, ast.Assign | ast.AnnAssign) and isinstance(line.value, ast.Constant):
                name = line.targets[0] if isinstance(line, ast.Assign) else line.target
                found[ast.unparse(name)] = line.value.value
        cuda, hip = (None if found[name] is None else str(found[name]) for name in ("cuda", "hip"))
        return TorchBuild(str(found["__version__"]), cuda, hip)
    except Exception:  # whatever stands in the place of torch: importing it says what is wrong
        return None


__all__ = ["TorchBuild", "torch_build"]
