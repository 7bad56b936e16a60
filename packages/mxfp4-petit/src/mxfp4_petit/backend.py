"""The backend ``petit``: which provider serves a problem, said in the verdict and never changed silently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from mxfp4_core.backend import (
    Backend,
    Choice,
    Layout,
    Matrix,
    No,
    Packed,
    Problem,
    Routes,
    Verdict,
    Yes,
    check_choice,
    check_keys,
)
from mxfp4_petit.devices import installed
from mxfp4_petit.portable.provider import PortableProvider
from mxfp4_petit.vendor.provider import VendorProvider

if TYPE_CHECKING:
    from torch import Tensor

PROVIDERS: Final[Mapping[str, Backend]] = {"triton": PortableProvider(), "petit_kernel": VendorProvider()}
_WORDS: Final = ("auto", *PROVIDERS)


class PetitBackend(Backend):
    """W4A16 on GPUs without FP4: AMD's CDNA2 and CDNA3 unnamed, others by name. W8A16 unnamed wherever it compiles.

    ``auto`` takes petit-kernel for the linear layers that it can, where it is installed, and our own kernels for the
    rest: experts, float16, other devices.

    Args:
        provider: what the option ``provider`` is where a problem does not say it.
        providers: by name.
    """

    name = "petit"
    description = (
        "AMD CDNA2 and CDNA3 (MI200, MI300): W4A16 and, on any GPU of Triton, W8A16, widened in registers"
    )
    features = PortableProvider.features
    automatic_on = PortableProvider.automatic_on
    packages = ("petit-kernel", "triton")

    def __init__(self, provider: str = "auto", providers: Mapping[str, Backend] = PROVIDERS) -> None:
        self.provider, self.providers = provider, providers
        pinned = providers.get(provider, providers["triton"])
        self.features, self.numerics = pinned.features, pinned.numerics

    def supports(self, problem: Problem) -> Verdict:
        """Ask the provider; see ``Backend.supports``."""
        chosen, why = self._chosen(problem)
        answer = chosen.supports(problem)
        if isinstance(answer, No):
            return answer
        notes = filter(None, (answer.note, why))
        return replace(answer, note="; ".join(notes), numerics=answer.numerics or chosen.numerics)

    def check_options(self, options: Mapping[str, object]) -> None:
        """Take ``provider``; see ``Backend.check_options``."""
        check_keys(self.name, options, ("provider",))
        check_choice(self.name, options, "provider", _WORDS)

    def _chosen(self, problem: Problem) -> tuple[Backend, str]:
        """Return the provider, and why it is not the other one where that could be expected."""
        asked = str(problem.options.get("provider", self.provider))
        if asked != "auto":
            return self.providers[asked], ""
        vendor, own = self.providers["petit_kernel"], self.providers["triton"]
        found = self.found()
        if found is None:
            return own, ""
        answer = vendor.supports(problem)
        if isinstance(answer, Yes):
            return vendor, ""
        return own, f"not by petit-kernel {found}: {answer.reason}"

    def found(self) -> str | None:
        """Return the version of petit-kernel that is installed, None without it."""
        return installed("petit-kernel")

    def layout(self, problem: Problem, matrix: Matrix = "weight") -> Layout:
        """Return the layout of the provider."""
        return self._chosen(problem)[0].layout(problem, matrix)

    def linear(self, x: Tensor, weight: Packed, problem: Problem) -> Tensor:
        """Compute ``x @ weight.T + bias``; see ``Backend.linear``."""
        return self._packed_by(weight).linear(x, weight, problem)

    def moe(self, x: Tensor, gate_up: Packed, down: Packed, routes: Routes, problem: Problem) -> Tensor:
        """Compute the weighted sum over the chosen experts; see ``Backend.moe``."""
        return self._packed_by(down).moe(x, gate_up, down, routes, problem)

    def choices(self, problem: Problem) -> Sequence[Choice]:
        """List the tiles of our own kernels for each number of tokens; petit-kernel does not say its own."""
        return self._chosen(problem)[0].choices(problem)

    def _packed_by(self, weight: Packed) -> Backend:
        return self.providers["petit_kernel" if weight.layout == VendorProvider.layout_id else "triton"]


backend = PetitBackend()

__all__ = ["PROVIDERS", "PetitBackend", "backend"]
