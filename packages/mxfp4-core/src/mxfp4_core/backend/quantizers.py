"""Who quantises on a device while a model loads: a backend's kernels where it has them, else the core's own.

Both give the same bytes, which the conformance suite demands of every backend. So this choice is about time and memory
only: the torch operations of the core need twelve times the memory of what they quantise, kernels next to none.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch.nn.functional import pad

from mxfp4_core.arithmetic.fast.threads import quick_turns
from mxfp4_core.arithmetic.format import E8M0_NAN
from mxfp4_core.arithmetic.formats.base import Format, Parts
from mxfp4_core.arithmetic.formats.mxfp4 import MXFP4
from mxfp4_core.arithmetic.formats.registry import get
from mxfp4_core.backend import calls
from mxfp4_core.backend.answers import Yes
from mxfp4_core.backend.asking import verdict
from mxfp4_core.backend.device import Device
from mxfp4_core.backend.problem import DTYPES, Problem
from mxfp4_core.backend.protocol import Backend
from mxfp4_core.errors import FormatError, NonFiniteError

_LOG = logging.getLogger("mxfp4_core.backend")
CHUNK_VALUES = 1 << 22
"""Values that are cast, moved, padded or quantised on a device at once: 8 MiB of bfloat16."""
CORE = "mxfp4_core"
"""What a report calls the core's own quantizer."""


@dataclass(frozen=True)
class DeviceQuantizer:
    """Quantises weights by one profile to one format on one device.

    Attributes:
        profile: name of the resolved profile.
        backend: whose kernels run; None for the core's own quantizer.
        format: what it makes.
    """

    profile: str
    backend: Backend | None = None
    format: Format = MXFP4

    @property
    def name(self) -> str:
        """Name of the backend, or of the core."""
        return CORE if self.backend is None else self.backend.name

    def into(
        self,
        weight: torch.Tensor,
        parts: Parts,
        *,
        nonfinite: Literal["refuse", "nan"] = "refuse",
        name: str = "weight",
        threads: int | None = None,
    ) -> None:
        """Quantise whole blocks into parts that exist; see `Format.quantize_into` for arguments and errors.

        With ``nonfinite="refuse"`` it waits for the device, to look at the result.
        """
        of_core = self.format.quantize_into
        if self.backend is None or not weight.numel():
            of_core(weight, parts, profile=self.profile, nonfinite=nonfinite, name=name, threads=threads)
            return
        parts = self.format.raw(parts)
        calls.quantize_into(self.backend, weight, parts, profile=self.profile, format=self.format.of_weight)
        if nonfinite == "refuse" and int(parts["scales"].max()) == E8M0_NAN:
            # The core looks for the value, and says where it is.
            of_core(weight, parts, profile=self.profile, nonfinite=nonfinite, name=name)


