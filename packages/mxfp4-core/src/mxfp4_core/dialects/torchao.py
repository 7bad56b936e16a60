"""The torchao dialects: ``MXTensor`` weights as torchao 0.18 flattens them into safetensors.

Tensors: ``X._weight_qdata`` U8 ``[N, K/2]`` and ``X._weight_scale`` F8_E8M0: ``[N, K/32]`` in ``torchao-plain``, in
``torchao`` the layout of NVIDIA's matrix units, ``[ceil(N/128) 32, ceil(K/128) 16]``, as ``quantize_`` makes it.
The metadata of each file describes every tensor, without which torchao's reader takes none.

Source: torchao 0.18, ``prototype/mx_formats`` and ``prototype/safetensors``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from mxfp4_core.arithmetic.format import BLOCK
from mxfp4_core.dialects.base import AUTO_CLASS, Contents, Description, Dialect, Entry, one_activation
from mxfp4_core.dialects.joins import blocked, unblocked
from mxfp4_core.dialects.pairs import check_parts, contradiction, name_list, nothing
from mxfp4_core.dialects.recipes import Recipe
from mxfp4_core.dialects.source import Source
from mxfp4_core.errors import DialectError

_CONFIG: Final = "MXDynamicActivationMXWeightConfig"
_CODES: Final = "._weight_qdata"
_SCALES: Final = "._weight_scale"
_FP4: Final = {"_type": "torch.dtype", "_data": "float4_e2m1fn_x2"}
_MODES: Final = ("floor", "even", "rceil", "ceil")


class TorchAoDialect(Dialect):
    """Read and write ``quant_method: torchao`` with MXFP4 weights.

    Args:
        name: the name of the entry point.
        swizzled: whether scales are in the layout of the matrix units.
    """

    def __init__(self, name: str, *, swizzled: bool) -> None:
        self.name, self.swizzled = name, swizzled
        self.readers = "transformers with the package torchao; torchao itself"

    def __reduce__(self) -> tuple[object, ...]:
        return _installed, (self.swizzled,)

    def recognise(self, source: Source) -> str | None:
        """Recognise by ``quant_method`` and a config of MXFP4 weights; the shapes of scales tell the layouts apart."""
        if source.described.get("quant_method") != "torchao":
            return None
        data = _config(source.described)
        if data is None or data.get("weight_dtype") != _FP4:
            return None
        if any(_plain(source, name) for name in source.tensors if name.endswith(_CODES)) == self.swizzled:
            return None
        layout = "in blocks of 128 x 4" if self.swizzled else "row by row"
        return f"quant_method is torchao with weights in float4_e2m1fn_x2, scales {layout}"

    def read(self, source: Source) -> Contents:
        """Find the pairs, and bring scales that are stored in blocks into rows."""
        data = _config(source.described) or {}
        if data.get("block_size", BLOCK) != BLOCK:
            contradiction(self.name, f"block_size = {str(data['block_size'])[:60]}", "MXFP4 has blocks of 32")
        entries: dict[str, Entry] = {}
        for name in source.tensors:
            if name.endswith(_CODES):
                entry = self._entry(source, name.removesuffix(_CODES))
                entries[entry.weight] = entry
        used = {name for entry in entries.values() for name in entry.names}
        for name in source.tensors:
            if name.endswith(_SCALES) and name not in used:
                contradiction(self.name, f"scales {name!r} without codes", "each tensor of scales has codes")
        if not entries:
            nothing(self.name, source, f"no tensor X{_CODES}")
        self._check_metadata(source, entries)
        kept = name_list(self.name, source.described, "modules_to_not_convert")
        mode = data.get("scaling_mode")
        word = str(mode.get("_data")).lower() if isinstance(mode, dict) else ""
        profile = f"torchao-{word}" if word in _MODES else ""
        activation = "mxfp4" if data.get("activation_dtype", _FP4) == _FP4 else "none"
        return Contents(entries, source.rest(used), kept, profile, activation)

    def _entry(self, source: Source, module: str) -> Entry:
        if f"{module}{_SCALES}" not in source.tensors:
            contradiction(
                self.name, f"codes '{module}{_CODES}' without scales", "each tensor of codes has scales"
            )
        codes, scales = source.tensor(f"{module}{_CODES}"), source.tensor(f"{module}{_SCALES}")
        codes = codes.reinterpret("U8") if codes.dtype in ("I8", "F4") else codes
        scales = scales.reinterpret("U8") if scales.dtype == "F8_E8M0" else scales
        if len(codes.shape) != 2 or len(scales.shape) != 2 or codes.dtype != "U8" or scales.dtype != "U8":
            seen = f"{module!r}: codes {codes.dtype} {list(codes.shape)}, scales {scales.dtype} {list(scales.shape)}"
            contradiction(self.name, seen, "codes are U8 [N, K/2] and scales F8_E8M0 with two axes")
        n, k = codes.shape[0], codes.shape[1] * 2
        if self.swizzled:
            if k % BLOCK or scales.shape != (-(-n // 128) * 32, -(-k // 128) * 16):
                seen = f"{module!r}: codes {list(codes.shape)} with scales {list(scales.shape)}"
                contradiction(self.name, seen, "scales in blocks are [ceil(N/128) 32, ceil(K/128) 16]")
            scales = unblocked(scales, n, k // BLOCK)
        entry = Entry(f"{module}.weight", (n, k), {"codes": codes, "scales": scales})
        check_parts(self.name, entry)
        return entry

    def _check_metadata(self, source: Source, entries: Mapping[str, Entry]) -> None:
        """Refuse metadata that says another layout or format than the tensors have."""
        for name, text in source.metadata().items():
            if name not in entries:
                continue
            try:
                row = json.loads(text)
                told = (
                    row["_data"]["is_swizzled_scales"],
                    row["_data"]["elem_dtype"],
                    row["_data"]["block_size"],
                )
            except (ValueError, RecursionError, KeyError, TypeError):
                contradiction(self.name, f"metadata of {name!r}: {text[:80]}", "it describes an MXTensor")
            if told != (self.swizzled, _FP4, BLOCK):
                seen = f"metadata of {name!r}: swizzled, dtype and block are {str(told)[:120]}"
                contradiction(self.name, seen, "it says what the shapes of the tensors say")

    def write(self, entry: Entry) -> dict[str, Recipe]:
        """Store codes, and scales in the layout of this dialect."""
        module, scales = entry.weight.removesuffix(".weight"), entry.parts["scales"]
        stored = (blocked(scales) if self.swizzled else scales).reinterpret("F8_E8M0")
        return {f"{module}{_SCALES}": stored, f"{module}{_CODES}": entry.parts["codes"]}

    def describe(self, description: Description) -> dict[str, Any]:
        """Write the config with which ``quantize_`` makes such weights.

        Raises:
            DialectError: activations that are not MXFP4, for which torchao has no config.
        """
        return {
            "quant_method": "torchao",
            "quant_type": {
                "default": {
                    "_type": _CONFIG,
                    "_version": 1,
                    "_data": {
                        "block_size": BLOCK,
                        "activation_dtype": dict(_FP4),
                        "weight_dtype": dict(_FP4),
                        "kernel_preference": _preference(),
                        "scaling_mode": self._mode(description),
                    },
                }
            },
            "modules_to_not_convert": list(description.kept),
            "include_input_output_embeddings": False,
            "untie_embedding_weights": False,
        }

    def metadata(self, description: Description) -> dict[str, str]:
        """Describe every tensor, as the reader of torchao asks for it."""
        preference, mode = _preference(), self._mode(description)
        inputs = {
            "elem_dtype": _FP4,
            "block_size": BLOCK,
            "scaling_mode": mode,
            "kernel_preference": preference,
            "is_swizzled_scales": self.swizzled,
        }
        data = {
            "elem_dtype": _FP4,
            "block_size": BLOCK,
            "orig_dtype": {"_type": "torch.dtype", "_data": "bfloat16"},
            "kernel_preference": preference,
            "act_quant_kwargs": {"_type": "QuantizeTensorToMXKwargs", "_data": inputs},
            "is_swizzled_scales": self.swizzled,
        }
        row = json.dumps({"_type": "MXTensor", "_data": data, "_tensor_data_names": ["qdata", "scale"]})
        found = {entry.weight: row for entry in description.entries}
        found |= dict.fromkeys(description.others, json.dumps({"_type": "Tensor"}))
        return {**found, "tensor_names": json.dumps(list(found))}

    def how_to_load(self, path: str, model: str = AUTO_CLASS) -> str:
        """Load through transformers' own integration."""
        return f"import transformers; transformers.{model}.from_pretrained({path!r})  # with torchao"

    def _mode(self, description: Description) -> dict[str, str]:
        """Return the scale rule of activations: that of the weights where torchao has it, else its default."""
        activation = one_activation(self.name, description)
        if activation != "mxfp4":
            raise DialectError(
                f"these weights cannot be described in the dialect {self.name}",
                seen=f"activation {activation!r}",
                rule="torchao's config with MXFP4 weights quantises activations to MXFP4",
                fix="pass --activation mxfp4 to say so, or write another dialect",
            )
        from mxfp4_core.arithmetic.profiles import resolve

        rule = resolve(profile=description.profile).rule.name if description.profile else ""
        word = rule.upper() if rule in _MODES else "RCEIL"
        return {"_type": "ScaleCalculationMode", "_data": word}


