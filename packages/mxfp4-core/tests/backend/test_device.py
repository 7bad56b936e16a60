from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from mxfp4_core.backend import device
from mxfp4_core.backend.device import Device, free_bytes, probe


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No accelerator, whatever the machine of the test has; nothing is remembered between tests."""
    for name in device._VISIBILITY:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(device, "KFD_NODES", tmp_path / "kfd")
    monkeypatch.setattr(device, "DEV", tmp_path / "dev")
    monkeypatch.setattr(device.ctypes, "CDLL", no_driver)
    torch_of(monkeypatch)
    device._probe.cache_clear()
    yield
    device._probe.cache_clear()


def no_driver(name: str) -> object:
    raise OSError(f"{name}: cannot open shared object file")


class Function:
    """A function of a library, which takes attributes as those of ctypes do."""

    def __init__(self, run: Callable[[], bytes]) -> None:
        self.run = run

    def __call__(self) -> bytes:
        return self.run()


def torch_of(
    monkeypatch: pytest.MonkeyPatch, *, cuda: str | None = None, hip: str | None = None
) -> SimpleNamespace:
    """Pretend that torch is a build for CUDA or HIP, with no device started."""
    torch = SimpleNamespace(
        __version__="9.9",
        version=SimpleNamespace(cuda=cuda, hip=hip),
        cuda=SimpleNamespace(is_initialized=lambda: False),
    )
    monkeypatch.setattr(device, "_torch", lambda: (torch, []))
    return torch


class Nvml:
    """A driver's management library with the given compute capabilities."""

    def __init__(self, *capabilities: tuple[int, int], fails: bool = False) -> None:
        self.capabilities, self.fails, self.shut = capabilities, fails, 0

    def __call__(self, name: str) -> Nvml:
        assert name == "libnvidia-ml.so.1"
        return self

    def nvmlInit_v2(self) -> int:
        return int(self.fails)

    def nvmlShutdown(self) -> int:
        self.shut += 1
        return 0

    def nvmlDeviceGetCount_v2(self, count: object) -> int:
        ctypes.cast(count, ctypes.POINTER(ctypes.c_uint))[0] = len(self.capabilities)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, handle: object) -> int:
        ctypes.cast(handle, ctypes.POINTER(ctypes.c_void_p))[0] = index + 1
        return 0

    def nvmlDeviceGetCudaComputeCapability(
        self, handle: ctypes.c_void_p, major: object, minor: object
    ) -> int:
        both = self.capabilities[handle.value - 1]
        for pointer, value in zip((major, minor), both, strict=True):
            ctypes.cast(pointer, ctypes.POINTER(ctypes.c_int))[0] = value
        return 0

    def nvmlDeviceGetName(self, handle: ctypes.c_void_p, text: ctypes.Array, size: int) -> int:
        text.value = f"GPU number {handle.value - 1}".encode()
        return 0

    def nvmlDeviceGetUUID(self, handle: ctypes.c_void_p, text: ctypes.Array, size: int) -> int:
        text.value = f"GPU-{'abc'[handle.value - 1]}".encode()
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: ctypes.c_void_p, memory: object) -> int:
        ctypes.cast(memory, ctypes.POINTER(device._Memory)).contents.total = 80 << 30
        return 0


def test_the_cpu_is_always_there() -> None:
    found = probe()
    assert [one.type for one in found.devices] == ["cpu"]
    assert found.notes == ()
    assert found.devices[0].memory_bytes > 1 << 28
    assert Device.current() == Device.of("cpu") == found.devices[0]


def test_nvidia_is_read_from_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml((9, 0), (9, 0))
    monkeypatch.setattr(device.ctypes, "CDLL", nvml)
    torch_of(monkeypatch, cuda="13.0")
    first, second, last = probe().devices
    assert first == Device("cuda", "sm_90", "GPU number 0", 0, 80 << 30)
    assert (second.index, last.type) == (1, "cpu")
    assert Device.of("cuda:1") == second and Device.of("cuda") == first
    assert nvml.shut == 1


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("1", [1]),
        ("1,0", [1, 0]),
        ("", []),
        ("0,7,1", [0]),
        ("GPU-b", [1]),
        ("GPU-x", []),
        ("-1", []),
        ("NoDevFiles", []),
    ],
)
def test_visibility(monkeypatch: pytest.MonkeyPatch, visible: str, names: list[int]) -> None:
    monkeypatch.setattr(device.ctypes, "CDLL", Nvml((9, 0), (9, 0)))
    torch_of(monkeypatch, cuda="13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = probe().devices[:-1]
    assert [one.name for one in found] == [f"GPU number {index}" for index in names]
    assert [one.index for one in found] == list(range(len(names)))


def test_a_torch_without_cuda_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.ctypes, "CDLL", Nvml((8, 6)))
    found = probe()
    assert [one.type for one in found.devices] == ["cpu"]
    assert "sm_86" in found.notes[0] and "torch 9.9 is built without cuda" in found.notes[0]


