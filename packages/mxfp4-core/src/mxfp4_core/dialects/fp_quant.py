"""The FP-Quant dialect, which is read and not written: MXFP4 codes of rotated weights.

Tensors: ``X.qweight`` U8 ``[N, K/2]``, ``X.scales`` U8 ``[N, K/32]``, ``X.weight_global_scale`` F32 ``[1]``, and the
matrix ``[h, h]`` by which each ``h`` values along K were multiplied, ``X.forward_hadamard_matrix``. A weight is
``code x 2**(byte - 127) / global scale``, multiplied by the transposed matrix: no plain MXFP4 has these values.

The matrix is stored in BF16, in which 32**-0.5 is rounded; the writer multiplied by the exact one. Where all entries
have one magnitude, they count as ``+-h**-0.5``. Source: FP-Quant d2e3092; transformers 5.23,
``integrations/fp_quant.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

from mxfp4_core.arithmetic.format import BLOCK
from mxfp4_core.dialects.base import AUTO_CLASS, Contents, Description, Dialect, Entry
from mxfp4_core.dialects.beside import Narrow
from mxfp4_core.dialects.pairs import contradiction, name_list, nothing
from mxfp4_core.dialects.raw import Bytes
from mxfp4_core.dialects.recipes import Recipe
from mxfp4_core.dialects.source import Source
from mxfp4_core.errors import DialectError

if TYPE_CHECKING:
    import torch

_LARGEST: Final = 1024
"""More than any size of a rotation that FP-Quant has."""

_CODES, _SCALES, _GLOBAL, _MATRIX = ".qweight", ".scales", ".weight_global_scale", ".forward_hadamard_matrix"
_MORE: Final = (".act_global_scale", ".backward_hadamard_matrix", ".dqweight")
"""What the tensors of a quantised layer have beside these, and its values do not depend on."""


@dataclass(frozen=True)
class Rotated(Narrow):
    """One weight of FP-Quant.

    Args:
        weight: canonical name.
        codes: U8 ``[N, K/2]``.
        scales: U8 ``[N, K/32]``.
        divisor: F32 ``[1]``.
        matrix: BF16 or F32 ``[h, h]``.
    """

    codes: Recipe
    scales: Recipe
    divisor: Recipe
    matrix: Recipe

    @property
    def shape(self) -> tuple[int, ...]:
        """Two values for each byte of codes."""
        return self.codes.shape[0], self.codes.shape[1] * 2

    @property
    def stored(self) -> tuple[Recipe, ...]:
        """Its four tensors."""
        return self.codes, self.scales, self.divisor, self.matrix

    @property
    def told(self) -> str:
        """What plain MXFP4 cannot express."""
        return f"MXFP4 rotated by a matrix of {self.matrix.shape[0]} and divided by a number, as FP-Quant stores it"

    def numbers(self, source: Bytes, start: int, stop: int) -> torch.Tensor:
        """Decode, divide and rotate back."""
        import torch

        from mxfp4_core.arithmetic.fast.decode import dequantize

        codes, scales = self.codes.load(source, start, stop), self.scales.load(source, start, stop)
        values = dequantize(codes, scales, torch.float32).double() / self.divisor.load(source).double()
        matrix = self.matrix.load(source).double()
        if matrix.abs().unique().numel() == 1:
            matrix = matrix.sign() * len(matrix) ** -0.5
        return (values.reshape(-1, len(matrix)) @ matrix.T).reshape(values.shape)


class FpQuantDialect(Dialect):
    """Read ``quant_method: fp_quant`` with MXFP4 weights; say why it is not written."""

    name = "fp-quant"
    readers = "vLLM and transformers on GPUs with FP4; it is read here, and not written"

    def recognise(self, source: Source) -> str | None:
        """Recognise by ``quant_method`` and ``forward_dtype``."""
        described = source.described
        if described.get("quant_method") == "fp_quant" and described.get("forward_dtype") == "mxfp4":
            return "quant_method is fp_quant, forward_dtype is mxfp4"
        return None

    def read(self, source: Source) -> Contents:
        """Find the weights; their values are made, since their codes are no MXFP4 of them."""
        described = source.described
        if described.get("pseudoquantization") or described.get("store_master_weights"):
            contradiction(self.name, "weights that are not stored as codes", "each weight has its .qweight")
        beside: dict[str, Narrow] = {}
        for name in source.tensors:
            if name.endswith(_CODES):
                found = self._weight(source, name.removesuffix(_CODES))
                beside[found.weight] = found
        if not beside:
            nothing(self.name, source, f"no tensor X{_CODES}")
        used = {name for each in beside.values() for name in each.names}
        modules = {weight.removesuffix(".weight") for weight in beside}
        for name in source.tensors:
            module, _, end = name.rpartition(".")
            if name not in used and f".{end}" in (_SCALES, _GLOBAL, _MATRIX) and module not in modules:
                contradiction(self.name, f"{name!r} without codes", f"each belongs to an X{_CODES}")
        own = {f"{module}{end}" for module in modules for end in _MORE}
        kept = name_list(self.name, described, "modules_to_not_convert")
        more = {name: source.tensor(name) for name in source.tensors if name in own}
        return Contents({}, source.rest(used | own), kept, "", "mxfp4", more, beside)

    def _weight(self, source: Source, module: str) -> Rotated:
        names = {end: f"{module}{end}" for end in (_CODES, _SCALES, _GLOBAL, _MATRIX)}
        for name in names.values():
            if name not in source.tensors:
                contradiction(self.name, f"{names[_CODES]!r} without {name!r}", "a weight has all its parts")
        codes, scales, divisor, matrix = (source.tensor(name) for name in names.values())
        sizes = matrix.shape
        fits = (codes.dtype, scales.dtype, divisor.dtype) == ("U8", "U8", "F32")
        fits = (
            fits
            and len(codes.shape) == 2
            and divisor.shape == (1,)
            and matrix.dtype in ("BF16", "F32", "F16")
        )
        fits = fits and len(sizes) == 2 and sizes[0] == sizes[1] and 0 < sizes[0] <= _LARGEST
        if not fits or codes.shape[1] % 16 or (codes.shape[1] * 2) % sizes[0] or scales.shape != (
            codes.shape[0], codes.shape[1] * 2 // BLOCK
        ):  # fmt: skip
            seen = ", ".join(
                f"{name!r} {' '.join(map(str, source.tensors[name]))}" for name in names.values()
            )
            rule = "codes are U8 [N, K/2], scales U8 [N, K/32], the divisor F32 [1], the matrix [h, h], K % h is 0"
            contradiction(self.name, seen, rule)
        return Rotated(f"{module}.weight", codes, scales, divisor, matrix)

    def check(self, entry: Entry) -> None:
        """Refuse: its codes stand for rotated weights.

        Raises:
            DialectError: always.
        """
        self._refuse(f"tensor {entry.weight!r}")

    def write(self, entry: Entry) -> dict[str, Recipe]:
        """Refuse; see `check`."""
        self._refuse(f"tensor {entry.weight!r}")

    def describe(self, description: Description) -> dict[str, Any]:
        """Refuse; see `check`."""
        self._refuse("a checkpoint")

    def how_to_load(self, path: str, model: str = AUTO_CLASS) -> str:
        """Load in an engine that reads it."""
        return f"vllm serve {path}"

    def _refuse(self, what: str) -> NoReturn:
        raise DialectError(
            f"{what} cannot be written in the dialect {self.name}",
            seen="MXFP4 codes of the weights themselves",
            rule="FP-Quant stores codes of weights that were rotated and divided by 3, which rounds them anew",
            fix="write another dialect, or quantise the checkpoint in high precision with FP-Quant itself",
        )


FP_QUANT = FpQuantDialect()

__all__ = ["FP_QUANT", "FpQuantDialect", "Rotated"]
