"""What a dialect is: how one public kind of checkpoint names, shapes and describes MXFP4 weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from mxfp4_core.config.schema import Mxfp4Config

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]
"""Name to (safetensors dtype, shape), as headers give it."""


@dataclass(frozen=True)
class Entry:
    """One quantised weight of a checkpoint.

    Args:
        weight: canonical name of the weight, with ``.weight`` for a linear and without for stacked experts.
        codes: name of the tensor of codes, uint8 ``[..., N, K/2]``.
        scales: name of the tensor of scales, uint8 ``[..., N, K/32]``.
        shape: logical shape ``[..., N, K]``, before any padding of K to whole blocks.
        transposed: whether the weight has the axes ``[..., K, N]`` in the model that was quantised.
    """

    weight: str
    codes: str
    scales: str
    shape: tuple[int, ...]
    transposed: bool = False


@dataclass(frozen=True)
class Contents:
    """What a dialect reads from a checkpoint.

    Args:
        entries: the quantised weights by canonical name, in the order of the file.
        kept: module names that the file declares as not quantised, in the dialect's own pattern language.
        profile: name of the resolved profile that wrote the codes, empty when the file does not say.
        activation: a word of ``mxfp4_core.config.ACTIVATIONS``: what the file asks for at run time.
    """

    entries: Mapping[str, Entry]
    kept: tuple[str, ...] = ()
    profile: str = ""
    activation: str = "none"


class Dialect(Protocol):
    """One public kind of checkpoint. Implementations are small stateless objects."""

    name: str
    stacked: bool
    """Whether 3-D weights of stacked experts, and padded weights, can be expressed."""

    def recognise(self, quantization_config: Mapping[str, Any], tensors: Shapes) -> str | None:
        """Return why a checkpoint is of this dialect, or None."""
        ...

    def tensor_names(self, weight_name: str) -> tuple[str, str]:
        """Return the names of codes and scales for a canonical weight name."""
        ...

    def how_to_load(self, path: str) -> str:
        """Return the line of Python or shell that loads a checkpoint of this dialect."""
        ...

    def write_config(
        self, config: Mxfp4Config, entries: Sequence[Entry], kept: Sequence[str], profile: str
    ) -> dict[str, Any]:
        """Return ``quantization_config`` for ``config.json``.

        Args:
            config: the settings that the codes were made with.
            entries: the quantised weights.
            kept: names of the linear modules that stay in high precision.
            profile: name of the resolved profile of the codes, empty when it is unknown.

        Raises:
            DialectError: something that this dialect has no word for.
        """
        ...

    def read(self, quantization_config: Mapping[str, Any], tensors: Shapes) -> Contents:
        """Find the quantised weights.

        Raises:
            DialectError: the description and the tensors contradict each other.
        """
        ...


__all__ = ["Contents", "Dialect", "Entry", "Shapes"]
