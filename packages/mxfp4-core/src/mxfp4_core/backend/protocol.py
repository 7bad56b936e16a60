"""What a backend is: the words that the core and a backend exchange.

    Problem ──► Backend.supports ──► Yes | No(reason, fix)       no device needed, never raises
    Problem ──► Backend.layout   ──► Layout.pack / Layout.unpack  index maths, runs on the CPU
    tensors ──► Backend.linear / Backend.moe / Backend.quantize
    nothing ──► Backend.kernels  ──► what `mxfp4 warmup` compiles ahead    optional, as is the next
    Problem ──► Backend.choices  ──► which kernel `mxfp4 doctor` shows for how many tokens

The core does what every backend would have to repeat: it checks dtypes and shapes, pads to the declared
alignment, makes inputs contiguous, answers for zero tokens and crops the result (``calls.py``). So a backend
sees sizes that its kernel takes, and nothing else. How to write one: ``docs/add-a-backend.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from mxfp4_core.arithmetic.shapes import Alignment
from mxfp4_core.backend.answers import Numerics, Verdict
from mxfp4_core.backend.choices import Choice
from mxfp4_core.backend.compiled import Kernels
from mxfp4_core.backend.options import Value, check_keys
from mxfp4_core.backend.problem import Matrix, Problem
from mxfp4_core.backend.routes import Routes
from mxfp4_core.config.words import Activation
from mxfp4_core.errors import BackendError

if TYPE_CHECKING:
    from torch import Tensor

    from mxfp4_core.arithmetic.tensor import MxTensor


class Layout(Protocol):
    """How a device wants the bytes of one weight. Both directions are index maths on any torch device.

    Attributes:
        id: name of the layout; every variant has its own, because a packed tensor is known by this name
            alone.
        alignment: multiples of n and k that ``pack`` takes. For the gate-up weight of an expert n is the
            number of gate rows, half of the rows.
    """

    @property
    def id(self) -> str:
        """Name of the layout and of its variant."""
        ...

    @property
    def alignment(self) -> Alignment:
        """Multiples of n and k that ``pack`` takes."""
        ...

    def pack(self, weight: MxTensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        """Turn canonical bytes into the tensors that the kernel reads.

        Args:
            weight: codes uint8 [(experts,) n, k/2] and scales uint8 [(experts,) n, k/32], aligned.
            bias: [(experts,) n] or None. A layout that needs it adds it under the name ``bias``.

        Returns:
            Tensors by name, with at least one entry. They may alias ``weight`` where nothing has to move.

        Raises:
            ShapeError: n or k is not aligned.
            FormatError: a scale byte that the device cannot represent.
        """
        ...

    def unpack(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> MxTensor:
        """Give back the canonical bytes; the inverse of ``pack``.

        Args:
            tensors: what ``pack`` returned, or copies of it.
            shape: the physical shape [(experts,) n, k] that was packed.
        """
        ...


@runtime_checkable
class InPlaceLayout(Protocol):
    """What a layout may have beside ``pack``."""

    def pack_in_place(self, weight: MxTensor, bias: Tensor | None = None) -> dict[str, Tensor]:
        """Return the same tensors as ``pack``; they may be in the memory of ``weight``, whose bytes are lost.

        Beside that memory it takes a bounded amount, or one expert's, also for a stack of hundreds.

        Args:
            weight: as for ``pack``. After an error its bytes are what they were.
            bias: as for ``pack``.

        Raises:
            ShapeError, FormatError: as ``pack``, before anything is written.
        """
        ...


@dataclass(frozen=True)
class Packed:
    """A weight in a device's layout.

    Marks that a vendor hangs on a tensor object are lost by copies; ``layout`` is not, so set them from it.

    Attributes:
        layout: ``Layout.id`` of whoever packed it.
        tensors: what ``Layout.pack`` returned.
        shape: physical shape [(experts,) n, k], after padding.
    """

    layout: str
    tensors: Mapping[str, Tensor]
    shape: tuple[int, ...]


class Backend(Protocol):
    """One accelerator, or one way to use it. Subclass this class, or just have the same members.

    Importing the package that holds the backend touches no device. The object is stateless as far as a caller can
    see: it is pickled and deep-copied with the modules that use it.

    Attributes:
        name: the same name as the entry point.
        description: one line for people.
        features: words of ``Problem.features`` that the backend knows, ops included; what it can for one op only is
            written ``moe:activation:mxfp4``. A problem with any other word is refused by the core before
            ``supports`` is asked.
        numerics: see ``Numerics``.
        automatic_on: devices on which it may be chosen without being named: a type, ``cuda``, or a type with one
            architecture, ``hip:gfx942``. Empty for emulations. A `Yes` may say otherwise for its problem.
        packages: names of other packages whose versions matter, for ``mxfp4 doctor``; optional.
        usual_activation: how activations are quantised where a model is loaded and nobody says it: ``auto`` for a
            backend whose fast path quantises them; optional.
    """

    name: str
    description: str
    features: frozenset[str]
    numerics: Numerics
    automatic_on: frozenset[str]
    packages: tuple[str, ...] = ()
    usual_activation: Activation = "none"

    def __repr__(self) -> str:
        return f"<backend {self.name}>"

    def supports(self, problem: Problem) -> Verdict:
        """Answer for one problem: pure, never raises, works on every machine.

        This is the place for architectures, alignments that cannot be padded, and versions of kernel packages
        ("found X, need Y").
        """
        ...

    def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
        """Choose the layout of one weight: ``weight`` of a linear, ``gate_up`` or ``down`` of a moe."""
        ...

    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        """Compute ``x @ weight.T + bias``.

        Args:
            x: [m, k] with m >= 1 and the physical k, contiguous, of ``problem.dtype``.
            weight: packed by ``layout(problem)``.
            problem: the problem that ``supports`` accepted; n and k are logical.

        Returns:
            [m, n] with the physical n, of the dtype of x. The core crops it.
        """
        raise _missing(self, "linear")

    def moe(self, x: Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem) -> Tensor:
        """Compute the sum over the chosen experts of ``topk_weight * expert(x)``.

        What follows is for flat tokens; see ``Problem.tokens`` for the others.

        Args:
            x: [m, k] with m >= 1 and the physical k, contiguous, of ``problem.dtype``.
            gate_up: [experts, 2n, k], packed by ``layout(problem, "gate_up")``; the n gate rows and the n up
                rows are padded separately.
            down: [experts, k, n], packed by ``layout(problem, "down")``.
            routes: contiguous, on the device of x: ids int32 [m, top_k], weights float32 [m, top_k], map int32
                [total_experts] or None.
            problem: the problem that ``supports`` accepted; n and k are logical.

        Returns:
            [m, k] with the physical k, of the dtype of x. The core crops it.

        Raises:
            ShapeError: an id that is neither -1 nor an expert, unless the backend reads it as an empty slot.
        """
        raise _missing(self, "moe")

    def direct_linear(self, weight: Packed, problem: Problem) -> Callable[[Tensor], Tensor] | None:
        """Return ``linear`` for one weight without torch's dispatcher; optional, for calls that nobody traces.

        What depends on the weight alone is checked here, once. Refits write into the tensors of the weight, which
        keep device, dtype and shape, and may get other memory.

        Returns:
            A function of x ``[..., k]``, contiguous, of the problem's dtype and device, with at least one row and the
            physical k, to ``[..., n]``; None where there is no such way.
        """
        return None

    def direct_moe(
        self, gate_up: Packed, down: Packed, problem: Problem
    ) -> Callable[[Tensor, Routes], Tensor] | None:
        """Return ``moe`` for one layer without torch's dispatcher; optional, as ``direct_linear``.

        Returns:
            A function of x ``[m, k]`` and routes as ``moe`` gets them, to ``[m, k]``; None where there is no such way.
        """
        return None

    def quantize(self, weight: Tensor, *, profile: str) -> MxTensor:
        """Quantise on the device, to the bytes that ``mxfp4_core.quantize`` gives for the same profile.

        Args:
            weight: [..., n, k], k a multiple of 32, of bfloat16, float16 or float32.
            profile: one of ``numerics.profiles``.
        """
        raise _missing(self, "quantize")

    def quantize_into(self, weight: Tensor, parts: Mapping[str, Tensor], *, profile: str) -> None:
        """Quantise as ``quantize`` does, into tensors that exist; optional, for kernels that write where they are told.

        Args:
            weight: as for ``quantize``.
            parts: ``codes`` uint8 [..., n, k/2] and ``scales`` uint8 [..., n, k/32] on the device of the weight; they
                may be slices. Those of another format where ``features`` has ``quantize:format:...``.
            profile: as for ``quantize``, or one that the verdict's numerics list for that format.
        """
        made = self.quantize(weight, profile=profile)
        for name, part in made.parts.items():
            parts[name].copy_(part)

    def kernels(self) -> Kernels | None:
        """List what is compiled on this machine and kept; None: nothing is. Touches no device; see ``Kernels``.

        Raises:
            BackendError: the compiler is missing.
        """
        return None

    def choices(self, problem: Problem) -> Sequence[Choice]:
        """List which kernel runs from how many tokens on: pure, asked for problems that ``supports`` accepts."""
        return ()

    def check_options(self, options: Mapping[str, Value]) -> None:
        """Refuse options that the backend does not have; what it takes reaches it as ``problem.options``.

        ``check_keys`` and ``check_choice`` of ``mxfp4_core.backend`` make the errors. Pure, needs no device.

        Raises:
            ConfigError: an option or a value that it does not know.
        """
        check_keys(self.name, options, ())


def pack_in_place(layout: Layout, weight: MxTensor, bias: Tensor | None = None) -> dict[str, Tensor]:
    """Pack a weight whose canonical bytes are not needed again, in its own memory where the layout can."""
    return (
        layout.pack_in_place(weight, bias) if isinstance(layout, InPlaceLayout) else layout.pack(weight, bias)
    )


def _missing(backend: Backend, op: str) -> BackendError:
    return BackendError(
        f"backend {backend.name!r}, {op}",
        seen=f"features {sorted(backend.features)}",
        rule="an op that is listed in features is implemented",
        fix=f"ask for {op} from another backend",
    )


__all__ = ["Backend", "InPlaceLayout", "Layout", "Packed", "pack_in_place"]
