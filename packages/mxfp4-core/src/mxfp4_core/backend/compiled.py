"""Machine code that a backend compiles on this machine and keeps: what `mxfp4 warmup` compiles ahead of time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Kernel:
    """One piece of machine code that is compiled on this machine and kept.

    Attributes:
        name: for people, unique among the kernels of its backend.
        cached: it is kept already, and will be found by the call that needs it.
        compile: compiles and keeps it. It is called from several threads at a time for different kernels, needs no
            device, prints nothing, and raises an `Mxfp4Error` where it cannot compile or cannot keep the result.
    """

    name: str
    cached: bool
    compile: Callable[[], object] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Kernels:
    """Every kernel that the calls of a backend can need, except those that no ordinary model needs.

    Attributes:
        folder: where they are kept, for people.
        kernels: in the order in which they are compiled; long ones first keeps all processors busy to the end.
    """

    folder: str
    kernels: tuple[Kernel, ...]


__all__ = ["Kernel", "Kernels"]