def test_mixed_devices_are_asked_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.ctypes, "CDLL", Nvml((8, 6), (9, 0)))
    torch = torch_of(monkeypatch, cuda="13.0")
    torch.cuda.device_count = lambda: 2
    torch.cuda.current_device = lambda: 1
    torch.cuda.get_device_properties = lambda index: SimpleNamespace(
        name=f"torch {index}", major=9 - index, minor=0, total_memory=1
    )
    assert [one.arch for one in probe().devices[:-1]] == ["sm_80", "sm_90"]  # the current one first
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    device._probe.cache_clear()
    assert [one.arch for one in probe().devices[:-1]] == ["sm_86", "sm_90"]


def test_a_failing_driver_is_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.ctypes, "CDLL", Nvml((9, 0), fails=True))
    torch_of(monkeypatch, cuda="13.0")
    assert [one.type for one in probe().devices] == ["cpu"]


@pytest.mark.parametrize(
    ("version", "arch"),
    [(90402, "gfx942"), (90010, "gfx90a"), (90500, "gfx950"), (110001, "gfx1101"), (120500, "gfx1250")],
)
def test_amd_is_read_from_the_kernel(monkeypatch: pytest.MonkeyPatch, version: int, arch: str) -> None:
    for number, value in enumerate((0, version)):
        node = device.KFD_NODES / str(number)
        node.mkdir(parents=True)
        (node / "properties").write_text(f"cpu_cores_count 8\ngfx_target_version {value}\n")
    torch_of(monkeypatch, hip="7.0")
    found = probe()
    assert found.devices[0] == Device("hip", arch, "AMD GPU")
    assert Device.of("cuda:0") == found.devices[0]
    torch_of(monkeypatch, cuda="13.0")
    device._probe.cache_clear()
    assert arch in probe().notes[0] and len(probe().devices) == 1


def test_a_damaged_topology_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    node = device.KFD_NODES / "1"
    node.mkdir(parents=True)
    (node / "properties").write_text("gfx_target_version many\n")
    found = probe()
    assert [one.type for one in found.devices] == ["cpu"]
    assert found.notes[0].startswith("looking for hip devices failed: ValueError")


def test_ascend_needs_its_torch_package(monkeypatch: pytest.MonkeyPatch) -> None:
    device.DEV.mkdir()
    for name in ("davinci0", "davinci1", "davinci_manager"):
        (device.DEV / name).touch()
    assert "torch_npu is not installed" in probe().notes[0]
    monkeypatch.setattr(device, "find_spec", lambda name: name)
    device._probe.cache_clear()
    assert [(one.type, one.arch, one.index) for one in probe().devices[:-1]] == [
        ("npu", "unknown", 0),
        ("npu", "unknown", 1),
    ]


def test_the_chip_of_ascend_is_asked_of_cann(monkeypatch: pytest.MonkeyPatch) -> None:
    device.DEV.mkdir()
    (device.DEV / "davinci0").touch()
    runtime = SimpleNamespace(aclrtGetSocName=Function(lambda: b"Ascend950PR_9589"))
    monkeypatch.setattr(
        device.ctypes, "CDLL", lambda name: runtime if name == "libascendcl.so" else no_driver(name)
    )
    monkeypatch.setattr(device, "find_spec", lambda name: name == "torch_npu")
    assert probe().devices[0] == Device("npu", "Ascend950PR_9589", "Ascend950PR_9589")


def test_a_torch_that_cannot_start_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_torch", lambda: (None, ["importing torch failed: ImportError: libhccl.so"]))
    assert probe().notes == ("importing torch failed: ImportError: libhccl.so",)


def test_unknown_torch_devices_describe_themselves() -> None:
    assert Device.of("meta") == Device("meta", "unknown")
    assert Device.of("mps:0") == Device("mps", "unknown")


def test_free_memory() -> None:
    assert 0 < free_bytes(device.cpu()) <= device.cpu().memory_bytes
    assert free_bytes(Device("npu", "unknown")) is None


def test_free_memory_of_a_started_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = torch_of(monkeypatch, cuda="13.0")
    monkeypatch.setattr(device, "sys", SimpleNamespace(modules={"torch": torch}))
    gpu = Device("cuda", "sm_90", index=1)
    assert free_bytes(gpu) is None, "asking would start the device"
    torch.cuda.is_initialized = lambda: True
    torch.cuda.mem_get_info = {1: (5, 9)}.__getitem__
    assert free_bytes(gpu) == 5
    torch.cuda.mem_get_info = {}.__getitem__
    assert free_bytes(gpu) is None


def test_a_machine_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_sysconf(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr(device.os, "sysconf", no_sysconf)
    device.cpu.cache_clear()
    try:
        assert device.cpu().type == "cpu" and device.cpu().memory_bytes is None
    finally:
        device.cpu.cache_clear()


def test_a_started_amd_device_is_asked_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = torch_of(monkeypatch, hip="7.0")
    torch.cuda.is_initialized = lambda: True
    torch.cuda.device_count, torch.cuda.current_device = lambda: 1, lambda: 0
    torch.cuda.get_device_properties = lambda index: SimpleNamespace(
        name="AMD Instinct MI355X", gcnArchName="gfx950:sramecc+:xnack-", total_memory=7
    )
    assert probe().devices[0] == Device("hip", "gfx950", "AMD Instinct MI355X", 0, 7)


def test_probing_starts_nothing() -> None:
    code = "from mxfp4_core.backend import probe; probe(); import torch; raise SystemExit(torch.cuda.is_initialized())"
    assert subprocess.run([sys.executable, "-c", code], timeout=300).returncode == 0
