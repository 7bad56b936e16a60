"""The kernels that engines use today, each behind the same two functions.

A peer lies in the folder given by ``--peer-path`` or the variable MXFP4_PEERS: unpacked wheels, or a site-packages
folder that holds them. How to fetch each: bench/README.md. Nothing here imports the package ``vllm``: its libraries
are loaded as files, and its few Python sources that matter get what they import from `vllm_files`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol

from torch import Tensor

from hopper.cases import DenseCase, MoeCase, Routed

# A peer can have several ways to do one layer; the fastest counts at each number of tokens.
Moe = dict[str, Callable[[Routed], Tensor]]
Linear = dict[str, Callable[[Tensor], Tensor]]
NAMES = ("marlin", "humming", "triton_kernels", "bf16", "aiter")
USUAL = NAMES[:4]
"""Those for Hopper; the other one is made for AMD's GPUs, beside kernels that are, too."""
# Compared with us. The others are shown, but have another weight format.
W4A16 = ("marlin", "humming", "triton_kernels", "aiter")


class OtherSizeError(Exception):
    """This way of a peer is not meant for this number of tokens; another one is."""


class Peer(Protocol):
    """What each module of this package offers, built with the folder of the wheels.

    Attributes:
        gate: its activation, "silu" or "swiglu".
        threads: how many threads may make the first calls, where these compile.
    """

    gate: str
    threads: int

    def __init__(self, folder: Path | None) -> None: ...

    def available(self) -> str | None:
        """Return why the peer cannot run, or None."""

    def prepare(self, moe: Sequence[tuple[str, int]], dense: Sequence[tuple[str, int]]) -> None:
        """Compile what these (shape, tokens) need, in parallel where the peer can."""

    def moe(self, case: MoeCase, tokens: Sequence[int]) -> Moe:
        """Lay out the weights, and return the ways to compute the layer."""

    def linear(self, case: DenseCase, tokens: Sequence[int]) -> Linear:
        """Lay out the weight, and return the ways to compute the linear."""


def load(name: str, folder: Path | None) -> Peer:
    """Return a peer of ``NAMES``."""
    return import_module(f"hopper.peers.{name}").Peer(folder)