def _preference() -> dict[str, str]:
    """Return which kernels torchao is to take: those that it chooses."""
    return {"_type": "KernelPreference", "_data": "AUTO"}


def _config(described: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the data of the config for weights and activations in MX formats; None for another one."""
    kind = described.get("quant_type")
    default = kind.get("default") if isinstance(kind, dict) else None
    if not isinstance(default, dict) or default.get("_type") != _CONFIG:
        return None
    data = default.get("_data")
    return data if isinstance(data, dict) else {}


def _plain(source: Source, codes: str) -> bool:
    """Return whether the scales beside these codes have a row for each row of them."""
    _, shape = source.tensors[codes]
    scales = source.tensors.get(f"{codes.removesuffix(_CODES)}{_SCALES}")
    packed = 2 if source.tensors[codes][0] != "F4" else 1
    return scales is not None and scales[1] == (*shape[:-1], shape[-1] * packed // BLOCK)


def _installed(swizzled: bool) -> TorchAoDialect:
    return TORCHAO if swizzled else TORCHAO_PLAIN


TORCHAO = TorchAoDialect("torchao", swizzled=True)
TORCHAO_PLAIN = TorchAoDialect("torchao-plain", swizzled=False)

__all__ = ["TORCHAO", "TORCHAO_PLAIN", "TorchAoDialect"]
