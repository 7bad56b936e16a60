"""Which accelerators this process can use, found without starting any of them.

Creating a CUDA or HIP context takes seconds and hundreds of MiB and breaks later forks, so nothing here does
it: NVIDIA devices are read through the driver's management library (NVML), AMD devices through the kernel's
topology files, Ascend devices through their device nodes. Only where torch has already started a device, or
where several different NVIDIA devices are visible and only CUDA knows their order, is torch asked; what it is
built for is read from its version file. Nothing here raises: what could not be found out is a note.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from mxfp4_core.backend.build import TorchBuild, torch_build

if TYPE_CHECKING:
    import torch

KFD_NODES = Path("/sys/class/kfd/kfd/topology/nodes")
DEV = Path("/dev")

_NVIDIA = ("CUDA_VISIBLE_DEVICES",)
_AMD = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_ASCEND = ("ASCEND_RT_VISIBLE_DEVICES",)
_VISIBILITY = tuple(dict.fromkeys((*_NVIDIA, *_AMD, *_ASCEND)))


@dataclass(frozen=True)
class Device:
    """One place where a problem can run.

    Attributes:
        type: ``cpu``, ``cuda`` (NVIDIA), ``hip`` (AMD; torch calls it cuda) or ``npu`` (Ascend).
        arch: ``x86_64``, ``sm_90``, ``gfx950``, …; ``unknown`` where it cannot be told without starting the
            device.
        name: the vendor's name, for people.
        index: number of the device among the visible ones of its type.
        memory_bytes: size of its memory, None if unknown.
    """

    type: str
    arch: str
    name: str = ""
    index: int = 0
    memory_bytes: int | None = None

    def __str__(self) -> str:
        return f"{self.type} {self.arch}" + (f" ({self.name})" if self.name else "")

    @property
    def torch_type(self) -> str:
        """The type that torch uses: it calls AMD's devices ``cuda``, too."""
        return "cuda" if self.type == "hip" else self.type

    @property
    def torch_name(self) -> str:
        """The device as torch names it, with its number: ``cuda:0``; ``cpu`` has none."""
        return self.type if self.type == "cpu" else f"{self.torch_type}:{self.index}"

    @classmethod
    def current(cls) -> Device:
        """Return the device that a model would be put on by default: the first accelerator, else the CPU."""
        return probe().devices[0]

    @classmethod
    def of(cls, device: torch.device | str) -> Device:
        """Return the description of a torch device; ``meta`` and unknown types describe themselves.

        Args:
            device: for example ``x.device``.
        """
        kind, _, number = str(device).partition(":")
        index = int(number) if number.isdigit() else 0
        if kind == "cpu":
            return cpu()
        for found in probe().devices:
            if kind in (found.type, found.torch_type) and found.index == index:
                return found
        return cls(kind, "unknown", index=index)


@dataclass(frozen=True)
class Probe:
    """What was found: usable devices, the preferred first and the CPU last, and notes for people."""

    devices: tuple[Device, ...]
    notes: tuple[str, ...] = ()


def probe() -> Probe:
    """List the devices that torch can use in this process, with a note for each one that it cannot use.

    Returns:
        At least the CPU. Accelerators come first: cuda, hip, npu.
    """
    torch, notes = _torch()
    current = torch.cuda.current_device() if torch is not None and torch.cuda.is_initialized() else None
    visible = tuple(os.environ.get(name) for name in _VISIBILITY)
    return _probe(current, visible, tuple(notes))


@functools.cache
def _probe(current: int | None, visible: tuple[str | None, ...], first_notes: tuple[str, ...]) -> Probe:
    """Look once for each state: what is found depends on the arguments, though only through torch and os."""
    torch, notes = _torch()[0], list(first_notes)
    version: Any = getattr(torch, "version", None)
    devices: list[Device] = []
    for kind, find in (("cuda", _nvidia), ("hip", _amd), ("npu", _ascend)):
        try:
            found = find(torch)
        except Exception as error:  # a driver in a bad state must not stop the work on another device
            notes.append(f"looking for {kind} devices failed: {type(error).__name__}: {error}")
            continue
        if not found:
            continue
        usable = find_spec("torch_npu") if kind == "npu" else getattr(version, kind, None)
        if usable:
            devices += found
        else:
            have = getattr(torch, "__version__", "which is not importable")
            need = "torch_npu is not installed" if kind == "npu" else f"torch {have} is built without {kind}"
            notes.append(f"this machine has {found[0]}, but {need}: install the torch build for it")
    return Probe((*devices, cpu()), tuple(notes))


@functools.cache
def cpu() -> Device:
    """Describe the CPU of this machine."""
    name = platform.processor()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            model = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
            name = next(model, name)
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        memory = None
    return Device("cpu", platform.machine().lower() or "unknown", name, memory_bytes=memory)


def free_bytes(device: Device) -> int | None:
    """Return the memory that is free on ``device`` now, in bytes; None where that cannot be told cheaply."""
    try:
        if device.type == "cpu":
            with open("/proc/meminfo", encoding="utf-8") as lines:
                return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        torch = sys.modules.get("torch")
        if device.type in ("cuda", "hip") and torch is not None and torch.cuda.is_initialized():
            return int(torch.cuda.mem_get_info(device.index)[0])
    except Exception:  # advice only: an unknown amount is a legal answer
        return None
    return None


