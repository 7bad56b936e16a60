"""Launches of kernels, prepared once: what a call gives is a few addresses, and the stream."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from functools import cache
from operator import itemgetter
from struct import Struct
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from mxfp4_cuda_marlin.kernels import build


class Structure(Protocol):
    """A structure of cuda.bindings, passed by value."""

    def getPtr(self) -> int:
        """Return where it is."""
        ...


class Given(NamedTuple):
    """What each call gives.

    Attributes:
        place: in its list.
        structure: it is one; else it is an address.
    """

    place: int
    structure: bool = False


Argument = Tensor | ctypes.c_void_p | int | float | Structure | Given | None


class Launch:
    """One kernel with its grid, its arguments, and places for what each call gives.

    Args:
        function: loaded on the device that will be current at each call.
        grid: blocks.
        threads: of a block.
        shared: bytes of dynamic shared memory.
        arguments: tensors, addresses and None become pointers, int a C int, float a C float, structures go by value.
        overlap: start before the previous kernel of the stream has ended. That kernel must be of this package too, and
            this one must call ``wait_for_previous`` (ptx.cuh) before it reads what that one wrote.
    """

    def __init__(
        self,
        function: Any,
        grid: int,
        threads: int,
        shared: int,
        arguments: Sequence[Argument],
        *,
        overlap: bool = False,
    ) -> None:
        self.function = function
        self._shape, self._overlap = (grid, threads, shared), overlap
        self._launch = build.bindings("driver").cuLaunchKernelEx
        self._configs: dict[int, Any] = {}
        places = [each.place for each in arguments if isinstance(each, Given) and not each.structure]
        self._pick, self._write = _picker(places), Struct(f"{len(places)}N").pack_into
        self._cells = (ctypes.c_void_p * len(places))()
        self._structures: list[tuple[int, int]] = []
        self._kept: list[Any] = []  # what the addresses below point into
        self._free = ctypes.addressof(self._cells)
        addresses = [self._address(argument, place) for place, argument in enumerate(arguments)]
        self._addresses = (ctypes.c_void_p * len(addresses))(*addresses)
        self._all = ctypes.addressof(self._addresses)
        # The driver copies the arguments while a call lasts; until then another thread must not write its own there.
        self._lock = threading.Lock()

    def _address(self, argument: Argument, place: int) -> int:
        """Return where the driver finds an argument, and keep what is there."""
        if isinstance(argument, Given):
            if argument.structure:
                self._structures.append((argument.place, place))
                return 0
            at, self._free = self._free, self._free + ctypes.sizeof(ctypes.c_void_p)
            return at
        if argument is None or isinstance(argument, Tensor):
            cell: Any = ctypes.c_void_p(None if argument is None else argument.data_ptr())
        elif isinstance(argument, ctypes.c_void_p):
            cell = argument
        elif isinstance(argument, int | float):
            cell = ctypes.c_float(argument) if isinstance(argument, float) else ctypes.c_int(argument)
        else:
            self._kept.append(argument)
            return argument.getPtr()
        self._kept.append(cell)
        return ctypes.addressof(cell)

    def __call__(self, stream: int, given: Sequence[Any] = ()) -> None:
        """Launch on a stream of the current device.

        Args:
            stream: address of the stream.
            given: addresses of memory and structures, by the places of `Given`.

        Raises:
            BackendError: the driver refuses the launch.
        """
        config = self._configs.get(stream) or self._configure(stream)
        with self._lock:
            self._write(self._cells, 0, *self._pick(given))
            for place, argument in self._structures:
                self._addresses[argument] = given[place].getPtr()
            (status,) = self._launch(config, self.function, self._all, 0)
        if int(status):
            build.check((status, None), "launching a kernel")

    def _configure(self, stream: int) -> Any:
        config = build.bindings("driver").CUlaunchConfig()
        grid, threads, config.sharedMemBytes = self._shape
        config.gridDimX, config.gridDimY, config.gridDimZ = grid, 1, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
        config.hStream = stream
        if self._overlap:
            config.attrs, config.numAttrs = [_overlap()], 1
        self._configs[stream] = config
        return config


def _picker(places: Sequence[int]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """Return what takes the values at some places out of a list."""
    if len(places) > 1:
        return itemgetter(*places)
    return lambda given: [given[place] for place in places]


@cache
def _overlap() -> Any:
    driver = build.bindings("driver")
    attribute = driver.CUlaunchAttribute()
    attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    attribute.value.programmaticStreamSerializationAllowed = 1
    return attribute


def stream_of(device: torch.device) -> int:
    """Return the address of torch's current stream of a device."""
    # What torch.cuda.current_stream returns costs more than the launch; Triton and Inductor ask so, too.
    return int(torch._C._cuda_getCurrentRawStream(device.index))


__all__ = ["Argument", "Given", "Launch", "Structure", "stream_of"]
