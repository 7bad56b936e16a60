"""The kinds of hardware that packages of this repository serve, and what must pass on each: ``nox -s NAME``."""

from __future__ import annotations

from dataclasses import dataclass

import vendor_wheels


@dataclass(frozen=True)
class Target:
    """One kind of hardware, and all that must pass there.

    Attributes:
        backend: the backend that serves it; a skip in its conformance suite is a failure.
        tests: files and folders of tests.
        device: what torch calls an accelerator of this kind; the tests of the adapters then run on it, too.
        workers: processes of pytest-xdist that share it; 0 for none.
        sanitized: a script that NVIDIA's compute-sanitizer watches; it comes with the CUDA toolkit.
        arch: type of such a device, and beginnings of its architecture with commas between. Where there is none, the
            session says so and runs ``elsewhere``; without it, it fails there.
        elsewhere: tests of what can be proven without the device.
        vendor: the wheels of ``tools/vendor_wheels.py`` that these need; they are fetched, and nothing is skipped.
    """

    backend: str
    tests: tuple[str, ...]
    device: str = ""
    workers: int = 0
    sanitized: str = ""
    arch: tuple[str, str] = ("", "")
    elsewhere: tuple[str, ...] = ()
    vendor: tuple[str, ...] = ()


# Tests of the core that are skipped where there is no GPU.
ON_ANY_GPU = (
    "packages/mxfp4-core/tests/loader/test_device.py",
    "packages/mxfp4-core/tests/testing/test_graphs.py::test_the_suite_captures_graphs",
)

# One row for each kind of hardware that a package in this repository serves. A new backend adds its row,
# and the session ``nox -s NAME`` follows from it.
TARGETS = {
    "cpu": Target("reference", ("packages/mxfp4-core/tests/backend/test_conformance.py",)),
    "sm90": Target(
        "cuda-marlin",
        ("packages/mxfp4-cuda-marlin/tests", *ON_ANY_GPU),
        device="cuda",
        workers=8,
        sanitized="packages/mxfp4-cuda-marlin/tests/sanitized.py",
    ),
    "gfx95x": Target(
        "rocm",
        ("packages/mxfp4-rocm/tests", *ON_ANY_GPU),
        device="cuda",  # as torch calls AMD's, too
        arch=("hip", "gfx95"),
        elsewhere=("packages/mxfp4-rocm/tests",),
        vendor=("amd-aiter",),
    ),
    "ascend": Target(
        "npu",
        ("packages/mxfp4-npu/tests",),
        device="npu",
        arch=("npu", "Ascend950"),
        elsewhere=("packages/mxfp4-npu/tests",),
        vendor=tuple(key for key in vendor_wheels.WHEELS if key.startswith("torch-npu")),
    ),
    "cdna": Target(
        "petit",
        ("packages/mxfp4-petit/tests", *ON_ANY_GPU),
        device="cuda",
        arch=("hip", "gfx90a,gfx942"),
        elsewhere=("packages/mxfp4-petit/tests",),
        vendor=("petit-kernel",),
    ),
}

__all__ = ["TARGETS", "Target"]