@dataclass(frozen=True)
class _Unused:
    """What stands for a torch that nothing has imported yet."""

    __version__: str
    version: TorchBuild
    cuda: SimpleNamespace


def _torch() -> tuple[Any, list[str]]:
    """Return torch, or what stands for it where nothing has imported it yet, and notes."""
    if "torch" not in sys.modules and (build := torch_build()) is not None:
        return _Unused(build.version, build, SimpleNamespace(is_initialized=lambda: False)), []
    try:
        import torch
    except Exception as error:  # an installed torch may not start, e.g. over a device plug-in without driver
        return None, [f"importing torch failed: {type(error).__name__}: {error}"]
    return torch, []


def _visible(names: Iterable[str], identities: Sequence[str]) -> list[int]:
    """Apply the visibility variables: numbers or identity prefixes, cut at the first that names no device."""
    for name in names:
        if name in os.environ:
            break
    else:
        return list(range(len(identities)))
    chosen: list[int] = []
    for item in filter(None, (part.strip() for part in os.environ[name].split(","))):
        if item.isdigit():
            match = [int(item)] if int(item) < len(identities) else []
        else:
            match = [i for i, identity in enumerate(identities) if identity.startswith(item)]
        if not match:
            break
        chosen += match[:1]
    return chosen


def _started(torch: Any) -> list[Device]:
    if isinstance(torch, _Unused):
        import torch
    kind = "hip" if torch.version.hip else "cuda"
    devices = []
    for index in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(index)
        arch = str(p.gcnArchName).split(":")[0] if kind == "hip" else f"sm_{p.major}{p.minor}"
        devices.append(Device(kind, arch, p.name, index, int(p.total_memory)))
    current = torch.cuda.current_device()
    return sorted(devices, key=lambda d: (d.index != current, d.index))


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def _nvidia(torch: Any) -> list[Device]:
    if torch is not None and torch.version.cuda and torch.cuda.is_initialized():
        return _started(torch)
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:  # no driver, no device
        return []
    if nvml.nvmlInit_v2() != 0:
        return []
    try:
        found, identities = _nvml_devices(nvml)
    finally:
        nvml.nvmlShutdown()
    chosen = [found[i] for i in _visible(_NVIDIA, identities)]
    ordered = os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    if len({d.arch for d in chosen}) > 1 and not ordered and torch is not None and torch.version.cuda:
        return _started(torch)  # CUDA numbers the fastest first, NVML goes by bus
    return [Device(d.type, d.arch, d.name, i, d.memory_bytes) for i, d in enumerate(chosen)]


def _nvml_devices(nvml: ctypes.CDLL) -> tuple[list[Device], list[str]]:
    count, handle, memory = ctypes.c_uint(), ctypes.c_void_p(), _Memory()
    major, minor, text = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(96)
    devices: list[Device] = []
    identities: list[str] = []
    if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return devices, identities
    for index in range(count.value):
        if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) != 0:
            continue
        known = nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor)) == 0
        arch = f"sm_{major.value}{minor.value}" if known else "unknown"
        name = text.value.decode(errors="replace") if nvml.nvmlDeviceGetName(handle, text, 96) == 0 else ""
        total = memory.total if nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) == 0 else None
        identities.append(text.value.decode() if nvml.nvmlDeviceGetUUID(handle, text, 96) == 0 else "")
        devices.append(Device("cuda", arch, name, index, total))
    return devices, identities


def _amd(torch: Any) -> list[Device]:
    if torch is not None and torch.version.hip and torch.cuda.is_initialized():
        return _started(torch)
    archs: list[str] = []
    for node in sorted(KFD_NODES.glob("[0-9]*"), key=lambda p: int(p.name)):
        lines = (node / "properties").read_text(encoding="utf-8").splitlines()
        values = dict(line.split()[:2] for line in lines if " " in line)
        version = int(values.get("gfx_target_version", "0"))
        if version:  # 0 for the CPU's own node; 90402 is gfx942, steps above 9 are hexadecimal (gfx90a)
            archs.append(f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}")
    chosen = _visible(_AMD, [""] * len(archs))
    return [Device("hip", archs[i], "AMD GPU", n) for n, i in enumerate(chosen)]


def _soc_name() -> str:
    """Ask CANN's runtime for the name of the chip, which starts no device; empty where CANN is not there."""
    try:
        runtime = ctypes.CDLL("libascendcl.so")
        runtime.aclrtGetSocName.restype = ctypes.c_char_p
        found: bytes | None = runtime.aclrtGetSocName()
    except (OSError, AttributeError):
        return ""
    return found.decode(errors="replace") if found else ""


def _ascend(torch: Any) -> list[Device]:
    nodes = [p for p in DEV.glob("davinci[0-9]*") if p.name[7:].isdigit()]
    npu = getattr(torch, "npu", None)
    name = ""
    if nodes:
        name = str(npu.get_device_name()) if npu is not None and npu.is_initialized() else _soc_name()
    chosen = _visible(_ASCEND, [""] * len(nodes))
    return [Device("npu", name or "unknown", name or "Ascend NPU", n) for n in range(len(chosen))]
