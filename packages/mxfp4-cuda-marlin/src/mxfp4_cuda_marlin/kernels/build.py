"""Compile CUDA C++ with NVRTC, once: machine code is kept in the user's cache folder.

A file of the cache is named by a hash of everything that decides its bytes: source, options, version of NVRTC. It is
written aside and renamed, so that processes and threads which compile at the same time cannot see half a file; NVRTC
runs in several threads at once. A folder that cannot be written costs a call time, never its result.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from mxfp4_core.errors import BackendError, OutputError

ARCH = "sm_90a"
PACKAGES = "'cuda-bindings>=12.8' 'nvidia-cuda-nvrtc>=12.8'"
_OPTIONS = (f"--gpu-architecture={ARCH}", "--std=c++17", "-default-device")
# What ptxas says, in no more than a line of its log, where wgmma waits for each product before it begins the next.
_SERIALIZED = "wgmma.mma_async instructions are serialized"
_lock = threading.Lock()
_told = False


def cache_folder() -> Path:
    """Return where compiled kernels are kept: ``$XDG_CACHE_HOME/mxfp4-cuda-marlin``, by default below ``~/.cache``."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(root) if os.path.isabs(root) else Path.home() / ".cache"
    return base / "mxfp4-cuda-marlin"


def bindings(name: str) -> Any:
    """Import ``cuda.bindings.<name>``.

    Raises:
        BackendError: the package, or the library that it loads, is missing.
    """
    try:
        return import_module(f"cuda.bindings.{name}")
    except ImportError as error:
        raise BackendError(
            "the SM90 kernels",
            seen=f"importing cuda.bindings.{name} failed: {error}",
            rule="they are compiled on this machine by NVRTC, which is reached through the package cuda-bindings",
            fix=f"pip install {PACKAGES}",
        ) from error


def check(answer: tuple[Any, ...], what: str) -> Any:
    """Return what a call of cuda.bindings returned beside its status.

    Raises:
        BackendError: the status is an error.
    """
    if int(answer[0]) != 0:
        raise BackendError(
            what,
            seen=f"{answer[0]!r}",
            rule="the call succeeds",
            fix="check that the driver is not older than CUDA of cuda-bindings; if it is not, report this as a defect",
        )
    return answer[1] if len(answer) == 2 else answer[1:]


def machine_code(source: str, defines: Mapping[str, int], what: str) -> bytes:
    """Return the machine code of a source, from the cache or compiled now; says so once on standard error.

    Args:
        source: CUDA C++.
        defines: macros.
        what: what is compiled, for messages.

    Raises:
        BackendError: NVRTC is missing or refuses the source.
    """
    nvrtc = bindings("nvrtc")
    path = _path(nvrtc, source, defines)
    code = _kept(path)
    if code is None:
        _tell(path.parent)
        code = _compile(nvrtc, source, _options(defines), what)
        _keep(path, code)
    return code


def is_kept(source: str, defines: Mapping[str, int]) -> bool:
    """Say whether the cache holds the machine code of a source.

    Raises:
        BackendError: NVRTC is missing.
    """
    return _kept(_path(bindings("nvrtc"), source, defines)) is not None


def compile_ahead(source: str, defines: Mapping[str, int], what: str) -> None:
    """Compile a source into the cache, and print nothing; for arguments see ``machine_code``.

    Raises:
        BackendError: NVRTC is missing or refuses the source.
        OutputError: the folder of the cache cannot be written.
    """
    nvrtc = bindings("nvrtc")
    path = _path(nvrtc, source, defines)
    _keep(path, _compile(nvrtc, source, _options(defines), what))
    if _kept(path) is None:
        raise OutputError(
            f"keeping {what}",
            seen=f"{path.parent} cannot be written, or is full",
            rule="kernels that are compiled ahead are kept there",
            fix="make room, or set XDG_CACHE_HOME to a folder that can be written, here and where the model runs",
        )


def _kept(path: Path) -> bytes | None:
    with contextlib.suppress(OSError):
        code = path.read_bytes()
        if code.startswith(b"\x7fELF"):
            return code
    return None


def _nvrtc_version(nvrtc: Any) -> str:
    try:
        answer = nvrtc.nvrtcVersion()
    except (RuntimeError, ImportError, OSError) as error:  # cuda.bindings loads the library at the first call
        raise BackendError(
            "the SM90 kernels",
            seen=f"loading NVRTC failed: {str(error).strip()}",
            rule="they are compiled on this machine by NVRTC 12.8 or later",
            fix=f"pip install {PACKAGES}, or install the CUDA toolkit",
        ) from error
    return ".".join(map(str, check(answer, "asking NVRTC for its version")))


def _tell(folder: Path) -> None:
    global _told
    with _lock:
        first, _told = not _told, True
    if first:
        print(
            f"mxfp4-cuda-marlin: compiling kernels for {ARCH}, some seconds each, once; they are kept in {folder}",
            file=sys.stderr,
            flush=True,
        )


def _compile(nvrtc: Any, source: str, options: list[str], what: str) -> bytes:
    program = check(nvrtc.nvrtcCreateProgram(source.encode(), b"mxfp4.cu", 0, [], []), f"compiling {what}")
    try:
        answer = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        log = bytes(check(nvrtc.nvrtcGetProgramLogSize(program), f"compiling {what}"))
        nvrtc.nvrtcGetProgramLog(program, log)  # fills the object in place, as nvrtcGetCUBIN does
        said = log.decode(errors="replace").strip("\0\n ")
        if int(answer[0]) != 0:
            raise BackendError(
                f"compiling {what}",
                seen=said,
                rule=f"NVRTC compiles it for {ARCH}",
                fix="update nvidia-cuda-nvrtc to 12.8 or later; if it is, report this as a defect",
            )
        if _SERIALIZED in said:
            who = f"{what}: NVRTC {_nvrtc_version(nvrtc)}"
            warnings.warn(
                f"{who} lets no two products be under way; results are right, but late",
                RuntimeWarning,
                stacklevel=2,
            )
        code = bytes(check(nvrtc.nvrtcGetCUBINSize(program), f"compiling {what}"))
        check(nvrtc.nvrtcGetCUBIN(program, code), f"compiling {what}")
        return code
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _keep(path: Path, code: bytes) -> None:
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(code)
            os.replace(aside, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(aside)
            raise


def forget(source: str, defines: Mapping[str, int]) -> None:
    """Remove one entry of the cache, for machine code that the driver refused."""
    with contextlib.suppress(OSError):
        _path(bindings("nvrtc"), source, defines).unlink()


def _options(defines: Mapping[str, int]) -> list[str]:
    return [*_OPTIONS, *(f"-D{key}={value}" for key, value in sorted(defines.items()))]


def _path(nvrtc: Any, source: str, defines: Mapping[str, int]) -> Path:
    parts = [source, *_options(defines), _nvrtc_version(nvrtc)]
    return cache_folder() / f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()}.cubin"


__all__ = [
    "ARCH",
    "PACKAGES",
    "bindings",
    "cache_folder",
    "check",
    "compile_ahead",
    "forget",
    "is_kept",
    "machine_code",
]
