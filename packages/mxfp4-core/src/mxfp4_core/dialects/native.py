"""The native dialect ``mxfp4-core``: it also keeps stacked experts, padding and the exact rule.

Tensors: ``X.weight`` codes U8 ``[N, K/2]`` with ``X.weight_scale`` U8 ``[N, K/32]``; stacked experts
    ``X.gate_up_proj``
U8 ``[E, N, K/2]`` with ``X.gate_up_proj_scale``. K is always the last axis, also where the model holds ``[E,
    K, N]``.

``quantization_config``: ``quant_method``, the fields of `Mxfp4Config` but the backend, and three facts about
    the tensors:
``weights_profile`` (the resolved profile that made the codes, empty when unknown), ``shapes`` (logical shapes
    of
padded weights) and ``transposed`` (weights that the model holds with K before N).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mxfp4_core.arithmetic.format import BLOCK
from mxfp4_core.dialects.base import Contents, Entry, Shapes
from mxfp4_core.dialects.pairs import contradiction, linear_pairs, name_list, shape_table

if TYPE_CHECKING:
    from mxfp4_core.config.schema import Mxfp4Config

_FACTS = ("weights_profile", "shapes", "transposed")


class NativeDialect:
    """Read and write ``quant_method: mxfp4-core``."""

    name = "mxfp4-core"
    stacked = True

    def recognise(self, quantization_config: Mapping[str, Any], tensors: Shapes) -> str | None:
        """Recognise by ``quant_method``."""
        return "quant_method is mxfp4-core" if quantization_config.get("quant_method") == self.name else None

    def tensor_names(self, weight_name: str) -> tuple[str, str]:
        """Keep the name for codes and append ``_scale`` for scales."""
        return weight_name, f"{weight_name}_scale"

    def how_to_load(self, path: str) -> str:
        """Load through the transformers adapter of this project."""
        return f"import mxfp4_transformers; AutoModelForCausalLM.from_pretrained({path!r})"

    def write_config(
        self, config: Mxfp4Config, entries: Sequence[Entry], kept: Sequence[str], profile: str
    ) -> dict[str, Any]:
        """Write the `Mxfp4Config` and the facts about the tensors."""
        padded = {entry.weight: list(entry.shape) for entry in entries if entry.shape[-1] % BLOCK}
        facts = {"shapes": padded, "transposed": sorted(e.weight for e in entries if e.transposed)}
        # Which backend runs the weights belongs to a machine, not to a file.
        settings = {
            key: value for key, value in config.to_dict().items() if key not in ("backend", "fallback")
        }
        return {"quant_method": self.name, **settings, "weights_profile": profile, **facts}

    def read(self, quantization_config: Mapping[str, Any], tensors: Shapes) -> Contents:
        """Find the pairs and check them against the description."""
        shapes = shape_table(self.name, quantization_config, "shapes")
        transposed = frozenset(name_list(self.name, quantization_config, "transposed"))
        entries = linear_pairs(
            self.name,
            tensors,
            codes_suffix=".weight",
            stacked_suffix="_scale",
            shapes=shapes,
            transposed=transposed,
        )
        for weight in (*shapes, *transposed):
            if weight not in entries:
                contradiction(
                    self.name, f"a description of {weight!r}, which is not quantised", "facts match tensors"
                )
        activation = str(quantization_config.get("activation") or "none")
        return Contents(entries, (), str(quantization_config.get("weights_profile") or ""), activation)

    @staticmethod
    def settings(quantization_config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the part of ``quantization_config`` that `Mxfp4Config.from_dict` takes."""
        return {
            key: value for key, value in quantization_config.items() if key not in ("quant_method", *_FACTS)
        }


NATIVE = NativeDialect()

__all__ = ["NATIVE", "NativeDialect"]
