"""The dialect ``modelslim``: MXFP4 weights of one or two levels as msmodelslim 26.1 writes them for Ascend.

Tensors of a linear: ``X.weight`` U8 ``[N, K/2]``, ``X.weight_scale`` U8 ``[N, K/32]``, for two levels
``X.weight_dual_scale`` F32 ``[N, K/512, 1]``, and after smoothing ``mul_scale`` F32 ``[K]``, by which x is multiplied
before it is quantised (see `names`). Exports of 2025 hold codes as F8_E4M3 ``[N, K]``, one value a byte. config.json
says nothing of all this: ``quant_model_description.json`` gives each tensor its type.

Sources: msmodelslim 26.1.0, ``AscendV1Saver``; SGLang 0.5.13 to 0.5.23, ``modelslim_mxfp4_scheme.py``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from mxfp4_core.arithmetic import GROUP
from mxfp4_core.checkpoint import Layout
from mxfp4_core.dialects import (
    Contents,
    Description,
    Dialect,
    Entry,
    Recipe,
    Source,
    check_parts,
    contradiction,
    nothing,
)
from mxfp4_core.errors import DialectError
from mxfp4_npu import names
from mxfp4_npu.recipes import Multiplier, Narrowed, Wide

_METHODS: Final = ("modelslim", "ascend")
_FLOATS: Final = ("BF16", "F16", "F32", "F64")


class ModelSlimDialect(Dialect):
    """Read and write ``quant_model_description.json`` with W4A4_MXFP4 and W4A4_MXFP4_DUALSCALE."""

    name = "modelslim"
    readers = "vllm-ascend, SGLang on Ascend"
    formats = frozenset({"mxfp4", "mxfp4+input_scale", "mxfp4-dual", "mxfp4-dual+input_scale"})
    layout = Layout("quant_model_weights", bare=True, newline=False)

    def recognise(self, source: Source) -> str | None:
        """Recognise by a type in the description, or by a method in config.json that needs one."""
        described = source.document(names.DESCRIPTION)
        if described is None:
            method = source.described.get("quant_method")
            return f"quant_method is {method}" if method in _METHODS else None
        for name, kind in described.items():
            if kind in (names.SINGLE, names.DUAL):
                return f"{names.DESCRIPTION}: {name!r} is {kind}"
        return None

    def read(self, source: Source) -> Contents:
        """Find the weights by their types. What has no type and is a float stays as it is."""
        described = source.document(names.DESCRIPTION)
        if described is None:
            seen = f"quant_method {source.described.get('quant_method')!r} and no {names.DESCRIPTION}"
            contradiction(
                self.name, seen, "that file says the type of each tensor; it stands beside config.json"
            )
        kinds = self._kinds(source, described)
        entries: dict[str, Entry] = {}
        used: set[str] = set()
        for name, kind in kinds.items():
            if kind != names.FLOAT and name.endswith(".weight"):
                entry, stored = self._entry(source, name, dual=kind == names.DUAL)
                entries[entry.weight] = entry
                used |= stored
        if not entries:
            nothing(self.name, source, f"no weight of a type {names.SINGLE} or {names.DUAL}")
        rest: dict[str, Recipe] = {}
        for name, recipe in source.rest(used).items():
            self._check_rest(name, recipe, kinds)
            rest[names.unwrapped_tensor(name, source.tensors)] = recipe
        told = {names.unwrapped_tensor(name, source.tensors) for name in kinds}
        return Contents(entries, rest, activation="mxfp4", untold=rest.keys() - told)

    def _kinds(self, source: Source, described: Mapping[str, Any]) -> dict[str, str]:
        """Return the type of each tensor that has one, by its name in the file."""
        kinds: dict[str, str] = {}
        for key, kind in described.items():
            if key in names.SETTINGS:
                continue
            # A repack may have renamed the tensors and left the description, or the other way round.
            spellings = (key, key.replace(".linear.", "."), key.replace(".div.", "."))
            stored = next((name for name in spellings if name in source.tensors), None)
            if stored is None and isinstance(kind, str) and kind in names.TYPES:
                seen = f"{key!r} in {names.DESCRIPTION}, and no such tensor"
                contradiction(self.name, seen, "each tensor that is described is in a file")
            if stored is None:
                continue  # another setting of the exporter
            if kind not in names.TYPES:
                seen = f"{key!r} is {str(kind)[:60]!r}"
                contradiction(self.name, seen, f"types that are read: {', '.join(names.TYPES)}")
            kinds[stored] = kind
        return kinds

    def _entry(self, source: Source, name: str, *, dual: bool) -> tuple[Entry, set[str]]:
        """Return a weight, and the names of all its tensors."""
        layer = names.layer_of(name, source.tensors)
        found = {"codes": name, "scales": f"{layer.stored}.{names.SCALE}"}
        outer = f"{layer.stored}.{names.OUTER}"
        if dual:
            found["level0"] = outer
        elif outer in source.tensors:
            contradiction(self.name, f"{outer!r} for a weight of one level", f"type {names.DUAL} has it")
        for part, stored in found.items():
            if stored not in source.tensors:
                seen = f"{name!r} without {stored!r}"
                contradiction(self.name, seen, f"a weight of this type has its {part}")
        parts = {"codes": self._codes(source.tensor(name)), "scales": _bytes(source.tensor(found["scales"]))}
        if dual:
            parts["level0"] = self._level0(source.tensor(outer), outer)
        kind, k = "mxfp4-dual" if dual else "mxfp4", 2 * parts["codes"].shape[-1]
        if layer.multiplier:
            parts["input_scale"] = self._multiplier(source, layer.multiplier, k)
            kind, found["input_scale"] = f"{kind}+input_scale", layer.multiplier
        shape = (*parts["codes"].shape[:-1], k)
        entry = Entry(f"{layer.module}.weight", shape, parts, kind, activation="mxfp4")
        check_parts(self.name, entry)
        return entry, set(found.values())

    def _codes(self, stored: Recipe) -> Recipe:
        """Return codes U8 [N, K/2]; the older container has one value a byte."""
        if len(stored.shape) != 2:
            contradiction(self.name, f"codes of shape {list(stored.shape)}", "a weight has two axes [N, K]")
        if stored.dtype == "F8_E4M3" and stored.shape[1] % 2 == 0:
            return Narrowed("U8", (stored.shape[0], stored.shape[1] // 2), stored)
        return _bytes(stored)

    def _level0(self, stored: Recipe, name: str) -> Recipe:
        """Return outer scales F32 [N, K/512] from [N, K/512, 1]."""
        if len(stored.shape) != 3 or stored.shape[2] != 1:
            contradiction(self.name, f"{name!r} {list(stored.shape)}", "outer scales are [N, K/512, 1]")
        return stored.reshape(*stored.shape[:2])

    def _multiplier(self, source: Source, name: str, k: int) -> Recipe:
        dtype, shape = source.tensors[name]
        if dtype != "F32" or shape != (k,):
            contradiction(
                self.name, f"{name!r} is {dtype} {list(shape)}", f"it is F32 [{k}], one value for each input"
            )
        return Multiplier("F32", shape, name, source.tensor(name))

    def _check_rest(self, name: str, recipe: Recipe, kinds: Mapping[str, str]) -> None:
        if name.endswith((f".{names.SCALE}", f".{names.OUTER}", *names.MULTIPLIERS)):
            contradiction(
                self.name, f"{name!r} without codes", "each tensor of scales belongs to a weight of a type"
            )
        kind = kinds.get(name)
        if recipe.dtype not in _FLOATS and (kind == names.FLOAT or name.endswith(".weight")):
            contradiction(
                self.name,
                f"{name!r} is {recipe.dtype}, and {kind or 'of no type'} in {names.DESCRIPTION}",
                "what is not quantised is stored as floats",
            )

    def check(self, entry: Entry) -> None:
        """Take linears in whole blocks, or in whole groups of 512 for two levels."""
        super().check(entry)
        if "level0" in entry.parts and entry.shape[-1] % GROUP:
            raise DialectError(
                f"tensor {entry.weight!r} cannot be written in the dialect {self.name}",
                seen=f"K = {entry.shape[-1]}, padded",
                rule=f"that dialect stores two levels of scales for whole groups of {GROUP}",
                fix="write the dialect mxfp4-core, choose one level, or add the name to ignore",
            )

    def write(self, entry: Entry) -> dict[str, Recipe]:
        """Name the parts as msmodelslim does, without the words of its wrapper."""
        module, parts = entry.weight.removesuffix(".weight"), entry.parts
        stored = {entry.weight: parts["codes"], f"{module}.{names.SCALE}": parts["scales"]}
        if (outer := parts.get("level0")) is not None:
            stored[f"{module}.{names.OUTER}"] = outer.reshape(*outer.shape, 1)
        if (multiplier := parts.get("input_scale")) is not None:
            stored[f"{module}{names.MULTIPLIERS[-1]}"] = multiplier
        return stored

    def write_others(self, tensors: Mapping[str, Recipe], model: Mapping[str, Any]) -> dict[str, Recipe]:
        """Store the biases of quantised linears in float32, as msmodelslim does, which is exact; all else as it is."""
        return {
            name: Wide("F32", recipe.shape, recipe)
            if name.endswith(".bias")
            and f"{name.removesuffix('.bias')}.weight" not in tensors
            and recipe.dtype in ("BF16", "F16")
            else recipe
            for name, recipe in tensors.items()
        }

    def describe(self, description: Description) -> dict[str, Any]:
        """Return nothing: config.json of this dialect does not speak of quantisation."""
        return {}

    def documents(self, description: Description) -> dict[str, dict[str, Any]]:
        """Write config.json without a word of quantisation, and the type of each tensor beside it.

        Raises:
            DialectError: activations in another form than MXFP4, which every type that is written has.
        """
        for activation in description.config.activations():
            if activation not in ("mxfp4", "auto"):
                raise DialectError(
                    f"cannot describe these weights in the dialect {self.name}",
                    seen=f"activation {activation!r}",
                    rule=f"{names.SINGLE} and {names.DUAL} quantise activations to MXFP4",
                    fix="set activation to 'mxfp4', or write the dialect mxfp4-core",
                )
        entries = {entry.weight: entry for entry in description.entries}
        others = set(description.others).difference(description.untold)
        # Weight by weight as msmodelslim writes them: the parts of one side by side.
        kinds: dict[str, str] = {}
        for name in sorted(entries.keys() | others):
            if (entry := entries.get(name)) is not None:
                kinds |= self._types(entry, others)
            elif not (name.endswith(".bias") and f"{name.removesuffix('.bias')}.weight" in entries):
                kinds[name] = names.FLOAT
        settings: dict[str, Any] = {
            "version": "1.0.0",
            "model_quant_type": names.DUAL if names.DUAL in kinds.values() else names.SINGLE,
            "metadata": {},
            "group_size": 32,
            "optional": {},
        }
        model = {key: value for key, value in description.model.items() if key != "quantization_config"}
        documents: dict[str, dict[str, Any]] = {"config.json": model} if model else {}
        return {**documents, names.DESCRIPTION: {**kinds, **settings}}

    def _types(self, entry: Entry, others: Collection[str]) -> dict[str, str]:
        """Return the types of the tensors of a linear, in the order of msmodelslim."""
        module, kind = entry.weight.removesuffix(".weight"), names.SINGLE
        if "level0" in entry.parts:
            kind = names.DUAL
        stored = dict.fromkeys(self.write(entry), kind)
        multiplier, bias = f"{module}{names.MULTIPLIERS[-1]}", f"{module}.bias"
        found = {multiplier: names.FLOAT} if stored.pop(multiplier, "") else {}
        found |= stored
        if bias in others:
            found[bias] = kind if kind == names.DUAL else names.FLOAT
        return found

    def how_to_load(self, path: str, model: str = "") -> str:
        """Load in an engine on Ascend."""
        return f"vllm serve {path} --quantization ascend  # vllm-ascend; SGLang: --quantization modelslim"


def _bytes(stored: Recipe) -> Recipe:
    """Return the same bytes as U8, where they are codes or scales; anything else as it is."""
    return stored.reinterpret("U8") if stored.dtype in ("I8", "F4", "F8_E8M0") else stored


MODELSLIM = ModelSlimDialect()

__all__ = ["MODELSLIM", "ModelSlimDialect"]