class DeviceQuantizers:
    """The quantizers of one load, one for each profile, dtype and device.

    Args:
        backends: who will compute on each device, by its name in torch; see `device_quantizer`.
        before: those of an earlier guess, which may still be starting.
    """

    def __init__(
        self,
        backends: Mapping[str, Sequence[Backend]] | None = None,
        before: DeviceQuantizers | None = None,
    ) -> None:
        self._backends = backends or {}
        self._found: dict[tuple[str, torch.dtype, str, str], DeviceQuantizer] = {}
        self._started: threading.Thread | None = None if before is None else before._started

    @property
    def names(self) -> tuple[str, ...]:
        """Who has quantised so far."""
        return tuple(dict.fromkeys(each.name for each in self._found.values()))

    def start(self, profiles: Iterable[str], dtype: torch.dtype, format: str = MXFP4.name) -> None:
        """Let a thread load the kernels that this load will need, which takes a while, long before they are needed."""
        names, earlier = list(dict.fromkeys(profiles)), self._started
        each = [(name, device) for device in self._backends if device != "cpu" for name in names]

        def load() -> None:
            if earlier is not None:  # two threads would do the same work twice
                earlier.join()
            # Triton reads and hashes 400 MB of itself before its first kernel, in pieces of 1 MB, hence quick turns.
            # Whatever is wrong is the error of the weight that is quantised so; here it costs time, and is said.
            try:
                with quick_turns():
                    for profile, device in each:
                        self._warm(profile, dtype, device, get(format))
            except Exception as error:
                _LOG.warning(
                    "kernels that quantise cannot be loaded ahead: %s: %s", type(error).__name__, error
                )

        if each:
            self._started = threading.Thread(target=load, name="mxfp4-kernels")
            self._started.start()

    def _warm(self, profile: str, dtype: torch.dtype, device: str, format: Format) -> None:
        chosen = device_quantizer(self._backends[device], profile, dtype, device, format)
        if chosen.backend is not None:
            weight = torch.zeros(1, format.block, dtype=dtype, device=device)
            chosen.into(weight, format.empty(weight.shape, device))

    def of(
        self, profile: str, dtype: torch.dtype, device: torch.device, format: Format = MXFP4
    ) -> DeviceQuantizer:
        """Return the quantizer for a weight."""
        key = profile, dtype, str(device), format.name
        if key not in self._found:
            if self._started is not None:
                self._started.join()
            self._found[key] = device_quantizer(
                self._backends.get(key[2], ()), profile, dtype, device, format
            )
        return self._found[key]

    def fill(
        self,
        values: torch.Tensor,
        parts: Parts,
        *,
        profile: str,
        format: Format = MXFP4,
        dtype: torch.dtype | None = None,
        nonfinite: Literal["refuse", "nan"] = "refuse",
        threads: int | None = None,
        name: str = "weight",
    ) -> None:
        """Quantise a matrix into parts that exist, few rows at a time where a step makes temporaries.

        Args:
            values: ``[rows, k]``, any float dtype, strides and device; K is padded with zeros to whole blocks.
            parts: those of these rows, by name, on the device that quantises.
            profile: name of the resolved profile.
            format: what is made.
            dtype: to which values are cast first, as an engine's own copy would; theirs if None.
            nonfinite: what happens to NaN and infinity.
            threads: of the CPU; all if None.
            name: what messages call the matrix.

        Raises:
            FormatError: values on the meta device, into parts that are in memory.
            NonFiniteError: NaN or infinity, with its index in `values`.
        """
        if values.is_meta:
            raise FormatError(
                f"{name} cannot be quantised",
                seen="a tensor on the meta device, which has no values",
                rule="a weight holds values",
                fix="load it onto a device with memory: a device_map of another device than meta",
            )
        n, k = values.shape
        device = next(iter(parts.values())).device
        dtype = dtype or values.dtype
        extra = format.physical_k(k) - k
        # Only the kernels of the CPU need no temporaries.
        whole = device.type == "cpu" and (values.device, values.dtype, extra) == (device, dtype, 0)
        step = n if whole else max(1, CHUNK_VALUES // max(1, k))
        quantizer = self.of(profile, dtype, device, format)
        for row in range(0, n, max(1, step)):
            piece = values[row : row + step].to(device, dtype)
            piece = pad(piece, (0, extra)) if extra else piece
            rows = {part: tensor[row : row + step] for part, tensor in parts.items()}
            try:
                quantizer.into(piece, rows, nonfinite=nonfinite, threads=threads, name=name)
            except NonFiniteError as error:
                raise error.within(name, partial(_below, row)) from None


def _below(first: int, row: int, k: int) -> tuple[int, int]:
    return first + row, k


def device_quantizer(
    candidates: Iterable[Backend],
    profile: str,
    dtype: torch.dtype,
    device: torch.device | str,
    format: Format = MXFP4,
) -> DeviceQuantizer:
    """Choose who quantises.

    Args:
        candidates: backends that will compute with the weights, in order of preference.
        profile: name of a profile, or a pair such as ``even/even``.
        dtype: of the weights.
        device: where they are.
        format: what is made of them.

    Returns:
        The first candidate that offers ``quantize`` for this profile, dtype, format and device, or the core. On CPUs,
        and where a candidate only emulates, it is the core: its kernels write straight into the result.
    """
    chosen = format.resolve(profile)
    device = torch.device(device)
    text = str(dtype).removeprefix("torch.")
    known = text in DTYPES and (not chosen.dtypes or dtype in chosen.dtypes)
    if device.type != "cpu" and known:
        here = Device.of(str(device))
        problem = Problem(
            op="quantize", n=1, k=format.block, dtype=text, format=format.of_weight, device=here
        )
        for each in candidates:
            answer = verdict(each, problem)
            numerics = answer.numerics if isinstance(answer, Yes) else None
            if numerics is not None and not numerics.emulated and chosen.name in numerics.profiles:
                return DeviceQuantizer(chosen.name, each, format)
    return DeviceQuantizer(chosen.name, None, format)


__all__ = ["CORE", "DeviceQuantizer", "DeviceQuantizers", "device_quantizer"]
