"""Error of one quantised tensor: sums in float64 that come out the same however the rows are cut into chunks.

The values compared are the stored ones: an element is ``E2M1_VALUES[code] * 2**(byte - 127)`` in float64,
not its rounding to BF16 (docs/format.md). Each row is summed in order by itself, and the row sums are added
with `math.fsum`, which is exact up to one final rounding; so neither the chunk size nor the order of chunks
or experts can change a digit.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mxfp4_core._extras import say_what_to_install
from mxfp4_core.arithmetic.format import BLOCK, E2M1_MAX, E2M1_VALUES, E8M0_BIAS, E8M0_NAN
from mxfp4_core.jobs.metrics import Metrics

try:
    from numba import njit  # pyright: ignore[reportMissingTypeStubs]
except ModuleNotFoundError as error:
    say_what_to_install("the error of a weight cannot be measured", error)
    raise

if TYPE_CHECKING:
    import torch

_VALUES = np.array(E2M1_VALUES, dtype=np.float64)
_POWERS = np.ldexp(1.0, np.arange(256) - E8M0_BIAS)
_POWERS[E8M0_NAN] = np.nan


class Tally:
    """Collects the rows of one tensor, chunk by chunk."""

    def __init__(self) -> None:
        self._sums: list[np.ndarray[Any, Any]] = []
        self._counts = np.zeros(4, dtype=np.int64)
        self._histogram = np.zeros(256, dtype=np.int64)
        self._values = 0
        self._max_error = 0.0

    def add(
        self, weight: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, *, more: bool = False
    ) -> None:
        """Add some rows, or more blocks of the rows that were added last.

        Args:
            weight: BF16, FP16 or FP32 ``[rows, k]`` on the CPU: the source.
            codes: uint8 ``[rows, kp / 2]``, even k in the low nibble; ``kp`` is k padded to 32.
            scales: uint8 ``[rows, kp / 32]``, E8M0.
            more: whether these are further values of the same rows: each is summed on, as if it came whole.
        """
        source = weight.float().contiguous().numpy()
        if not more:
            self._sums.append(np.zeros((2, source.shape[0]), dtype=np.float64))
        sums = self._sums[-1]
        packed, bytes_ = codes.contiguous().numpy(), scales.contiguous().numpy()
        largest = _tally(source, packed, bytes_, _VALUES, _POWERS, sums, self._counts, self._histogram)
        self._values += source.size
        self._max_error = max(self._max_error, largest)

    def add_plain(self, weight: torch.Tensor, stored: torch.Tensor) -> None:
        """Add values stored in another high-precision dtype: nothing saturates, there are no scales.

        Args:
            weight: any floating dtype and shape, on the CPU: the source.
            stored: any floating dtype, same shape.
        """
        value, other = weight.double().numpy().reshape(-1), stored.double().numpy().reshape(-1)
        with np.errstate(invalid="ignore"):
            error = value - other
        finite = np.isfinite(error)
        value, other, error = value[finite], other[finite], np.abs(error[finite])
        sums = [math.fsum(np.square(each).tolist()) for each in (value, error)]
        self._sums.append(np.array(sums).reshape(2, 1))
        self._counts += [(value == 0).sum(), 0, ((value != 0) & (other == 0)).sum(), (~finite).sum()]
        self._values += finite.size
        self._max_error = max(self._max_error, float(error.max(initial=0.0)))

    def metrics(self) -> Metrics:
        """Return the metrics of all rows so far."""
        zeros, saturated, flushed, nonfinite = (int(count) for count in self._counts)
        bytes_ = np.flatnonzero(self._histogram)
        return Metrics(
            values=self._values,
            signal=math.fsum(value for sums in self._sums for value in sums[0].tolist()),
            noise=math.fsum(value for sums in self._sums for value in sums[1].tolist()),
            zeros=zeros,
            saturated=saturated,
            flushed=flushed,
            nonfinite=nonfinite,
            max_error=self._max_error,
            histogram={int(byte): int(self._histogram[byte]) for byte in bytes_},
        )


@njit(cache=True, nogil=True)
def _tally(
    weight: Any, codes: Any, scales: Any, table: Any, powers: Any, sums: Any, counts: Any, histogram: Any
) -> float:
    rows, k = weight.shape
    largest = 0.0
    zeros = saturated = flushed = 0
    stored = np.zeros(BLOCK, dtype=np.float64)
    for row in range(rows):
        for block in range(scales.shape[1]):
            start = block * BLOCK
            stop = min(BLOCK, k - start)
            byte = scales[row, block]
            histogram[byte] += 1
            power = powers[byte]
            limit = E2M1_MAX * power
            for pair in range(BLOCK // 2):
                both = np.int64(codes[row, start // 2 + pair])
                stored[2 * pair] = table[both & 15] * power
                stored[2 * pair + 1] = table[both >> 4] * power
            signal = noise = 0.0
            worst = largest
            zero = clipped = lost = 0
            for i in range(stop):
                value = np.float64(weight[row, start + i])
                error = value - stored[i]
                signal += value * value
                noise += error * error
                worst = max(worst, abs(error))
                zero += value == 0.0
                clipped += abs(value) > limit
                lost += (value != 0.0) & (stored[i] == 0.0)
            # Squares of FP32 values do not overflow in float64: this sum tells whether all are finite.
            if np.isfinite(noise):
                sums[0, row] += signal
                sums[1, row] += noise
                largest = worst
                zeros += zero
                saturated += clipped
                flushed += lost
            else:
                values = weight[row, start : start + stop]
                largest = _tally_nonfinite(values, stored, limit, sums[:, row], counts, largest)
    counts[0] += zeros
    counts[1] += saturated
    counts[2] += flushed
    return largest


@njit(cache=True, nogil=True)
def _tally_nonfinite(values: Any, stored: Any, limit: float, sums: Any, counts: Any, largest: float) -> float:
    for i in range(values.size):
        value = np.float64(values[i])
        error = abs(value - stored[i])
        if not np.isfinite(error):
            counts[3] += 1
            continue
        sums[0] += value * value
        sums[1] += error * error
        largest = max(largest, error)
        counts[0] += value == 0.0
        counts[1] += abs(value) > limit
        counts[2] += (value != 0.0) & (stored[i] == 0.0)
    return largest


__all__ = ["Tally"]
