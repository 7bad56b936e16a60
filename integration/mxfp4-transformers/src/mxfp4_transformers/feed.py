"""Read the tensors of a checkpoint ahead, in the order in which transformers will ask for them.

transformers reads one tensor at a time for a load that quantises, from a mapped file straight to the device. On a GPU
that is slower than the bus and slower than its own load without quantisation, which has threads. So where a weight is
made of whole rows of the files, it is taken from `mxfp4_core.checkpoint.ahead` instead: the same bytes, by threads,
through pinned memory, in chunks that do not end where tensors end. Any other weight goes the ordinary way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from mxfp4_core.arithmetic import BLOCK
from mxfp4_core.checkpoint import Checkpoint, ReadAhead, Rows, TensorInfo
from mxfp4_core.modules import Weight

DEVICES = frozenset({"cuda"})
"""Types of devices for which tensors are read ahead; others use the memory of the process, or were not tried."""

WORDS = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
"""What files call the dtypes from which weights are quantised."""


@dataclass
class Feed:
    """What one load will read, and the threads that do.

    Attributes:
        weights: the weights to quantise, by name.
        headers: every tensor of the checkpoint; empty where it is not in safetensors files.
        dtype: of the model, to which transformers casts what it reads.
        device_of: where a weight goes.
        wide: the dtype in the checkpoint of the weights that a cast to `dtype` would round, by name.
        collected: names in the checkpoint for each weight, by pattern of its converter, in order.
    """

    weights: Mapping[str, Weight] = field(default_factory=dict[str, Weight])
    headers: Mapping[str, TensorInfo] = field(default_factory=dict[str, TensorInfo])
    dtype: torch.dtype = torch.bfloat16
    device_of: Callable[[str], torch.device] = lambda name: torch.device("cpu")
    wide: Mapping[str, torch.dtype] = field(default_factory=dict[str, torch.dtype])
    collected: dict[str, dict[str, list[str]]] = field(default_factory=dict[str, dict[str, list[str]]])
    _jobs: dict[str, tuple[list[str], Rows]] = field(default_factory=dict[str, tuple[list[str], Rows]])
    _reader: ReadAhead | None = None

    def collect(self, target: str, patterns: Sequence[str], pattern: str, source: str) -> None:
        """Note that a tensor of the checkpoint becomes part of a weight. All come before the first `rows`."""
        columns = self.collected.setdefault(target, {each: [] for each in patterns})
        columns.setdefault(pattern, []).append(source)

    def rows(self, name: str, names: Sequence[str]) -> tuple[torch.device, Iterator[torch.Tensor]] | None:
        """Return where a weight goes and its rows, in order, in chunks ``[rows, k]`` on the CPU.

        Args:
            name: the weight.
            names: the tensors of the checkpoint that it is made of, in the order of its rows.

        Returns:
            None where it has to be read the ordinary way. A chunk is valid until the next one is asked for.
        """
        if self._reader is None:
            self._begin()
        if self._reader is None or name not in self._jobs:
            return None
        expected, job = self._jobs[name]
        taken = self._reader.take(job) if expected == list(names) else None
        if taken is None:
            return None
        k = self.weights[name].shape[-1]
        return self.device_of(name), (chunk.view(self.dtype_of(name)).view(-1, k) for chunk in taken)

    def dtype_of(self, name: str) -> torch.dtype:
        """Return the dtype from which a weight is quantised."""
        return self.wide.get(name, self.dtype)

    def unrounded(self, names: Collection[str], source: str, entry: Any) -> Any:
        """Return what reads a tensor as transformers would read it, but for a cast that rounds.

        Args:
            names: the parameters that are made of it.
            source: its name in the checkpoint.
            entry: what transformers has for it.
        """
        if source not in self.headers or not all(name in self.wide for name in names):
            return entry
        return partial(self._read, source, next(iter(names)))

    def _read(self, source: str, name: str) -> torch.Tensor:
        file = self.headers[source].file
        return Checkpoint(file, self.headers, {file: ""}, {}, ()).load(source).to(self.device_of(name))

    def close(self) -> None:
        """Stop the threads."""
        if self._reader is not None:
            self._reader.close()

    def _begin(self) -> None:
        for target, columns in self.collected.items():
            weight = self.weights.get(target)
            names = in_order(list(columns.values()))
            if weight is not None and (job := self._job(weight, names)) is not None:
                self._jobs[target] = names, job
        devices = {self.device_of(name).type for name in self._jobs}
        self._reader = ReadAhead((job for _, job in self._jobs.values()), pinned=bool(devices - {"cpu"}))

    def _job(self, weight: Weight, names: Sequence[str]) -> Rows | None:
        """Return the tensors of a weight if its bytes are theirs, one after the other."""
        infos = tuple(info for name in names if (info := self.headers.get(name)) is not None)
        *stack, n, k = weight.shape
        readable = self.device_of(weight.name).type in DEVICES and not weight.transposed and k % BLOCK == 0
        if not readable or not infos or len(infos) != len(names):
            return None
        if any(
            info.dtype != WORDS.get(self.dtype_of(weight.name)) or info.shape[-1:] != (k,) for info in infos
        ):
            return None
        if len(infos) == 1:
            return Rows(infos) if infos[0].shape == weight.shape and infos[0].nbytes else None
        # Every expert has the same parts.
        parts, rest = divmod(len(infos), stack[0] if stack else 1)
        alike = not rest and all(info.shape == infos[i % parts].shape for i, info in enumerate(infos))
        whole = alike and all(len(info.shape) == 2 for info in infos)
        return Rows(infos) if whole and sum(info.shape[0] for info in infos[:parts]) == n else None


def wait(device: torch.device) -> None:
    """Wait until copies to a device that were started here are done."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def in_order(columns: Sequence[Sequence[str]]) -> list[str]:
    """Return the names of a stack of experts, expert by expert, from one list for each part of an expert."""
    return [name for row in zip(*columns, strict=False) for name in row]


__all__ = ["DEVICES", "WORDS", "Feed", "in_order", "wait"]
