"""What a conversion writes that is no MXFP4: FP8 in blocks of 128 x 128, and NVFP4.

FP8 is written as transformers and vLLM read it (``quant_method: fp8``), NVFP4 as compressed-tensors has it for
weights alone (``nvfp4-pack-quantized``). Weights that engines fuse, such as q, k and v, get one number of NVFP4,
since those take one. Stacks of experts are written one by one, as both are public.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from mxfp4_core.arithmetic.format import BLOCK
from mxfp4_core.checkpoint.assemble import Unit
from mxfp4_core.checkpoint.manifest import Manifest, source_fingerprint
from mxfp4_core.checkpoint.reader import Checkpoint, open_checkpoint
from mxfp4_core.config.schema import Mxfp4Config
from mxfp4_core.dialects.base import AUTO_CLASS, Contents, Entry
from mxfp4_core.dialects.beside import Beside, Narrow
from mxfp4_core.dialects.compressed_tensors import VERSION
from mxfp4_core.dialects.default import read_by_model
from mxfp4_core.dialects.narrow import narrow_kind, read_narrow
from mxfp4_core.dialects.one_by_one import one_by_one
from mxfp4_core.dialects.raw import Bytes
from mxfp4_core.dialects.recipes import Recipe
from mxfp4_core.dialects.recoded import SIDE, exponents_of, fp8_of, nvfp4_of
from mxfp4_core.dialects.source import Source
from mxfp4_core.errors import DialectError
from mxfp4_core.jobs.made import Dequantized, signal_to_noise
from mxfp4_core.jobs.output import Result, content_of, linear_modules, write_result
from mxfp4_core.jobs.units import CopyUnit, PartsUnit
from mxfp4_core.naming.vocabulary import DEFAULT_FUSED, fused_names

_CT: Final = "compressed-tensors"


@dataclass(frozen=True)
class OtherFormat:
    """A format that is written and is no dialect of MXFP4.

    Attributes:
        name: what users type.
        readers: who loads it.
        components: whether diffusers loads a component of a pipeline from it.
    """

    name: str
    readers: str
    components: bool = False

    def check(self, entry: Entry) -> None:
        """Take linears in whole blocks, as `one_by_one` makes them of experts.

        Raises:
            DialectError: names the weight.
        """
        unusual = {
            f"format {entry.format}": entry.format != "mxfp4",
            f"K = {entry.shape[-1]}, padded": entry.shape[-1] % BLOCK != 0,
            "stacked experts": len(entry.shape) > 2,
            "a weight with K before N": entry.transposed,
        }
        for seen, found in unusual.items():
            if found:
                raise DialectError(
                    f"tensor {entry.weight!r} cannot be stored in {self.name}",
                    seen=f"{seen}, shape {list(entry.shape)}",
                    rule="what is made of MXFP4 here are weights [N, K] of linears and experts in whole blocks",
                    fix="keep it in MXFP4, or use `mxfp4 dequantize`",
                )

    def beside(self, weight: Narrow) -> dict[str, Recipe]:
        """Return the tensors to store for a weight of another kind: FP8 in the same blocks stays as it is.

        Raises:
            DialectError: another kind, or other blocks.
        """
        if self.name == "fp8" and isinstance(weight, Beside) and weight.block == (SIDE, SIDE):
            return {weight.weight: weight.values, f"{weight.weight}_scale_inv": weight.scales}
        raise DialectError(
            f"tensor {weight.weight!r} cannot be stored in {self.name}",
            seen=weight.told,
            rule=f"FP8 in blocks of {SIDE} x {SIDE} is kept in fp8, and nothing else",
            fix="widen it to BF16 (--beside widen), which is exact or an error",
        )

    def write(self, entries: Sequence[Entry], source: Bytes, *, lossy: bool) -> dict[str, dict[str, Recipe]]:
        """Return the tensors to store for each weight, by name."""
        if self.name == "fp8":
            made = {}
            for entry in entries:
                values, scales = fp8_of(entry, lossy=lossy)
                made[entry.weight] = {entry.weight: values, f"{entry.weight}_scale_inv": scales}
            return made
        largest: dict[str, int] = {}
        for entry in entries:
            if found := exponents_of(entry, source):
                group = _group(entry.weight)
                largest[group] = max(largest.get(group, found[1]), found[1])
        return {
            entry.weight: self._nvfp4(entry, largest.get(_group(entry.weight), 0), lossy) for entry in entries
        }

    def _nvfp4(self, entry: Entry, largest: int, lossy: bool) -> dict[str, Recipe]:
        codes, scales, number = nvfp4_of(entry, largest, lossy=lossy)
        return {
            f"{entry.weight}_packed": codes,
            f"{entry.weight}_scale": scales,
            f"{entry.weight}_global_scale": number,
        }

    def describe(self, kept: Sequence[str]) -> dict[str, Any]:
        """Return ``quantization_config``."""
        if self.name == "fp8":
            return {
                "quant_method": "fp8",
                "activation_scheme": "dynamic",
                "fmt": "e4m3",
                "weight_block_size": [SIDE, SIDE],
                "modules_to_not_convert": list(kept),
            }
        weights = {
            "dynamic": False,
            "group_size": 16,
            "num_bits": 4,
            "scale_dtype": "torch.float8_e4m3fn",
            "strategy": "tensor_group",
            "symmetric": True,
            "type": "float",
        }
        group = {
            "format": "nvfp4-pack-quantized",
            "input_activations": None,
            "output_activations": None,
            "targets": ["Linear"],
            "weights": weights,
        }
        return {
            "config_groups": {"group_0": group},
            "format": "nvfp4-pack-quantized",
            "ignore": list(kept),
            "quant_method": _CT,
            "quantization_status": "compressed",
            "version": VERSION,
        }

    def how_to_load(self, path: str, model: str = AUTO_CLASS) -> str:
        """Return the line that loads it."""
        package = "" if self.name == "fp8" else f"  # with {_CT}"
        return f"import transformers; transformers.{model}.from_pretrained({path!r}){package}"


OTHER_FORMATS: Final[Mapping[str, OtherFormat]] = {
    "fp8": OtherFormat("fp8", "transformers, vLLM, SGLang"),
    "nvfp4": OtherFormat("nvfp4", "vLLM; transformers with compressed-tensors"),
}
"""By name."""


def write_other_format(
    checkpoint: Checkpoint,
    contents: Contents,
    form: OtherFormat,
    folder: Path,
    *,
    widen: bool,
    lossy: bool,
    how: Mapping[str, Any],
) -> Result:
    """Write MXFP4 weights in another format.

    Args:
        checkpoint: the source.
        contents: what it holds.
        form: what is written.
        folder: where.
        widen: whether weights of other kinds become BF16.
        lossy: whether values may be rounded.
        how: further arguments of `write_result`.

    Raises:
        DialectError: nothing in MXFP4, a weight that the format does not take, or values that it does not have.
        OutputError: as `write_result`.
    """
    entries = [each for entry in contents.entries.values() for each in one_by_one(entry)]
    if not entries:
        raise DialectError(
            f"cannot convert {checkpoint.path}",
            seen="no weight in MXFP4",
            rule=f"{form.name} is made of MXFP4 weights",
            fix="use the checkpoint as it is",
        )
    for entry in entries:
        form.check(entry)
    stored = form.write(entries, checkpoint, lossy=lossy)
    place = {name: number for number, name in enumerate(checkpoint.tensors)}
    units: list[tuple[int, Unit]] = []
    for entry in entries:
        units.append((place[entry.names[0]], PartsUnit(checkpoint, tuple(stored[entry.weight].items()))))
    for name, recipe in contents.tensors.items():
        units.append((place[recipe.names[0]], CopyUnit(checkpoint, ((name, recipe),))))
    for each in contents.beside.values():
        made = {each.weight: each.widened} if widen else form.beside(each)
        units.append((place[each.names[0]], CopyUnit(checkpoint, tuple(made.items()))))
    units.sort(key=lambda pair: pair[0])
    kept = {name: recipe.shape for name, recipe in contents.tensors.items()}
    kept |= {name: each.shape for name, each in contents.beside.items() if widen}
    model = checkpoint.config if contents.model is None else contents.model
    document = {**model, "quantization_config": form.describe(linear_modules(kept, entries))}
    config = Mxfp4Config.from_dict({})
    settings = {"format": form.name, "lossy": lossy}
    manifest = Manifest(form.name, settings, config.fingerprint(), "", source_fingerprint(checkpoint))
    content = content_of(checkpoint, [unit for _, unit in units], {"config.json": document}, manifest)
    read = read_by_model(entries)
    result = write_result(
        folder, content, form, len(entries), **{**how, "model": "" if read else how["model"]}
    )
    notes = ["activations: " + contents.activation] if contents.activation != "none" else []
    notes = [f"{note} was said of the source, {form.name} here says nothing of it" for note in notes]
    if read is not None:
        notes.append(
            f"{read.reader} reads {read.weight} itself, which it finds in {form.name} then, and may not run"
        )
    errors = {} if result.dry_run or not lossy else _errors(checkpoint, entries, folder)
    return replace(result, notes=tuple(notes), format=form.name, errors=errors)


def _errors(checkpoint: Checkpoint, entries: Sequence[Entry], folder: Path) -> dict[str, float]:
    """Read the result, and return the signal to noise of each weight in dB."""
    result = open_checkpoint(folder)
    source = Source.of(result)
    made = read_narrow(source, narrow_kind(source) or "").beside
    return {
        entry.weight: signal_to_noise(
            Dequantized(entry.weight, entry), checkpoint, made[entry.weight], result
        )
        for entry in entries
    }


def _group(weight: str) -> str:
    """Return the module that an engine fuses a weight into, or its own name."""
    module = weight.removesuffix(".weight")
    fused = [name for name, shards in fused_names(module, DEFAULT_FUSED) if len(shards) > 1]
    return fused[-1] if fused else module  # of experts: those of one expert, which come last


__all__ = ["OTHER_FORMATS", "OtherFormat", "write_other_format"]
